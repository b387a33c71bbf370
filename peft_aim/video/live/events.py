"""What watching a source tells: scores, remarks, and a summary."""

from __future__ import annotations

from dataclasses import dataclass

from peft_aim.video.problem_type import LIKELY, MULTI_LABEL, REGRESSION, text_of


@dataclass(frozen=True)
class Scores:
    """What a source shows now.

    Attributes:
        time: Time of the last frame, in seconds since the first frame of the source.
        top: The most probable classes and their probabilities, or what numbers are called and the numbers.
        frames: Number of frames that they are of.
        delay: Seconds behind the source; None unless that runs in real time.
        skipped: Number of frames skipped so far, since the model had no time for them.
        problem_type: What is predicted, see :mod:`peft_aim.video.problem_type`.

    Example:
        >>> print(Scores(12.4, [("push", 0.92), ("pull", 0.08)], 8, 0.13, 0))
           12.4 s  push 92.0%, pull 8.0%  (0.1 s behind)
    """

    time: float
    top: list[tuple[str, float]]
    frames: int
    delay: float | None
    skipped: int
    problem_type: str | None = None

    @property
    def predicted(self) -> tuple[str, ...]:
        """The most probable class; of several classes per video, all above 50%; of numbers, nothing."""
        if self.problem_type == REGRESSION:
            return ()
        likely = tuple(sorted(name for name, probability in self.top if probability > LIKELY))
        return likely if self.problem_type == MULTI_LABEL else (self.top[0][0],)

    def __str__(self) -> str:
        classes = text_of(self.top, self.problem_type)
        notes = [] if self.delay is None else [f"{self.delay:.1f} s behind"]
        notes += [f"{self.skipped} skipped"] if self.skipped else []
        return f"{self.time:7.1f} s  {classes}" + (f"  ({', '.join(notes)})" if notes else "")


@dataclass(frozen=True)
class Remark:
    """Something to tell the user.

    Attributes:
        text: The text.
        restarts: Whether the frames that follow are not adjacent to those before, so that scores start anew.
    """

    text: str
    restarts: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summary:
    """What was watched.

    Attributes:
        seconds: Length in seconds, up to the last frame.
        seen: Number of frames decoded.
        taken: Number of frames taken.
        skipped: Number of those that the model had no time for.
        damaged: Number of packets that could not be decoded.
        reconnections: How often the source was opened again.
        lost: Seconds for which no frames came, since the source had to be opened again.
        top: For how many frames each class was the most probable, by class, the most frequent first.

    Example:
        >>> print(Summary(60.0, 1500, 300, 2, 0, 1, 3.2, {"push": 200, "pull": 98}))
        60.0 s watched: 1,500 frames seen, 300 taken, 2 of them skipped, 0 packets damaged
        Reconnections: 1, with 3.2 s lost
        Most probable: push in 67.1% of 298 scores, pull in 32.9%
    """

    seconds: float
    seen: int
    taken: int
    skipped: int
    damaged: int
    reconnections: int
    lost: float
    top: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{self.seconds:.1f} s watched: {self.seen:,} frames seen, {self.taken:,} taken, {self.skipped:,} "
            f"of them skipped, {self.damaged:,} packets damaged"
        ]
        if self.reconnections:
            lines += [f"Reconnections: {self.reconnections:,}, with {self.lost:.1f} s lost"]
        scored = sum(self.top.values())
        if scored:
            first, *others = (f"{name} in {count / scored:.1%}" for name, count in self.top.items())
            lines += [", ".join([f"Most probable: {first} of {scored:,} scores", *others])]
        return "\n".join(lines)
