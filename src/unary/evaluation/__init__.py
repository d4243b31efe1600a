"""What scores are worth: curves, areas, and intervals over patients."""
