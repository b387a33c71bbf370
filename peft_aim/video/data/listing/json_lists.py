"""Read JSON: Something-Something's lists of videos, lists of objects, and mappings of paths to labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft_aim.video.data.listing.columns import named
from peft_aim.video.data.listing.contents import Contents, Row, checked
from peft_aim.video.data.listing.files import Files, is_ignored, nfc
from peft_aim.video.data.listing.tables import of_rows
from peft_aim.video.data.listing.text import read_text

FORMS = '[{"id": ..., "template": ...}, ...] as in Something-Something, or {"path": "label", ...}'


def read_json(source: Path, text: str, files: Files) -> Contents | None:
    """Read a JSON file; None if the file is none.

    ``validation.json`` or ``val.json`` beside a ``train.json`` has the videos of its val split.

    Raises:
        ValueError: If it has another form.
    """
    is_json = source.suffix.lower() == ".json"
    if not (is_json or text.startswith(("[", "{"))):
        return None
    try:
        found = _parsed(source, text)
    except ValueError:
        if is_json:
            raise
        return None  # a list whose first path begins with a bracket
    if isinstance(found, dict) and all(isinstance(label, str | int) for label in found.values()):
        rows = [Row((path,), checked(str(label), f"{path!r} in {source}")) for path, label in found.items()]
        contents = Contents(rows, "a mapping of paths to labels")
    elif isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        contents = _of_entries(source, found)
    else:
        raise ValueError(f"{source} has neither of the forms {FORMS}. Write it like one of them.")
    contents.beside.update(_validation(source))
    return contents


def _parsed(source: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not valid JSON: {error}. Correct it.") from None


def _of_entries(source: Path, entries: list[dict[str, Any]]) -> Contents:
    if entries and all("template" in entry and "id" in entry for entry in entries):
        return _something(source, entries)
    columns = {named(key): None for entry in entries for key in entry}
    cells = (
        (f"Entry {number} of {source}", {**dict.fromkeys(columns, ""), **_texts(entry)})
        for number, entry in enumerate(entries, 1)
    )
    return of_rows(source, [*columns], cells)


def _texts(entry: dict[str, Any]) -> dict[str, str]:
    return {named(key): "" if value is None else str(value).strip() for key, value in entry.items()}


def _something(source: Path, entries: list[dict[str, Any]]) -> Contents:
    """Read Something-Something's list: the class of a video is its template without brackets."""
    labels = next(iter(sorted(path for path in source.parent.glob("*labels.json") if not is_ignored(path))), None)
    classes, rows = _classes(labels) if labels else None, []
    for number, entry in enumerate(entries, 1):
        label = nfc(str(entry["template"]).replace("[", "").replace("]", ""))
        if classes is not None and label not in classes:
            raise ValueError(
                f"Entry {number} of {source} has the template {entry['template']!r}, which is not one of the "
                f"{len(classes)} classes of {labels}. Correct one of the two files."
            )
        rows.append(Row((str(entry["id"]),), label))
    form = f"Something-Something's templates as labels{f', classes of {labels.name}' if labels else ''}"
    return Contents(rows, form, [*classes] if classes else None)


def _classes(labels: Path) -> dict[str, None]:
    """Return the class names in the order of their indices."""
    indices = _parsed(labels, read_text(labels))
    if not isinstance(indices, dict) or {*map(str, indices.values())} != {*map(str, range(len(indices)))}:
        raise ValueError(f'{labels} has not the form {{"class": "0", ...}}, with all indices from 0. Correct it.')
    return {nfc(name): None for name in sorted(indices, key=lambda name: int(indices[name]))}


def _validation(source: Path) -> dict[str, Path]:
    for name in ("validation", "val"):
        path = source.with_name(source.name.replace("train", name))
        if path != source and path.is_file():
            return {"val": path}
    return {}
