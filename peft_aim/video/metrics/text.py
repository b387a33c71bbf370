"""Names of classes in one line."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""Return a name in one line: line breaks and other control characters as escapes.

    Example:
        >>> printable("réception\n")
        'réception\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
