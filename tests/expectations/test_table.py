"""Checks the table."""

from __future__ import annotations

import ast
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

from expectations.table import TABLE

TESTS = Path(__file__).parent.parent
ROWS = [row for rows in TABLE.values() for row in rows]
COVERING = {item for _, _, *covered in ROWS for item in covered if item.startswith("test_")}


def names_of_tests(folder: Path) -> list[str]:
    """Return the names of the test functions in a folder without importing any."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("test_*.py")]
    nodes = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [node.name for node in nodes if node.name.startswith("test_")]


def test_table_names_existing_tests():
    count = Counter(names_of_tests(TESTS))
    missing = [f"{test}: did you mean {get_close_matches(test, count)}?" for test in sorted(COVERING - count.keys())]
    assert not missing, "\n".join(missing)
    assert [test for test in sorted(COVERING) if count[test] > 1] == []


def test_table_has_a_test_or_a_reason_in_every_row():
    for name, law, *covered in ROWS:
        assert law and covered, name
        for item in covered:
            assert item in COVERING or (" " in item and item.endswith(".")), f"{name}: {item!r}"


def test_table_has_no_duplicates():
    for file, rows in TABLE.items():
        names = [name for name, *_ in rows]
        assert len(names) == len(set(names)), file
    assert all(len(covered) == len(set(covered)) for _, _, *covered in ROWS)


def test_table_names_all_tests_of_this_folder():
    here = {name for name in names_of_tests(Path(__file__).parent) if not name.startswith("test_table_")}
    assert here - COVERING == set()
