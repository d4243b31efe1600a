"""What a person gets to see: figures and the report."""
