"""The decision: from one immutable snapshot to what is done. Pure: no clock, network, log or randomness."""
