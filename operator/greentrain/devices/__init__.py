"""The node's devices behind typed ports: which GPU is allocated to which pod, and what the hardware reports."""
