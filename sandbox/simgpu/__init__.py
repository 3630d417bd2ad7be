"""Simulated GPUs below NVML, so that unmodified NVML programs run where no card is; docs/simgpu.md tells of them."""
