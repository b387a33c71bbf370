"""Does AIM learn what single frames don't show? ``python -m benchmarks.demo``."""
