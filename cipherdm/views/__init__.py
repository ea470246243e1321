"""Figures and widgets: pure functions from records and arrays to matplotlib figures."""
