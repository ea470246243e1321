"""Patches of images as the right operand of a product, gathered from digits.

Each output pixel meets a patch of size x size pixels and all channels. With the channels innermost, a row of a patch is one
contiguous stretch of memory, whatever the stride, so patches are copied stretch by stretch. It is digits that are copied: a
pixel is split once, though it is in up to size^2 patches. Copying words first and splitting them afterwards gains nothing,
even with one channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .digits import Digits, Format


@dataclass(frozen=True)
class Window:
    """Which patches to take from padded images.

    Attributes:
        size: rows and columns of a patch.
        stride: from one patch to the next.
        outputs: rows and columns of patches.
    """

    size: int
    stride: int
    outputs: tuple[int, int]


class Patches:
    """Images from which blocks of patches are taken.

    Args:
        form: the digits.
        images: padded ring words [parts, B, H, W, C]. A patch's inner dimension runs over parts, its rows, columns, channels.
    """

    def __init__(self, form: Format, images: np.ndarray):
        self._form = form
        planes = form.split(images)
        self._planes = planes.reshape(*planes.shape[:-2], -1)  # [count, parts, B, H, W C]
        self._parts, self._channels = images.shape[0], images.shape[-1]

    def block(self, window: Window, images: slice, rows: slice) -> Digits:
        """The patches of some images and of some rows of output, as digits of a right operand."""
        stretches = list(self._stretches(window, images, rows))
        count = int(np.prod(stretches[0].shape[1:-1]))
        inner = len(stretches) * stretches[0].shape[-1]
        digits = Digits.empty(self._form, "right", count, inner)
        for index, stretch in enumerate(stretches):
            digits.fill(index * stretch.shape[-1], stretch)
        return digits

    def _stretches(self, window: Window, images: slice, rows: slice) -> Iterator[np.ndarray]:
        """Views [count, B, rows, columns, size * C], for each part and each row of a patch."""
        width = window.size * self._channels
        views = sliding_window_view(self._planes, width, axis=-1)[..., :: window.stride * self._channels, :]
        first, last = rows.start, min(rows.stop, window.outputs[0]) - 1
        for part in range(self._parts):
            for row in range(window.size):
                start = row + first * window.stride
                stop = row + last * window.stride + 1
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
