"""How does the whole way go on real files? ``python -m benchmarks.clips CLIPS WEIGHTS``."""
