"""Benchmarks that produce the figures we quote: ratios side by side in one run, and memory as N grows."""
