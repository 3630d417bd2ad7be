"""NVIDIA's GPUs: the only user of NVML, the kernel driver's load, and the names that device plugins give a card."""
