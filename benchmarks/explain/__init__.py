"""Does ``peft-aim explain`` find where and when something happens? ``python -m benchmarks.explain``."""
