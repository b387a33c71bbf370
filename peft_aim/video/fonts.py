"""Fonts for pictures with names in any script: matplotlib's default font, and installed ones for what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font


@contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[bool]:
    r"""Draw and save a figure with fonts that have all characters of some texts.

    Yields:
        Whether there are such fonts; if not, the texts must not be drawn.

    Example:
        >>> with fonts_for(["left", "à gauche"]) as can_be_drawn:
        ...     can_be_drawn
        True
        >>> with fonts_for(["\U0010fffd"]) as can_be_drawn:  # a private character
        ...     can_be_drawn
        False
    """
    default = matplotlib.rcParams["font.family"]
    wanted = {ord(character) for text in texts for character in text} - {ord("\n")}
    families, wanted = [], wanted - _characters(tuple(default))
    while wanted:
        best = max(_installed(), key=lambda family: len(wanted & _characters((family,))), default=None)
        if best is None or not wanted & _characters((best,)):
            break
        families.append(best)
        wanted -= _characters((best,))
    with matplotlib.rc_context({"font.family": [*default, *families]}):
        yield not wanted


@cache
def _installed() -> list[str]:
    """Return families of upright fonts of normal weight, without matplotlib's own, some of which only draw boxes."""
    own = matplotlib.get_data_path()
    upright = [font for font in fontManager.ttflist if font.weight == 400 and font.style == "normal"]
    return sorted({font.name for font in upright if not font.fname.startswith(own)})


@cache
def _characters(family: tuple[str, ...]) -> frozenset[int]:
    """Return the characters of the font that is found for families; none if it cannot be scaled, as bitmap fonts."""
    try:
        font = get_font(findfont(FontProperties(family=family)))
        font.set_size(10, 100)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap())
