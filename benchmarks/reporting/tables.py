"""Puts generated tables into a README, between markers that say where they come from."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reporting.record import RESULTS

HERE = Path(__file__).parent.parent / "README.md"
FRONT = HERE.parent.parent / "README.md"


def insert(name: str, table: str, readme: Path) -> None:
    """Replace the table between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: If the README lacks the markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = readme.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{readme} has no lines {begin} and {end} to put the table between. Add them.")
    head, rest = text.split(begin)
    readme.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def publish(name: str, folder: Path, page: str, front: str) -> None:
    """Put the results' tables into the READMEs, or those of another folder beside its record.

    Args:
        name: Of the benchmark.
        folder: Where its record is.
        page: All tables, for this folder's README.
        front: What the project's README shows.
    """
    if folder.resolve() == RESULTS:
        insert(name, page, HERE)
        insert(name, front, FRONT)
    else:
        (folder / f"{name}.md").write_text(page + "\n")


def headed(names: list[str], lines: list[str]) -> str:
    """Return a table."""
    return "\n".join([line(*names), "|---" * len(names) + "|", *lines])


def line(*cells: object) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(map(str, cells))} |"
