"""Where live video comes from: a file, a camera, standard input, or a URL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Event

import av

from peft_aim.video.data import BrokenVideo
from peft_aim.video.data.decode import ANY_TITLE, best_stream, is_url
from peft_aim.video.live.growing import GrowingFile

CAMERAS = "/dev/video"


@dataclass(frozen=True)
class Feed:
    """A source of video.

    Attributes:
        name: Its name, for messages.
        kind: "file", "pipe", "camera" or "url".
        path: What to open: a path, a URL, or the descriptor of standard input.
    """

    name: str
    kind: str
    path: str | int

    @classmethod
    def find(cls, source: str) -> Feed:
        """Return the source that a text stands for.

        Args:
            source: The path of a file or a pipe, a camera (``0`` or ``/dev/video0``), ``-`` for standard input, or a
                URL that FFmpeg takes.

        Raises:
            ValueError: If there is no such file or camera.

        Example:
            >>> Feed.find("tcp://127.0.0.1:9000").kind
            'url'
        """
        path = Path(source)
        if source == "-":
            return cls._standard_input()
        if source.isdecimal() or source.startswith(CAMERAS):
            return cls._camera(source)
        if is_url(source):
            return cls(source, "url", source)
        if not path.exists():
            raise ValueError(
                f"There is no file {source}. Give a video file, a camera (0 or {CAMERAS}0), a URL such as "
                "rtsp://HOST/PATH, or - for standard input."
            )
        if path.is_dir():
            raise ValueError(f"{source} is a folder. Give a video; peft-aim predict also takes folders of images.")
        return cls(source, "pipe" if path.is_fifo() else "file", source)

    @classmethod
    def _standard_input(cls) -> Feed:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError(
                "Standard input is a terminal. Pipe a video into it, as in: ffmpeg -i ... -f mpegts - | peft-aim "
                "watch ADAPTER -"
            )
        return cls("standard input", "pipe", 0)

    @classmethod
    def _camera(cls, source: str) -> Feed:
        if not sys.platform.startswith("linux"):
            raise ValueError(
                f"{source} is read as a camera, which works on Linux only. Let ffmpeg read it, and pipe it: "
                "ffmpeg ... -f mpegts - | peft-aim watch ADAPTER -"
            )
        device = Path(f"{CAMERAS}{source}" if source.isdecimal() else source)
        if not device.exists():
            found = sorted(map(str, device.parent.glob("video*")))
            others = f"The cameras here are {', '.join(found)}." if found else f"No camera is connected ({CAMERAS}*)."
            file = f" For a file of this name, give ./{source}." if Path(source).exists() else ""
            raise ValueError(f"There is no camera {device}. {others}{file}")
        return cls(str(device), "camera", str(device))

    @property
    def is_live(self) -> bool:
        """Whether it runs in real time by itself, and comes back after breaking off."""
        return self.kind in ("camera", "url")

    @contextmanager
    def opened(self, timeout: float, stop: Event, say: Callable[[str], None]) -> Iterator[av.VideoStream]:
        """Open the source and return its video stream.

        Args:
            timeout: Seconds to wait for an answer, and for each packet; for a growing file, see :class:`GrowingFile`.
            stop: Set to stop waiting.
            say: Called with what to tell the user.

        Raises:
            BrokenVideo: If it does not answer, is not a video or has no video stream.
        """
        with ExitStack() as stack:
            try:
                container = stack.enter_context(self._container(stack, timeout, stop, say))
            except (av.error.FFmpegError, OSError) as error:
                reason = self.reason(error, timeout)
                raise BrokenVideo(f"{self.name} cannot be opened as a video: {reason}.") from error
            stream = best_stream(container)
            if stream is None:
                raise BrokenVideo(f"{self.name} has no video stream.")
            yield stream

    def _container(
        self, stack: ExitStack, timeout: float, stop: Event, say: Callable[[str], None]
    ) -> av.container.InputContainer:
        if self.kind == "file":
            return stack.enter_context(closing(GrowingFile(self.path, timeout, stop))).container(say)
        if self.kind == "pipe":  # unbuffered: the lock of sys.stdin would be in the way when the program ends
            pipe = stack.enter_context(FileIO(self.path, closefd=self.path != 0))
            return av.open(pipe, **ANY_TITLE)
        device = {"format": "v4l2"} if self.kind == "camera" else {}
        return av.open(self.path, timeout=(timeout, timeout), **device, **ANY_TITLE)

    def reason(self, error: Exception, timeout: float) -> str:
        """Return why the source cannot be read, in words."""
        if isinstance(error, av.error.ExitError):
            return f"nothing came for {timeout:g} s (--timeout)"
        return getattr(error, "strerror", None) or str(error)
