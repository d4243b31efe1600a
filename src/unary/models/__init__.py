"""A fitted detector as a model: fit, keep, examine, calibrate."""
