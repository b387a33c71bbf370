"""Times of several ways to do a thing, taken in turns, so that what else a machine does hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each way once per round, after a first time that doesn't count.

    Args:
        ways: What to call, by name.
        rounds: Number of rounds.

    Returns:
        Seconds, by name and round.

    Example:
        >>> sorted(in_turns({"a": list, "b": dict}, rounds=2))
        ['a', 'b']
    """
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return seconds


def timed(way: Callable[[], object]) -> float:
    """Return the seconds that a call takes, on a GPU until all of it is done."""
    settle()
    began = time.perf_counter()
    way()
    settle()
    return time.perf_counter() - began


def settle() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(seconds: list[float], reference: list[float]) -> float:
    """Return how much longer one way takes than another: the median over rounds, each of its own moment.

    Example:
        >>> ratio([2.0, 9.0, 2.0], [1.0, 1.0, 1.0])
        2.0
    """
    return statistics.median(one / other for one, other in zip(seconds, reference, strict=True))
