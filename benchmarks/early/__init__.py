"""How early is a video recognized, and does causal attention cost accuracy? ``python -m benchmarks.early DATA``."""
