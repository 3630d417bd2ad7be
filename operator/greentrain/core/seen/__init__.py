"""What one pass may know: the cluster's state, read once into one immutable snapshot."""
