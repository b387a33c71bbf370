"""Does AIM learn temporal order, and what does each adapter add? ``python -m benchmarks.accuracy``."""
