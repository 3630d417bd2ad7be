"""The node's devices behind typed doors: which pod holds which GPU, and what the hardware says of itself."""
