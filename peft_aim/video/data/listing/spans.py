"""The columns of a table that say which segment of a video a row is about."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

TIMES = ("time_start", "time_end")  # Kinetics, whose videos may have been cut to clips already
# Columns of start and end in seconds; the first pair that a table has counts.
SPANS = (
    TIMES,
    ("start", "end"),
    ("start_time", "end_time"),
    ("start_sec", "end_sec"),
    ("start_seconds", "end_seconds"),
)

Span = tuple[float | None, float | None]


def span_columns(columns: Collection[str]) -> tuple[str, str] | None:
    """Return the columns of start and end, None if there are none; a table may have only one of the two."""
    return next((pair for pair in SPANS if any(column in columns for column in pair)), None)


def span_of(row: Mapping[str, str], columns: tuple[str, str], where: str) -> Span:
    """Return start and end of a segment; an empty cell is the start or end of the video.

    Args:
        row: Cells by column.
        columns: The columns of start and end.
        where: Where the row is, for errors.

    Raises:
        ValueError: If one is not a number of seconds from 0 on, or the end is not after the start.

    Example:
        >>> span_of({"start": "1.5", "end": ""}, ("start", "end"), "Line 2")
        (1.5, None)
    """
    shown = " and ".join(f"{column}={row[column]}" for column in columns if column in row)
    try:
        start, end = (_seconds(row.get(column, "")) for column in columns)
    except ValueError:
        raise ValueError(
            f"{where} has no numbers of seconds as {' and '.join(columns)}: {shown}. Give seconds, such as 12.5."
        ) from None
    if any(time is not None and not 0 <= time < math.inf for time in (start, end)):
        raise ValueError(f"{where} has {shown}, which is outside of any video. Give seconds from 0 on.")
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"{where} has {shown}, a segment without length. Give an end after the start.")
    return start, end


def trimmed_names(path: str, span: Span) -> tuple[str, ...]:
    """Return the names that Kinetics' scripts give a clip once it is cut from its video, with and without a suffix.

    Example:
        >>> trimmed_names("abc", (1.0, 11.0))
        ('abc_000001_000011.mp4', 'abc_000001_000011')
    """
    if None in span:
        return ()
    name = f"{path}_{int(span[0]):06d}_{int(span[1]):06d}"
    return f"{name}.mp4", name


def _seconds(cell: str) -> float | None:
    return float(cell) if cell else None
