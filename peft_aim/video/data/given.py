"""Find videos that need no labels: files, URLs, folders of videos, and all that labeled videos come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft_aim.video.data.decode import is_url
from peft_aim.video.data.listing import Sample, VideoSource, is_folder_of_frames, is_video_file, videos_below


def given_videos(
    videos: str | Path | Sequence[str | Path], split: str | None = None, root: str | Path | None = None
) -> list[Sample]:
    """Find the videos that a user gives, in that order.

    Args:
        videos: One or several of: a video file, a URL, a folder of images, which is a video, too, a folder of videos,
            with those in its subfolders, or a list or table, see :func:`peft_aim.video.data.listing.find_videos`.
        split: Split of folders, then ``<split>/<class>/*``, of lists and tables; None uses all videos.
        root: Folder that the paths in lists and tables are relative to.

    Returns:
        The videos, with the label "" where none is known.

    Raises:
        ValueError: If a file or folder does not exist, or has no videos; if a split of a single video is wanted.
    """
    several = [videos] if isinstance(videos, (str, Path)) else videos
    return [video for one in several for video in _videos(one, split, root)]


def _videos(given: str | Path, split: str | None, root: str | Path | None) -> list[Sample]:
    path, is_stream = Path(given), is_url(str(given))
    if is_stream or (path.is_file() and is_video_file(path)) or is_folder_of_frames(path):
        if split is not None:
            raise ValueError(f"{given} is a video, which has no split {split!r}. Leave the split out.")
        return [Sample(given if is_stream else path, "")]  # a Path would lose one of the slashes
    if not path.exists():
        raise ValueError(f"{given} does not exist. Give videos, a folder of videos, or a list or table of them.")
    if path.is_file() or split is not None:
        return VideoSource(path, root).listing(split).videos
    return [Sample(video, "") for video in videos_below(path)]
