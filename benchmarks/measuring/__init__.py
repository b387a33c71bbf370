"""What benchmarks measure with: counts of arithmetic and memory, and times as ratios within a run."""
