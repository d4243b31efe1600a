"""Prepared images, and patches as coordinates over them. No torch."""
