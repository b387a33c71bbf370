"""Open a video: by its index if that shows the same as plain decoding, else by plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from peft_aim.video.data.decode.container import opened
from peft_aim.video.data.decode.folder import FrameFolder
from peft_aim.video.data.decode.indexed import IndexedVideo
from peft_aim.video.data.decode.plain import PlainVideo
from peft_aim.video.data.decode.video import Video


@contextmanager
def open_video(path: str | PathLike, fps: float = 12.0) -> Iterator[Video]:
    """Open a video and find its frames.

    A video has the frames that ``ffmpeg -i PATH -vsync 0`` writes: those that plain decoding shows, upright, without
    those that an edit list hides.

    Args:
        path: The video file, its URL, or a folder of images, the frames in the order of their names. A truncated file
            has the frames that are left.
        fps: Frames per second of a folder of images.

    Raises:
        BrokenVideo: If it is not a video, or has no frames.

    Example:
        >>> with open_video("a.mp4") as video:  # doctest: +SKIP
        ...     frames = video.read([0, len(video.seconds) - 1])  # (2, 3, H, W)
    """
    if Path(path).is_dir():
        yield FrameFolder(path, fps)
        return
    with opened(path) as stream:
        video = IndexedVideo.of(path, stream)
        if video is not None:
            yield video
            return
    yield PlainVideo(path)
