"""Times of several functions, measured in turns, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each function once per round, after one call to warm up.

    Args:
        functions: Functions by name.
        rounds: Number of rounds.

    Returns:
        Seconds by name, one per round.

    Example:
        >>> sorted(in_turns({"a": list, "b": dict}, rounds=2))
        ['a', 'b']
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(timed(function))
    return seconds


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes, including its pending work on the GPU."""
    settle()
    began = time.perf_counter()
    function()
    settle()
    return time.perf_counter() - began


def settle() -> None:
    """Wait for the GPU, if any."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: list[float], reference: list[float]) -> float:
    """Return how many times as long as its reference a function takes: the median of the ratios within each round.

    Example:
        >>> ratio([2.0, 9.0, 2.0], [1.0, 1.0, 1.0])
        2.0
    """
    return statistics.median(one / other for one, other in zip(seconds, reference, strict=True))
