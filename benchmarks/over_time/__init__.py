"""Attention or a convolution over time? ``python -m benchmarks.over_time`` makes the table from three records."""
