"""Glyphs of matplotlib's fonts, bent as handwriting is: public images for trainings whose private images are MNIST's."""

from .source import DIGITS, HELD_OUT, LETTERS, glyph_batch, glyph_digits, glyph_letters, glyph_letters_and_digits
