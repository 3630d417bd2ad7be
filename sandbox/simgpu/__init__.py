"""Simulated GPUs below NVML, so that unmodified NVML programs run where no card is; docs/internals/simgpu.md describes them."""
