"""How exact and how large are exported adapters? ``python -m benchmarks.exported``."""
