"""What does a block with AIM's three adapters look like? ``python -m benchmarks.drawing``."""
