"""Which image transformers can be adapted, and do all laws hold for each? ``python -m benchmarks.coverage``."""
