"""Makes the tables of ``explain.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.reporting.tables import headed, line

TITLES = {"what": "which digit appears", "motion": "which way a digit moves"}


def page(record: dict[str, Any]) -> str:
    """Return the hits of each way to attribute, and the accuracy with frames in other orders."""
    tasks = {title: record["tasks"][task] for task, title in TITLES.items()}
    return "\n\n".join([hits(tasks), orders(tasks)])


def hits(tasks: dict[str, Any]) -> str:
    """Return how often the greatest cell, frame and place are those of the event, and its share."""
    columns = [(title, key) for title in tasks for key in ("cell", "frame", "place", "share")]
    head = ["attribution", *(f"{title}: {key}" if key == "cell" else key for title, key in columns)]
    names = [row["row"] for row in next(iter(tasks.values()))["rows"]]
    found = {(title, row["row"]): row for title, task in tasks.items() for row in task["rows"]}
    return headed(head, [line(name, *(f"{found[title, name][key]:.1%}" for title, key in columns)) for name in names])


def orders(tasks: dict[str, Any]) -> str:
    """Return the accuracy with frames in other orders."""
    names = list(next(iter(tasks.values()))["orders"])
    lines = [line(title, *(f"{task['orders'][name]:.1%}" for name in names)) for title, task in tasks.items()]
    return headed(["top-1 with frames", *names], lines)
