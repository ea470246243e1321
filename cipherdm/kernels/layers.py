"""Linear layers as one party computes them: matrix product, convolution, and products of two secrets.

Each function takes this party's pairs (see `shares`) and returns z_i, its part of the result, modulo 2^bits; bits above are
any. It must not be sent without a share of zero (`rounds.reshare`, `cut`). Three products of components can be written as two,

    z_i = w_i (x_i + x_(i+1)) + w_(i+1) x_i,

so a layer is one product of twice the inner dimension, [w_i, w_(i+1)] times [x_i + x_(i+1); x_i]. Words are fixed-point
numbers, and the result has the sum of both operands' fraction bits: the caller has to truncate it.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import CipherDMError
from .digits import Digits
from .patches import Patches, blocks
from .products import Path, product

BLOCK_BYTES = 1 << 25  # bytes of a right operand's digits at a time, so that memory stays small
Padding = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Weights:
    """Weights of a layer at one party, split into digits once and kept.

    Attributes:
        path: way to compute products.
        outputs, channels, size: shape [O, C, size, size] of the weights; a matrix has size 1.
        digits: the weights as a left operand.
    """

    path: Path
    outputs: int
    channels: int
    size: int
    digits: Digits


def prepare(path: Path, pair: np.ndarray, bits: int = 64) -> Weights:
    """Split weights into digits.

    Args:
        path: way to compute products.
        pair: [2, O, C, K, K] for a convolution or [2, O, C] for a matrix.
        bits: bits of the ring of the result.

    Raises:
        CipherDMError: the weights have another shape or type.
    """
    if pair.ndim == 3:
        pair = pair[..., None, None]
    if pair.ndim != 5 or pair.shape[0] != 2 or pair.shape[3] != pair.shape[4]:
        raise CipherDMError(f"weights have the shape [2, O, C] or [2, O, C, K, K], not {pair.shape}")
    _, outputs, channels, size, _ = pair.shape
    # A row has the order of patches: component, row, column, channel.
    rows = pair.transpose(1, 0, 3, 4, 2).reshape(outputs, -1)
    return Weights(path, outputs, channels, size, Digits.left(path.form(bits), rows))


def matmul(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Return z [..., O, N] of weights [O, C] times x, whose pair is [2, ..., C, N].

    Raises CipherDMError if the shapes do not fit.
    """
    if weights.size != 1 or x.ndim < 3:
        raise CipherDMError(f"a matrix product takes weights [2, O, C] and x [2, ..., C, N], not x of shape {x.shape}")
    images = x.reshape(2, -1, *x.shape[-2:], 1)
    return conv2d(weights, images).reshape(*x.shape[1:-2], weights.outputs, x.shape[-1])


def conv2d(weights: Weights, x: np.ndarray, *, stride: int = 1, padding: Padding = ((0, 0), (0, 0))) -> np.ndarray:
    """Return z [B, O, rows, columns] of the convolution, as PyTorch defines it, of x with the pair [2, B, C, H, W].

    Args:
        padding: zeros ((above, below), (left, right)).

    Raises:
        CipherDMError: shapes or types do not fit.
    """
    _check_images(weights, x, padding)
    form = weights.digits.form
    # [2, B, H, W, C], with zeros around: the sum of both components, and the first
    (above, below), (left, right) = padding
    batch, channels, height, width = x.shape[1:]
    images = np.zeros((2, batch, above + height + below, left + width + right, channels), np.uint64)
    inside = images[:, :, above : above + height, left : left + width].transpose(0, 1, 4, 2, 3)
    inside[:] = x[0]
    inside[0] += x[1]
    patches = Patches(form, images, weights.size, stride)
    z = np.empty((batch, weights.outputs, *patches.outputs), np.uint64)
    for some, rows in blocks(batch, patches.outputs, _columns_at_a_time(weights.digits)):
        words = product(weights.path, weights.digits, patches.block(some, rows))
        z[some, :, rows] = words.reshape(weights.outputs, some.stop - some.start, -1, z.shape[-1]).swapaxes(0, 1)
    return z


def batched_product(path: Path, x: np.ndarray, y: np.ndarray, bits: int = 64) -> np.ndarray:
    """Return z [..., M, N] of the products of two secrets with pairs [2, ..., M, K] and [2, ..., K, N], per leading index.

    Raises CipherDMError if shapes or types do not fit.
    """
    if x.ndim < 3 or x.ndim != y.ndim or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2] or x.shape[0] != 2:
        raise CipherDMError(
            f"pairs of shapes {x.shape} and {y.shape} have no product; they are [2, ..., M, K] and [2, ..., K, N]"
        )
    form = path.form(bits)
    z = np.empty((*x.shape[1:-1], y.shape[-1]), np.uint64)
    for index in np.ndindex(*x.shape[1:-2]):
        own, following = x[0][index], x[1][index]
        left = Digits.left(form, np.concatenate([own + following, own], axis=1))
        step = _columns_at_a_time(left)
        for first in range(0, y.shape[-1], step):
            columns = [component[index][:, first : first + step].T for component in y]
            right = Digits.right(form, np.concatenate(columns, axis=1))
            product(path, left, right, out=z[index][:, first : first + step])
    return z


def _columns_at_a_time(left: Digits) -> int:
    """Return how many columns of the right operand have about BLOCK_BYTES of digits, from 128 to 1024."""
    column = sum(left.sizes) * left.form.count * np.dtype(left.form.digit).itemsize
    return min(1024, max(128, BLOCK_BYTES // max(1, column)))


def _check_images(weights: Weights, x: np.ndarray, padding: Padding) -> None:
    if x.ndim != 5 or x.shape[0] != 2 or x.shape[2] != weights.channels:
        raise CipherDMError(
            f"x has the shape {x.shape}; weights of {weights.channels} channels take [2, B, C, H, W] with as many"
        )
    for length, around in zip(x.shape[3:], padding, strict=True):
        if length + sum(around) < weights.size:
            raise CipherDMError(
                f"images of shape {x.shape[3:]} are smaller than a kernel of {weights.size} x {weights.size}"
            )
