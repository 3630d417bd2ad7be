"""Benchmarks: `make bench` prints them, docs/reference/benchmarks.md keeps them; nothing here passes or fails."""
