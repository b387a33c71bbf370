"""Puts generated tables into this folder's README, between markers that say where they come from."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parent / "README.md"


def insert(name: str, table: str) -> None:
    """Replace the table between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: If the README lacks the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = README.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{README} has no lines {begin} and {end} to put the table between. Add them.")
    head, rest = text.split(begin)
    README.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}")
