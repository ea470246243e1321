"""Patches of images as the right operand of a product, gathered from digits or from words.

Each output pixel meets a patch of size x size pixels and all channels. With the channels innermost, a row of a patch is one
contiguous stretch of memory, whatever the stride, so patches are copied stretch by stretch. Usually it is digits that are
copied: a pixel is split once, though it is in up to size^2 patches. With few channels a stretch of digits has only a few
bytes, and whole words are copied first and split afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .digits import Digits, Format

SHORT = 48  # digits; shorter stretches are gathered as words


@dataclass(frozen=True)
class Window:
    """Which patches to take from padded images.

    Attributes:
        size: rows and columns of a patch.
        stride: from one patch to the next.
        outputs: rows and columns of patches.
        corner: row and column where the first patch begins.
    """

    size: int
    stride: int
    outputs: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


class Patches:
    """Images from which blocks of patches are taken.

    Args:
        form: the digits. images: padded ring words [parts, B, H, W, C]; a patch's inner dimension runs over parts, its
        rows, its columns, channels.
    """

    def __init__(self, form: Format, images: np.ndarray, size: int):
        self._form = form
        self._as_words = size * images.shape[-1] < SHORT
        planes = images[None] if self._as_words else form.split(images)
        self._planes = planes.reshape(*planes.shape[:-2], -1)  # [count or 1, parts, B, H, W C]
        self._parts, self._channels = images.shape[0], images.shape[-1]

    def block(self, window: Window, images: slice, rows: slice) -> Digits:
        """The patches of some images and of some rows of output, as digits of a right operand."""
        stretches = list(self._stretches(window, images, rows))
        count = int(np.prod(stretches[0].shape[1:-1]))
        inner = len(stretches) * stretches[0].shape[-1]
        if self._as_words:
            return Digits.right(
                self._form, np.concatenate([stretch[0] for stretch in stretches], axis=-1).reshape(count, inner)
            )
        digits = Digits.empty(self._form, "right", count, inner)
        for index, stretch in enumerate(stretches):
            digits.fill(index * stretch.shape[-1], stretch)
        return digits

    def _stretches(self, window: Window, images: slice, rows: slice) -> Iterator[np.ndarray]:
        """Views [count or 1, B, rows, columns, size * C], for each part and each row of a patch."""
        width = window.size * self._channels
        top, left = window.corner
        step = window.stride * self._channels
        views = sliding_window_view(self._planes, width, axis=-1)[..., left * self._channels :: step, :]
        first, last = rows.start, min(rows.stop, window.outputs[0]) - 1
        for part in range(self._parts):
            for row in range(window.size):
                start = top + row + first * window.stride
                stop = top + row + last * window.stride + 1
                yield views[:, part, images, start : stop : window.stride, : window.outputs[1]]


def blocks(batch: int, outputs: tuple[int, int], pixels: int) -> Iterator[tuple[slice, slice]]:
    """Cut a batch of images into blocks of about `pixels` output pixels: whole images, or rows of one image."""
    rows, columns = outputs
    if rows * columns <= pixels:
        step = max(1, pixels // max(1, rows * columns))
        for first in range(0, batch, step):
            yield slice(first, min(first + step, batch)), slice(0, rows)
        return
    step = max(1, pixels // columns)
    for image in range(batch):
        for first in range(0, rows, step):
            yield slice(image, image + 1), slice(first, min(first + step, rows))
