"""Measurements: counts of arithmetic and memory, and times as ratios within a run."""
