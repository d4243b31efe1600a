"""How each dense detector learns from images of normal tissue."""
