"""Arithmetic in C, compiled for the processor at hand."""
