"""Benchmarks: each folder answers one question and writes the results to ``results/``."""
