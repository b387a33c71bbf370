"""Presentation times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import av

RESTART = 10  # seconds: FFmpeg's default of -dts_delta_threshold
DEFAULT_RATE = Fraction(25)  # frames per second, as FFmpeg assumes


def ascending_seconds(times: Sequence[int | None], stream: av.VideoStream) -> list[float]:
    """Return the presentation time of each frame in seconds, ascending from 0.

    Where a container stores no times that ascend, as AVI and raw streams do, frames follow at the frame rate.

    Args:
        times: Presentation time of each frame, in the time base of the stream.
        stream: The stream, for its time base, its frame rate and its format: the clock of a broadcast may start again.
    """
    usual = usual_step(stream)
    if may_restart(stream):
        return [float(moment) for moment in continued(times, stream.time_base, usual)]
    if None in times or any(before >= now for before, now in pairwise(times)):
        return [float(i * usual) for i in range(len(times))]
    return seconds_from(times, stream.time_base)


def usual_step(stream: av.VideoStream) -> Fraction:
    """Return the usual seconds between two frames of a stream."""
    return 1 / (stream.average_rate or stream.guessed_rate or DEFAULT_RATE)


def may_restart(stream: av.VideoStream) -> bool:
    """Return whether the clock of a stream may start again."""
    return bool(stream.container.format.flags & av.format.Flags.ts_discont.value)


def seconds_from(times: Sequence[int], base: Fraction) -> list[float]:
    """Return times in units of ``base`` in seconds, from the first on; in floats, since a long video has many.

    Example:
        >>> seconds_from([90, 91, 95], Fraction(1, 2))
        [0.0, 0.5, 2.5]
    """
    return [(time - times[0]) * base.numerator / base.denominator for time in times]


def continued(times: Sequence[int | None], base: Fraction, usual: Fraction) -> list[Fraction]:
    """Return times in seconds from 0; where the clock is missing or starts again, the next frame follows as usual.

    Args:
        times: Times in units of ``base``.
        base: Length of a unit in seconds.
        usual: Usual seconds between two frames.

    Example:
        >>> continued([90, 91, 92, 90, 91], Fraction(1, 2), Fraction(1, 4))
        [Fraction(0, 1), Fraction(1, 2), Fraction(1, 1), Fraction(5, 4), Fraction(7, 4)]
    """
    seconds = [Fraction(0)]
    for before, now in pairwise(times):
        seconds.append(seconds[-1] + elapsed(before, now, base, usual))
    return seconds


def elapsed(before: int | None, now: int | None, base: Fraction, usual: Fraction, restarts: bool = True) -> Fraction:
    """Return the seconds between two frames: ``usual`` if the clock is missing, or has started again in between.

    Args:
        before: Time of the first frame in units of ``base``.
        now: Time of the second frame.
        base: Length of a unit in seconds.
        usual: Usual seconds between two frames.
        restarts: Whether the clock may start again; a long step then counts as such.

    Example:
        >>> elapsed(90, 93, Fraction(1, 2), Fraction(1, 4)), elapsed(90, 89, Fraction(1, 2), Fraction(1, 4))
        (Fraction(3, 2), Fraction(1, 4))
    """
    step = usual if before is None or now is None else (now - before) * base
    return step if step > 0 and (step <= RESTART or not restarts) else usual
