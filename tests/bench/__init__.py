"""Benchmarks of the service beside the same jobs written with common libraries; see `scripts/bench --help`."""
