"""Generated tables in the READMEs, between markers that name their benchmark."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reporting.record import RESULTS

HERE = Path(__file__).parent.parent / "README.md"
FRONT = HERE.parent.parent / "README.md"


def insert(name: str, table: str, readme: Path) -> None:
    """Replace the table between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: If the README lacks a marker.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = readme.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{readme} lacks the markers {begin} and {end}. Add both lines where the table belongs.")
    head, rest = text.split(begin)
    readme.write_text(f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def publish(name: str, folder: Path, page: str, front: str | None = None) -> None:
    """Insert a benchmark's tables into the READMEs, or write them next to its record if that is in another folder.

    Args:
        name: Name of the benchmark.
        folder: Folder of its record.
        page: All tables, for the README of the benchmarks.
        front: The table for the project's README, if it has one.
    """
    if folder.resolve() == RESULTS:
        insert(name, page, HERE)
        if front is not None:
            insert(name, front, FRONT)
    else:
        (folder / f"{name}.md").write_text(page + "\n")


def headed(names: list[str], lines: list[str]) -> str:
    """Return a Markdown table."""
    return "\n".join([line(*names), "|---" * len(names) + "|", *lines])


def line(*cells: object) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
