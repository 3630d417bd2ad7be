"""What a node's agent decides, as pure functions: the shell that does it is `agent`."""
