"""Does AIM learn time, and what is each adapter worth? ``python -m benchmarks.accuracy``."""
