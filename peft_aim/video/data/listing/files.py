"""Which files are videos, which are ignored, and which file a path or id in a list stands for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

# What FFmpeg takes for a video by its suffix: containers, and streams without one.
_CONTAINERS = (
    "mp4 m4v mov qt 3gp 3g2 3gpp f4v mj2 mkv mk3d webm avi divx xvid wmv asf wtv flv amv swf mpg mpeg mpe mpv m1v m2v "
    "m2p vob mod tod ts mts m2ts m2t trp tp ogv ogg ogm rm rmvb dv dif mxf gxf nut nsv gif webp apng fli flc"
)
_STREAMS = "mjpg mjpeg h261 h263 h264 264 avc h265 265 hevc h266 266 vvc ivf y4m vp8 vp9 av1 obu"
SUFFIXES = frozenset(f".{suffix}" for suffix in f"{_CONTAINERS} {_STREAMS}".split())
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))
# What operating systems and file servers leave behind in folders; names with a leading dot are ignored, too.
LEFTOVERS = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)


def nfc(text: str) -> str:
    """Return text with composed characters; macOS writes "é" in file names as two characters."""
    return unicodedata.normalize("NFC", text)


def is_video(path: str | Path) -> bool:
    """Whether a file is a video, by its suffix.

    Example:
        >>> is_video("clips/GOPR0001.MP4"), is_video("readme.txt")
        (True, False)
    """
    return os.path.splitext(path)[1].lower() in SUFFIXES


def is_image(path: str | Path) -> bool:
    """Whether a file is an image, by its suffix."""
    return os.path.splitext(path)[1].lower() in IMAGES


def is_ignored(path: Path) -> bool:
    """Whether a file or folder is hidden, or a leftover of an operating system.

    Example:
        >>> is_ignored(Path("run/._a.mp4")), is_ignored(Path("__MACOSX")), is_ignored(Path("run/a.mp4"))
        (True, True, False)
    """
    return path.name.startswith(".") or path.name.lower() in LEFTOVERS


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_image(path) and not is_ignored(path))


def is_still_webp(path: Path) -> bool:
    """Whether a file is a WebP image without animation: a frame rather than a video."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[8:12] == b"WEBP" and not (head[12:16] == b"VP8X" and head[20] & 2)


class Files:
    """The files below a folder, found by path or id; each folder is listed only once.

    Args:
        root: Folder that paths and ids are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents = cache(self._contents)  # a cache of the method itself would keep all instances
        self._on_disk = cache(self._on_disk)
        self._names = cache(self._names)

    def find(self, names: Iterable[str], folders: Iterable[str] = ("",)) -> Path | None:
        """Return the first file or folder of frames that exists, None if there is none.

        Args:
            names: Paths or ids to try. An id is the name of a video without its suffix.
            folders: Folders below the root to try them in.
        """
        parts = [(parent, nfc(name)) for parent, name in map(os.path.split, names)]
        for folder in folders:
            for parent, name in parts:
                directory, by_name, by_id = self._contents(folder, parent)
                if (actual := by_name.get(name) or by_id.get(name)) is not None:
                    return Path(directory, actual)
        return None

    def _contents(self, folder: str, parent: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return a folder below the root, and the names in it by themselves and, of videos, without their suffixes."""
        directory = self._on_disk(os.path.join(self.root, folder, parent).rstrip("/") or "/")
        names = self._names(directory)
        # Of "a.avi" and "a.mp4", "a" is the first.
        ids = {nfc(os.path.splitext(name)[0]): name for name in sorted(names.values(), reverse=True) if is_video(name)}
        return directory, names, ids

    def _on_disk(self, folder: str) -> str:
        """Return a folder as it is written on disk, where the composition of characters may be another one."""
        parent, name = os.path.split(folder)
        if not name or os.path.isdir(folder):
            return folder
        parent = self._on_disk(parent)
        return os.path.join(parent, self._names(parent).get(nfc(name), name))

    def _names(self, folder: str) -> dict[str, str]:
        """Return the names in a folder, by their composed form."""
        with suppress(OSError, ValueError):  # there is no such folder, or none can have this name
            return {nfc(name): name for name in os.listdir(folder or ".")}
        return {}
