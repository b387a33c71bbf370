"""Read tables, with a header or as rows "path, label", with any of the usual separators."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft_aim.video.data.listing.columns import chosen, is_header, is_header_with_spaces, named
from peft_aim.video.data.listing.contents import Contents, Row, checked, label_text, split_name
from peft_aim.video.data.listing.files import Files, is_video
from peft_aim.video.data.listing.lists import VIDEO_AND_LABEL
from peft_aim.video.data.listing.spans import TIMES, span_columns, span_of, trimmed_names
from peft_aim.video.data.listing.text import data_lines, is_comment

SEPARATORS = "\t;|,"


def read_table(source: Path, text: str, files: Files) -> Contents | None:
    """Read a table; None if the file is none.

    Raises:
        ValueError: If a column is missing or a row cannot be read.
    """
    _, first = next(data_lines(text), (0, ""))
    separator = next((mark for mark in SEPARATORS if is_header(_cells(first, mark))), None)
    if separator is None and is_header_with_spaces(first):
        separator = " "
    if separator:
        (_, columns), *rows = _rows(source, text, separator)
        columns = [named(column) for column in columns]
    elif separator := _separator_without_header(first, text):
        columns, rows = ["path", "label"], list(_rows(source, text, separator))
        if _are_unknown_columns(rows, files):
            columns = rows[0][1]
    else:
        return None
    return of_rows(source, columns, (_named_cells(source, columns, row, separator) for row in rows))


def of_rows(source: Path, columns: Sequence[str], rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Contents:
    """Read rows with named cells.

    Args:
        source: The file they are from.
        columns: Names of the columns, in lower case.
        rows: Where each row is, for errors, and its cells by column.

    Raises:
        ValueError: If no column has paths or labels, or a cell is empty or cannot be read.
    """
    rows = list(rows)
    path, label, split = chosen(columns, lambda column: (row[column] for _, row in rows), source)
    needed, times, found = [path, label, *([split] if split else [])], span_columns(columns), []
    for where, row in rows:
        row = {**row, label: label_text(row[label])}
        for column in needed:
            if not isinstance(row[column], str):
                raise ValueError(f"{where} has {row[column]!r} as {column}. Write one text or number.")
            if not row[column]:
                raise ValueError(f"{where} has no {column}: {dict(row)}. Fill in {', '.join(needed)}.")
        splits = (split_name(row[split]),) if split else ()
        one = Row((row[path],), checked(row[label], where), splits, (row[split], *splits) if split else ())
        if times:
            one.span = span_of(row, times, where)
            one.trimmed = trimmed_names(row[path], one.span) if times == TIMES else ()
        found.append(one)
    form = _form(label, split, found)
    return Contents(found, f"{form}, {' and '.join(times)} as segment" if times and times != TIMES else form)


def _are_unknown_columns(rows: list[tuple[int, list[str]]], files: Files) -> bool:
    """Whether the first row names columns as nobody else does, since only the second one names a video."""
    (_, first), (_, second) = (rows * 2)[:2]
    return not any(map(is_video, first)) and any(map(is_video, second)) and files.find(first[:1]) is None


def _separator_without_header(line: str, text: str) -> str | None:
    """Return what separates a path and its label; None if only spaces do, at least in some lines."""
    if VIDEO_AND_LABEL.fullmatch(line) and not all("\t" in other for _, other in data_lines(text)):
        return None
    found = []
    for mark in SEPARATORS:
        path, *others = _cells(line, mark) or [""]
        if others and (mark != "," or is_video(path) or len(path.split()) == 1):
            found.append((not is_video(path), line.index(mark) if mark in ",|" else 0, mark))
    return min(found)[-1] if found else None  # "," and "|" may be in labels: that after a video counts, or the first


def _cells(line: str, separator: str) -> list[str]:
    row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    return [cell.strip() for cell in row]


def _rows(source: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over line numbers and cells, without blank lines and comments."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not is_comment(cells[0]):
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of {source} cannot be parsed: {error}. Correct it.") from None


def _named_cells(
    source: Path, columns: Sequence[str], row: tuple[int, list[str]], separator: str
) -> tuple[str, dict[str, str]]:
    where, cells = f"Line {row[0]} of {source}", row[1]
    while len(cells) > len(columns) and not cells[-1]:  # spreadsheets write empty cells
        cells.pop()
    if len(cells) != len(columns):
        advice = "Fill in all cells."
        if len(cells) > len(columns):
            advice = f"Put cells that contain {separator!r} in double quotes, or name all columns in a first line."
        raise ValueError(
            f"{where} is {separator.join(cells)!r}, with {len(cells)} cells for the {len(columns)} columns "
            f"{', '.join(columns)}. {advice}"
        )
    return where, dict(zip(columns, cells, strict=True))


def _form(label: str, split: str | None, rows: list[Row]) -> str:
    form = f"column {label!r} as label"
    if split is None:
        return form
    counts = Counter(row.splits[0] for row in rows)
    return f"{form}, {split!r} as split: {', '.join(f'{name} {count}' for name, count in counts.items())}"
