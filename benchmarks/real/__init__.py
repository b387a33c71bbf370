"""Does AIM work on real videos with a really pretrained backbone? ``python -m benchmarks.real DATA``."""
