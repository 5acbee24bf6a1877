"""Benchmarks: each measures ours and a rival in the same run and appends to results/."""
