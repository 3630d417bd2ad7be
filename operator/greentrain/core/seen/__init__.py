"""What one pass may know: the world, read once into one immutable snapshot."""
