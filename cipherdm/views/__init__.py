"""Figures and widgets: pure functions from records and arrays to matplotlib figures."""

from .sheet import sample_sheet as sample_sheet
