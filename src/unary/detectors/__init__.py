"""What learns normal tissue and says where an image departs from it."""
