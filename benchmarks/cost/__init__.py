"""What does AIM cost, beside its rivals and by its settings? ``python -m benchmarks.cost``."""
