"""Approximations of nonlinear functions, a module a function, and the forms that they are written in."""
