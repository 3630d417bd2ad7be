"""NVIDIA's GPUs: the only user of NVML, the kernel driver's load, and what device plugins call a card."""
