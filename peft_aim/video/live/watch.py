"""Watch a source: score the frames that are taken from it, while it lasts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import BrokenVideo, ForEvaluation
from peft_aim.video.live.events import Remark, Scores, Summary
from peft_aim.video.live.mailbox import Ended, Mailbox, Taken
from peft_aim.video.live.pace import rate_of
from peft_aim.video.live.reader import LONGEST_PAUSE, Reader
from peft_aim.video.live.scoring import Scorer, scorer_of
from peft_aim.video.live.source import Feed
from peft_aim.video.live.taking import Taker
from peft_aim.video.problem_type import REGRESSION, top_of

LOOK = 1.0  # seconds between two looks at a silent source


def watch(
    adapter: str,
    source: str,
    top_k: int = 5,
    window: bool = False,
    fps: float | None = None,
    timeout: float = 10.0,
    retry: int = 10,
    live: bool | None = None,
    backbone: Source | None = None,
) -> Watch:
    """Classify what a camera, a stream, or a file that may still be written to shows, while it lasts.

    Frames are taken at the rate that the adapter was trained at, and preprocessed as in evaluation, with one center
    crop.

    Args:
        adapter: Folder or Hub id of the adapter.
        source: The path of a file or a pipe, a camera (``0`` or ``/dev/video0``), ``-`` for standard input, or a URL
            that FFmpeg takes.
        top_k: Number of classes to return, the most probable first.
        window: Whether to score a sliding window, the last frames as one clip, anew for each frame. Adapters with
            ``causal=True`` do without.
        fps: Frames to take per second; None takes as many as the clips had that the adapter was trained on.
        timeout: Seconds without an answer after which a stream has broken off, and seconds without writing after which
            a file has ended.
        retry: How often to try in a row to open a camera or a stream again that has broken off.
        live: Whether frames come in real time, and are skipped if the model has no time for them; None does so for
            cameras and streams, but scores all frames of files, pipes, and URLs of recordings.
        backbone: Where to load the backbone from; None uses the source recorded in the adapter.

    Returns:
        What to iterate over, once: scores for each frame taken, and remarks.

    Raises:
        ValueError: If the source does not exist, an option is out of range, the adapter or the backbone cannot be
            loaded, the adapter needs ``window=True``, or its frame rate is not recorded and not given.

    Example:
        >>> for event in watch("my-task", "rtsp://camera/stream", top_k=2):  # doctest: +SKIP
        ...     print(event)
        Taking 5 frames per second, as in training: the 8 frames of a clip are 1.6 s.
            0.0 s  push 54.1%, pull 45.9%  (0.1 s behind)
            0.2 s  push 61.8%, pull 38.2%  (0.1 s behind)
    """
    for name, value, valid, expected in (
        ("top_k", top_k, top_k >= 1, "at least 1 class"),
        ("retry", retry, retry >= 0, "0 tries or more"),
        ("timeout", timeout, timeout > 0, "a time above 0"),
        ("fps", fps, fps is None or fps > 0, "a rate above 0"),
    ):
        if not valid:
            raise ValueError(f"{name}={value} is out of range. Give {expected}.")
    feed, loaded = Feed.find(source), load_adapters([adapter], backbone)
    loaded.to_gpu()
    description = loaded.descriptions[0]
    scorer, (rate, introduction) = scorer_of(loaded, window), rate_of(description, adapter, fps)
    transform = ForEvaluation(description.preprocessing)
    return Watch(
        feed,
        scorer,
        lambda picture: transform(picture[None])[0, 0],
        rate,
        description.classes,
        introduction,
        problem_type=description.problem_type,
        top_k=top_k,
        timeout=timeout,
        retry=retry,
        live=live,
    )


class Watch:
    """Scores of a source and remarks on it, to be iterated over once. A thread reads the source in the meantime.

    Args:
        feed: The source.
        scorer: What scores the frames.
        prepare: Preprocessing of a picture, uint8 ``(3, H', W') -> (3, H, W)``.
        fps: Frames to take per second.
        classes: Class names.
        introduction: The first remark.
        problem_type: What is predicted, see :mod:`peft_aim.video.problem_type`.
        top_k: See :func:`watch`, like the arguments that follow.
        timeout: See there.
        retry: See there.
        live: See there.

    Raises:
        BrokenVideo: While iterating, if the source cannot be opened or is not a video, a stream is not back after
            ``retry`` tries, or the source ends before the window is full.
        NotFinite: While iterating, if scores are NaN or infinite.
    """

    def __init__(
        self,
        feed: Feed,
        scorer: Scorer,
        prepare: Callable[[Tensor], Tensor],
        fps: float,
        classes: Sequence[str],
        introduction: str = "",
        problem_type: str | None = None,
        top_k: int = 5,
        timeout: float = 10.0,
        retry: int = 10,
        live: bool | None = None,
    ) -> None:
        self._feed, self._scorer, self._classes, self._introduction = feed, scorer, classes, introduction
        self._top_k, self._timeout, self._fps, self._problem_type = top_k, timeout, fps, problem_type
        self._on_top: Counter[str] = Counter()
        self._has_scores = False
        self._has_skipped = False
        self._mailbox = Mailbox(fps)
        self._taker = Taker(feed.name, self._mailbox, prepare, fps)
        self._reader = Reader(feed, self._taker, self._mailbox, timeout, retry, live)

    def __iter__(self) -> Iterator[Scores | Remark]:
        """Yield the scores of each frame that is taken, and remarks, until the source ends."""
        self._reader.start()
        patience = self._timeout
        try:
            if self._introduction:
                yield Remark(self._introduction)
            while True:
                match self._mailbox.get(LOOK):
                    case Taken() as taken:
                        patience = self._timeout
                        yield from self._skipped()
                        yield from self._scores(taken)
                    case Remark() as remark:
                        if remark.restarts:
                            self._scorer.reset()
                        yield remark
                    case Ended(error):
                        self._check_end(error)
                        return
                    case None if self._reader.silence > patience:
                        patience *= 2
                        yield self._silence()
        finally:
            self._reader.stop()

    @property
    def summary(self) -> Summary:
        """What was watched so far."""
        counts = self._taker.counts
        return Summary(
            counts.seconds,
            counts.seen,
            counts.taken,
            self._mailbox.skipped,
            counts.damage.errors,
            counts.reconnections,
            counts.lost,
            top=dict(self._on_top.most_common()),
        )

    def _scores(self, taken: Taken) -> Iterator[Scores]:
        probabilities = self._scorer.push(taken.frame)
        if probabilities is None:
            return
        self._has_scores = True
        top = top_of(probabilities, self._classes, self._top_k, self._problem_type)
        if self._problem_type != REGRESSION:
            self._on_top[top[0][0]] += 1
        delay = time.monotonic() - taken.due if self._mailbox.newest_win else None
        yield Scores(taken.time, top, self._scorer.frames, delay, self._mailbox.skipped, self._problem_type)

    def _skipped(self) -> Iterator[Remark]:
        """Yield once that frames are skipped."""
        if self._mailbox.skipped and not self._has_skipped:
            self._has_skipped = True
            yield Remark(f"Frames are skipped, to keep up with {self._feed.name}; the summary has their number.")

    def _check_end(self, error: Exception | None) -> None:
        """Raise why the source has ended, unless it was complete and has been scored."""
        if error is not None:
            raise error
        if not self._has_scores:
            raise BrokenVideo(
                f"{self._feed.name} ended after {self._taker.counts.taken} of the frames of a window, so there are no "
                f"scores. Take more than {self._fps:.3g} frames per second with --fps, or classify it with peft-aim "
                "predict, which repeats frames."
            )

    def _silence(self) -> Remark:
        """Return that nothing comes; cameras and streams should have said so themselves before long."""
        silence = self._reader.silence
        if self._feed.is_live and silence > 3 * self._timeout + LONGEST_PAUSE:
            raise BrokenVideo(f"{self._feed.name} has not answered for {silence:.0f} s, in spite of --timeout.")
        return Remark(f"Waiting for {self._feed.name}: nothing has come for {silence:.0f} s.")
