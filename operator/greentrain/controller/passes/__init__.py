"""One pass of work: over a job (`jobs`) or over a node (`nodes`), each from what is known at that moment."""
