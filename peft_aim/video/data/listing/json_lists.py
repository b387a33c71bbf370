"""Read JSON: Something-Something's lists of videos, lists of objects, also one per line, and mappings to labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft_aim.video.data.listing.columns import named
from peft_aim.video.data.listing.contents import SYNONYMS, TEST, Contents, split_name
from peft_aim.video.data.listing.files import Files, is_ignored, nfc
from peft_aim.video.data.listing.tables import of_rows
from peft_aim.video.data.listing.text import data_lines, read_text

JSON_LINES = (".jsonl", ".ndjson")
EXAMPLES = '[{"id": ..., "template": ...}, ...] as in Something-Something, or {"path": "label", ...}'


def read_json(source: Path, text: str, files: Files) -> Contents | None:
    """Read a JSON file, or a file with a JSON object per line; None if the file is neither.

    The videos of ``train.json`` are the train split, and those of ``validation.json`` beside it the val split, unless
    the entries have splits themselves.

    Raises:
        ValueError: If it has another form.
    """
    is_json = source.suffix.lower() in (".json", *JSON_LINES)
    if not (is_json or text.startswith(("[", "{"))):
        return None
    try:
        found = _lines(source, text) if _has_lines(source, text) else _parsed(text, f"{source}")
    except ValueError:
        if is_json:
            raise
        return None  # a list whose first path begins with a bracket
    if isinstance(found, dict) and not any(isinstance(label, dict) for label in found.values()):
        contents = _of_mapping(source, found)
    elif isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        contents = _of_entries(source, found)
    else:
        raise ValueError(f"{source} has neither of the forms {EXAMPLES}. Write it like one of them.")
    return contents if contents.splits else _with_split(source, contents)


def _has_lines(source: Path, text: str) -> bool:
    """Whether each line is JSON by itself."""
    if source.suffix.lower() in JSON_LINES:
        return True
    first, _, others = text.strip().partition("\n")
    return first.startswith("{") and first.endswith("}") and others.lstrip().startswith("{")


def _lines(source: Path, text: str) -> list[Any]:
    return [_parsed(line, f"Line {number} of {source}") for number, line in data_lines(text)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}. Correct it.") from None


def _of_mapping(source: Path, labels: dict[str, Any]) -> Contents:
    cells = ((f"{path!r} in {source}", {"path": path, "label": _text(label)}) for path, label in labels.items())
    return replace(of_rows(source, ["path", "label"], cells), form="a mapping of paths to labels")


def _of_entries(source: Path, entries: list[dict[str, Any]]) -> Contents:
    if entries and all("template" in entry and "id" in entry for entry in entries):
        return _something(source, entries)
    columns = {named(key): None for entry in entries for key in entry}
    cells = (
        (where, {**dict.fromkeys(columns, ""), **{named(key): _text(value) for key, value in entry.items()}})
        for where, entry in _numbered(source, entries)
    )
    return of_rows(source, [*columns], cells)


def _something(source: Path, entries: list[dict[str, Any]]) -> Contents:
    """Read Something-Something's list: the class of a video is its template without brackets."""
    labels = next(iter(sorted(path for path in source.parent.glob("*labels.json") if not is_ignored(path))), None)
    classes = _classes(labels) if labels else None
    cells = (
        (where, {"id": _text(entry["id"]), "label": _text(entry["template"])})
        for where, entry in _numbered(source, entries)
    )
    rows = of_rows(source, ["id", "label"], cells).rows
    for (where, entry), row in zip(_numbered(source, entries), rows, strict=True):
        row.label = nfc(row.label.replace("[", "").replace("]", ""))
        if classes is not None and row.label not in classes:
            raise ValueError(
                f"{where} has the template {entry['template']!r}, which is not one of the {len(classes)} classes of "
                f"{labels}. Correct one of the two files."
            )
    form = f"Something-Something's templates as labels{f', classes of {labels.name}' if labels else ''}"
    return Contents(rows, form, [*classes] if classes else None)


def _numbered(source: Path, entries: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"Entry {number} of {source}", entry) for number, entry in enumerate(entries, 1))


def _text(value: Any) -> Any:
    """Return texts and whole numbers as text, empty for null, and what can be no path as it is."""
    if value is None:
        return ""
    return str(value).strip() if type(value) in (str, int) else value


def _classes(labels: Path) -> dict[str, None]:
    """Return the class names in the order of their indices."""
    indices = _parsed(read_text(labels), f"{labels}")
    if not isinstance(indices, dict) or {*map(str, indices.values())} != {*map(str, range(len(indices)))}:
        raise ValueError(f'{labels} has not the form {{"class": "0", ...}}, with all indices from 0. Correct it.')
    return {nfc(name): None for name in sorted(indices, key=lambda name: int(indices[name]))}


def _with_split(source: Path, contents: Contents) -> Contents:
    """Add the split that the name of a file says, and, to a train split, the files of other splits beside it."""
    words = [word for word in re.findall("[A-Za-z]+", source.stem) if split_name(word) in SYNONYMS]
    if len(words) != 1:
        return contents
    split = split_name(words[0])
    rows = [replace(row, splits=TEST if split == "test" else (split,)) for row in contents.rows]
    beside = _beside(source, words[0]) if split == "train" else {}
    return replace(contents, rows=rows, beside=beside)


def _beside(source: Path, word: str) -> dict[str, Path]:
    """Return the files of the other splits, whose names have another word."""
    names = {name: split for split in ("val", "test") for name in (split, *SYNONYMS[split])}
    paths = {source.with_name(source.name.replace(word, name)): split for name, split in names.items()}
    return {split: path for path, split in paths.items() if path.is_file()}
