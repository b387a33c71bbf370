"""Does token mixing other than softmax attention work along time? ``python -m benchmarks.token_mixers``."""
