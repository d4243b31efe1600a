"""unary: one-class anomaly detection in medical images."""
