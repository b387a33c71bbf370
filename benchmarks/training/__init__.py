"""Training of the benchmarks on accuracy: the loop, and the log of trials."""
