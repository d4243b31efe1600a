"""Arithmetic in C: the sources, and what compiles them."""
