"""Patches of images as the right operand of a product, gathered from digits.

Each output pixel meets a patch of size x size pixels and all channels. With the channels innermost, a row of a patch is one
contiguous stretch of memory, whatever the stride, so patches are copied stretch by stretch. Digits are copied instead of
words: each pixel is split once, though it is in up to size^2 patches. Copying words first was no faster, even for one channel.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .digits import Digits, Format


class Patches:
    """Images from which blocks of patches are taken.

    Args:
        form: format of the digits.
        images: padded ring words [parts, B, H, W, C]. A patch's inner dimension runs over parts, rows, columns and channels.
        size: number of rows and of columns of a patch.
        stride: distance from one patch to the next.

    Attributes:
        outputs: numbers of rows and columns of patches in an image.
    """

    def __init__(self, form: Format, images: np.ndarray, size: int, stride: int):
        self._form, self._size, self._stride = form, size, stride
        self.outputs = tuple((length - size) // stride + 1 for length in images.shape[2:4])
        planes = form.split(images)
        self._planes = planes.reshape(*planes.shape[:-2], -1)  # [count, parts, B, H, W C]
        self._parts, self._channels = images.shape[0], images.shape[-1]

    def block(self, images: slice, rows: slice) -> Digits:
        """Return the patches of some images and of some rows of output, as digits of a right operand."""
        stretches = list(self._stretches(images, rows))
        count = int(np.prod(stretches[0].shape[1:-1]))
        inner = len(stretches) * stretches[0].shape[-1]
        digits = Digits.empty(self._form, "right", count, inner)
        for index, stretch in enumerate(stretches):
            digits.fill(index * stretch.shape[-1], stretch)
        return digits

    def _stretches(self, images: slice, rows: slice) -> Iterator[np.ndarray]:
        """Yield views [count, B, rows, columns, size * C], for each part and each row of a patch."""
        views = sliding_window_view(self._planes, self._size * self._channels, axis=-1)
        views = views[..., :: self._stride * self._channels, :]
        first, last = rows.start, min(rows.stop, self.outputs[0]) - 1
        for part in range(self._parts):
            for row in range(self._size):
                start, stop = row + first * self._stride, row + last * self._stride + 1
                yield views[:, part, images, start : stop : self._stride, : self.outputs[1]]


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
