"""Data sets -> manifests, and how patients are divided."""
