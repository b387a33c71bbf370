"""The rooms of the package and the order in which they build on each other, read from the imports alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "peft_aim"

# From the ground up: a file may import what comes before it, and files of its own room.
FLOORS = [
    *("version", "peft_type", "files", "card", "tracing", "recompute", "config"),
    *("attention", "backbone", "clips", "layers"),
    *("saving", "targets", "summary", "model", "streaming"),
    *("__init__", "convert"),
    *("video.problem_type", "video.recipe", "video.processes"),
    *("video.data.listing", "video.data.decode", "video.data"),
    *("video.metrics", "video", "video.training", "video.demo", "video.live", "video.exporting", "video.attribution"),
    *("commands", "__main__"),
]
# Their modules are the interface: each is a command, or needs packages that others don't.
OPEN_ROOMS = ("video", "video.live", "commands")


def module(path: Path, package: Path) -> str:
    """Name a file from inside of the package, "tracing.calls" or "tracing.__init__"."""
    return ".".join(path.relative_to(package).with_suffix("").parts)


def floor(name: str) -> str:
    """Return the room of a module, or the module itself if it stands on a floor of its own."""
    parts = name.split(".")
    return next(f for f in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if f in FLOORS)


def imports(path: Path, package: Path) -> list[str]:
    """Return which modules of the package a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import, which hides where it comes from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found += [name for name in names if name.split(".")[0] == "peft_aim"]
    return [resolved(name, package) for name in found]


def resolved(name: str, package: Path) -> str:
    """Return the module that "peft_aim.tracing.Call" comes from."""
    parts = name.split(".")[1:]
    for n in range(len(parts), -1, -1):
        path = package.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file() and n:
            return module(path.with_suffix(".py"), package)
        if (path / "__init__.py").is_file():
            return module(path / "__init__.py", package)
    raise AssertionError(f"{name} is imported from nowhere")


def faults(package: Path) -> list[str]:
    """Return what is wrong with the imports, each with the two files."""
    found, graph = [], {}
    for path in sorted(package.rglob("*.py")):
        name = module(path, package)
        for other in imports(path, package):
            here, there = floor(name), floor(other)
            pair = f"{name.replace('.', '/')}.py imports {other.replace('.', '/')}.py"
            if FLOORS.index(there) > FLOORS.index(here):
                found.append(f"{pair}, which is built on top of it")
            elif here == there:
                graph.setdefault(name, set()).add(other)
                if other.endswith("__init__") and "." in other:
                    found.append(f"{pair}, the door of its own room")
            elif "." in other and not other.endswith("__init__") and other.rpartition(".")[0] not in OPEN_ROOMS:
                found.append(f"{pair}, past the door of that room")
    return found + circles(graph)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return files of one room that import each other in a circle."""
    left = {name: needs for name, needs in graph.items() if not name.endswith("__init__")}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            return [f"these import each other in a circle: {', '.join(sorted(left))}"]
        for name in free:
            del left[name]
    return []


def test_rooms_build_on_each_other_in_one_direction():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (
            {"tracing/calls.py": "from peft_aim.model import AIMModel", "model.py": ""},
            "tracing/calls.py imports model.py, which is built on top of it",
        ),
        (
            {"model.py": "def f():\n    from peft_aim.__main__ import main", "__main__.py": ""},
            "model.py imports __main__.py, which is built on top of it",
        ),
        (
            {"model.py": "from peft_aim.tracing.calls import trace", "tracing/calls.py": ""},
            "model.py imports tracing/calls.py, past the door of that room",
        ),
        (
            {"clips/a.py": "import peft_aim.clips.b", "clips/b.py": "from peft_aim.clips import a"},
            "these import each other in a circle: clips.a, clips.b",
        ),
        (
            {"clips/a.py": "from peft_aim.clips import loss"},
            "clips/a.py imports clips/__init__.py, the door of its own room",
        ),
    ],
)
def test_a_violation_names_both_files(tmp_path, files, fault):
    package = tmp_path / "peft_aim"
    for room in ("tracing", "clips"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    for name, text in files.items():
        (package / name).write_text(text)
    assert faults(package) == [fault]


def test_the_top_level_has_ten_files_at_the_most():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_relative_imports_are_found(tmp_path):
    (tmp_path / "model.py").write_text("from .config import AIMConfig")
    with pytest.raises(AssertionError, match=r"model.py has a relative import"):
        faults(tmp_path)


def test_every_room_says_in_at_most_three_lines_what_it_is_for():
    for door in [*PACKAGE.rglob("__init__.py"), *PACKAGE.with_name("benchmarks").rglob("__init__.py")]:
        first, *others = ast.get_docstring(ast.parse(door.read_text())).splitlines()
        assert first.endswith((".", "?")) or first.endswith("``.") or others, door
        assert len(others) <= 2, door


def test_a_door_shows_all_that_is_behind_it():
    """What a door imports is what it offers."""
    for door in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(door.read_text())
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        offered = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
        assert {*offered[0]} <= imported if offered else not imported, door


def test_no_file_is_large():
    assert max(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")) <= 350
