"""Does the full pipeline work on real video files? ``python -m benchmarks.clips CLIPS WEIGHTS``."""
