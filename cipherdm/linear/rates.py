"""How fast one party's kernels are on this processor, by path and ring, without a link: arithmetic alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from . import kernels
from .paths import FLOAT64, INT8, Path
from .zero import AgreedKeys, fresh_key

Progress = Callable[[int, int, str], None]
"""Called before each measurement as `progress(done, total, name)`."""


@dataclass(frozen=True)
class Layer:
    """A layer whose products are `batch` times `rows` x `inner` x `columns`.

    Attributes:
        name: how tables call it.
        kind: "conv" (3 x 3 with padding 1 on a square image of `columns` pixels), "linear", or "attention" (two secrets).
        rows, inner, columns, batch: of the products in plaintext.
    """

    name: str
    kind: str
    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def multiply_adds(self) -> int:
        """Of the layer in plaintext. A party's share of the secure layer has twice as many."""
        return self.batch * self.rows * self.inner * self.columns


LAYERS = (
    Layer("mnist10 convolution", "conv", 128, 1152, 196),
    Layer("Stable Diffusion feed-forward", "linear", 1280, 5120, 256),
    Layer("Stable Diffusion convolution", "conv", 320, 2880, 4096),
    Layer("Stable Diffusion scores", "attention", 4096, 40, 4096, 8),
    Layer("Stable Diffusion values", "attention", 40, 4096, 4096, 8),
)


@dataclass(frozen=True)
class Rate:
    """One measurement.

    Attributes:
        layer: what was computed.
        path: name of the path.
        bits: of a ring word.
        seconds: of processor time of one thread for z_i, from words to words: digits of the input, products, zero share.
        seconds_prepare: to split the weights, once for all steps. 0 if there are none.
    """

    layer: Layer
    path: str
    bits: int
    seconds: float
    seconds_prepare: float

    @property
    def layer_rate(self) -> float:
        """Multiply-adds of the plaintext layer a second."""
        return self.layer.multiply_adds / self.seconds

    @property
    def ring_rate(self) -> float:
        """Multiply-adds of ring words a second: two for each of the layer's."""
        return 2 * self.layer_rate


def measure(
    layers: Sequence[Layer] = LAYERS,
    paths: Sequence[Path] = (INT8, FLOAT64),
    words: Sequence[type[np.unsignedinteger]] = (np.uint64, np.uint32),
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Iterator[Rate]:
    """Run each layer on each path in each ring; the best of `repetitions`, after one that warms up."""
    cases = [(layer, word, path) for layer in layers for word in words for path in paths]
    for done, (layer, word, path) in enumerate(cases):
        form = path.form(word)
        if progress:
            progress(done, len(cases), f"{layer.name}, {form.bits} bits, {path.name}")
        prepare, run = _kernel(layer, path, word)
        start = time.thread_time()
        weights = prepare()
        seconds_prepare = time.thread_time() - start if weights is not None else 0.0
        zeros = AgreedKeys(fresh_key(), fresh_key()).zero_shares(b"rates")
        seconds = []
        for _ in range(1 + repetitions):
            start = time.thread_time()
            run(weights, zeros)
            seconds.append(time.thread_time() - start)
        yield Rate(layer, path.name, form.bits, min(seconds[1:]), seconds_prepare)


def _kernel(layer: Layer, path: Path, word: type[np.unsignedinteger]) -> tuple[Callable, Callable]:
    """prepare() -> weights or None, and run(weights, zeros) -> z, on random pairs."""
    generator = np.random.default_rng(0)

    def pair(*shape):
        return generator.integers(0, np.iinfo(word).max, (2, *shape), dtype=word, endpoint=True)

    if layer.kind == "attention":
        x, y = pair(layer.batch, layer.inner, layer.rows), pair(layer.batch, layer.columns, layer.inner)
        # Queries have their inner dimension first and probabilities last, as the U-Net's attention has them.
        x, y = x.swapaxes(-1, -2), y.swapaxes(-1, -2)
        return lambda: None, lambda _, zeros: kernels.batched_product(path, x, y, zeros)
    if layer.kind == "linear":
        w, x = pair(layer.rows, layer.inner), pair(layer.batch, layer.inner, layer.columns)
        return lambda: kernels.prepare(path, w), lambda weights, zeros: kernels.matmul(weights, x, zeros)
    channels, side = layer.inner // 9, round(layer.columns**0.5)
    w, x = pair(layer.rows, channels, 3, 3), pair(layer.batch, channels, side, side)
    around = ((1, 1), (1, 1))
    return lambda: kernels.prepare(path, w), lambda weights, zeros: kernels.conv2d(weights, x, zeros, padding=around)
