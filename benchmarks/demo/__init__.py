"""Does AIM learn what single frames do not show? ``python -m benchmarks.demo``."""
