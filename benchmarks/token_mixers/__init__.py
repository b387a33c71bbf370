"""Is token mixing other than softmax attention useful over time? ``python -m benchmarks.token_mixers``."""
