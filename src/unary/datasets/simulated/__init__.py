"""Simulated lesions in images of normal tissue; `unary.datasets.simulated.insertion` is the way in."""
