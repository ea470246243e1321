"""Kernels on the words of a ring, for tests."""

from cipherdm.kernels.operation import Kernel, apply
from cipherdm.protocols.fixed import Fixed


def on_words(kernel: Kernel):
    """A kernel as a function of stored words."""

    def layer(first, second):
        first, second = (Fixed.load(array, 0, ring=True).array for array in (first, second))
        return Fixed(apply(kernel, first, second), 0, ring=True).store()

    return layer
