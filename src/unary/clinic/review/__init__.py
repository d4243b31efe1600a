"""A page on which a reader looks at what unary found, and says what she thinks of it."""
