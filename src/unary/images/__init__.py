"""One file -> one image."""
