"""Read text files as people have them: with any line ends, in UTF-8 or with a byte order mark."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from peft_aim.video.data.listing.files import is_video


def read_text(source: Path) -> str:
    r"""Read a text file in UTF-8, or in UTF-16 with a byte order mark; its line ends become ``\n``.

    Raises:
        ValueError: If it has another encoding.
    """
    data = source.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"{source} is not valid {name}: {error}. Save it as UTF-8.") from None


def is_comment(line: str) -> bool:
    """Whether a line is a comment, and no video whose name begins with "#", as some of HMDB51 do.

    Example:
        >>> is_comment("# made by hand"), is_comment("#20_Rhythm_clap.avi 1")
        (True, False)
    """
    return line.startswith("#") and not is_video(re.split(r"[\s,;|]", line, maxsplit=1)[0])


def data_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Iterate over the lines with content and their numbers, without blank lines and comments.

    Example:
        >>> list(data_lines("# made by hand\n\na.mp4 run\n"))
        [(3, 'a.mp4 run')]
    """
    for number, line in enumerate(text.split("\n"), 1):
        if (line := line.strip()) and not is_comment(line):
            yield number, line
