"""Which files are videos, which are ignored, and which file a path or id in a list stands for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
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
# A WebP file may be either: images_in takes it for an image, and is_video_file looks into it.
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
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_video(path: str | Path) -> bool:
    """Whether a file may be a video, by its suffix.

    Example:
        >>> is_video("clips/GOPR0001.MP4"), is_video("readme.txt")
        (True, False)
    """
    return os.path.splitext(path)[1].lower() in SUFFIXES


def is_image(path: str | Path) -> bool:
    """Whether a file may be an image, by its suffix."""
    return os.path.splitext(path)[1].lower() in IMAGES


def is_video_file(path: Path) -> bool:
    """Whether a file on disk is a video, by its suffix and, if images have it, too, by its first bytes."""
    return is_video(path) and not (is_image(path) and _is_still_webp(path))


def are_frames(files: Sequence[Path]) -> bool:
    """Whether the files of a folder are images, of which some list or description may be beside.

    Of images that could be videos by their suffix, the first is looked into.
    """
    images = [path for path in files if is_image(path)]
    videos = [path for path in files if is_video(path) and not is_image(path)]
    return bool(images) and not videos and not is_video_file(images[0])


def is_ignored(path: str | Path) -> bool:
    """Whether a file or folder is hidden, or a leftover of an operating system.

    Example:
        >>> is_ignored(Path("run/._a.mp4")), is_ignored(Path("__MACOSX")), is_ignored(Path("run/a.mp4"))
        (True, True, False)
    """
    name = os.path.basename(path)
    return name.startswith(".") or name.lower() in LEFTOVERS


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted by name."""
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """Return the names of the images of a folder, sorted."""
    return sorted(name for name in os.listdir(folder) if is_image(name) and not is_ignored(name))


def _is_still_webp(path: Path) -> bool:
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
        self._places = cache(self._places)  # a cache of the method itself would keep all instances
        self._contents = cache(self._contents)
        self._on_disk = cache(self._on_disk)
        self._names = cache(self._names)

    def find(self, names: Iterable[str], folders: tuple[str, ...] = ("",)) -> Path | None:
        """Return the first file or folder of frames that exists, None if there is none.

        Args:
            names: Paths or ids to try. An id is the name of a video without its suffix.
            folders: Folders below the root to try them in.
        """
        parents, names = zip(*(os.path.split(name.rstrip("/")) for name in names), strict=True)
        for which, directory, actual in self._places(folders, parents):
            if (found := actual.get(nfc(names[which]))) is not None:
                return Path(directory, found)
        return None

    def _places(self, folders: tuple[str, ...], parents: tuple[str, ...]) -> list[tuple[int, str, dict[str, str]]]:
        """Return where to look for which name, without folders that have nothing; many videos share these."""
        places = ((i, *self._contents(folder, parent)) for folder in folders for i, parent in enumerate(parents))
        return [place for place in places if place[-1]]

    def _contents(self, folder: str, parent: str) -> tuple[str, dict[str, str]]:
        """Return a folder below the root, and what is in it by name and, if it is a video, without its suffix."""
        directory = self._on_disk(os.path.join(self.root, folder, parent).rstrip("/") or "/")
        names = self._names(directory)
        # Of "a.avi" and "a.mp4", "a" is the first.
        ids = {nfc(os.path.splitext(name)[0]): name for name in sorted(names.values(), reverse=True) if is_video(name)}
        return directory, ids | names

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
