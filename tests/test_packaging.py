"""The package as such: what it needs, and that PEFT knows it."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path

import peft
import pytest

import peft_aim
from peft_aim.peft_type import add_peft_type, register

PACKAGE = Path(peft_aim.__file__).parent
CORE = sorted(path for path in PACKAGE.rglob("*.py") if not {"video", "commands"} & {*path.parts})


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_needs_torch_peft_transformers_and_safetensors_alone(path):
    allowed = {"torch", "peft", "transformers", "safetensors", "peft_aim", *sys.stdlib_module_names}
    allowed |= {"huggingface_hub"} if path.name == "card.py" else set()  # PEFT's own means for model cards
    assert {name.split(".")[0] for name in imports(path)} <= allowed
    assert not any(name.startswith("peft_aim.video") for name in imports(path))


def test_the_core_imports_where_nothing_else_is_installed():
    code = """
import sys
for name in ("timm", "torchvision", "open_clip", "av", "matplotlib", "sklearn"):
    sys.modules[name] = None  # as if it were not installed
import peft_aim.__main__
sys.exit(peft_aim.__main__.main(["demo"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install 'peft-aim[video]'" in result.stderr


def test_peft_knows_the_method():
    assert peft.PeftType.AIM == "AIM" and peft.PeftType("AIM") is peft.PeftType.AIM
    assert list(peft.PeftType)[-1] is peft.PeftType.AIM
    assert pickle.loads(pickle.dumps(peft.PeftType.AIM)) is peft.PeftType.AIM
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[peft.PeftType.AIM] == "aim_"
    register(peft_aim.AIMConfig, peft_aim.AIMModel)  # once more, as after a reload


def test_another_owner_of_the_name_is_an_import_error(monkeypatch):
    monkeypatch.setattr(peft.PeftType.AIM, "owner", "somebody.else")
    with pytest.raises(ImportError, match="PeftType.AIM already exists"):
        add_peft_type()


def test_version():
    assert importlib.metadata.version("peft-aim") == peft_aim.__version__
    assert (PACKAGE / "py.typed").is_file()


def test_readme_names_what_is_there():
    readme = (PACKAGE.parent / "README.md").read_text()
    assert 'pip install -e ".[video]" && peft-aim demo' in readme
    assert 'pip install -e ".[test]" && pytest' in readme


def test_readme_quotes_what_was_measured():
    root = PACKAGE.parent
    rows = json.loads((root / "benchmarks" / "results" / "demo.json").read_text())["rows"]
    readme = (root / "README.md").read_text()
    for task in {row["task"] for row in rows}:
        chance, frozen, aim = (row for row in rows if row["task"] == task)
        scores = " | ".join(f"{row['top-1']:.1%}" for row in (chance, frozen, aim))
        assert f"| {scores} | {aim['trained parameters']:,} | {aim['file bytes'] / 1000:.0f} kB |" in readme
        assert aim["top-1"] >= 0.95 and frozen["top-1"] <= chance["top-1"] + 0.15


def test_readme_quotes_what_token_mixers_learned():
    root = PACKAGE.parent
    rows = json.loads((root / "benchmarks" / "results" / "token_mixers.json").read_text())["rows"]

    def mean(mixing: str, column: str) -> str:
        values = [row[column] for row in rows if mixing in row["mixing"]]
        assert len(values) == 3
        return f"{sum(values) / 3:.1%}"

    readme = " ".join((root / "README.md").read_text().split())
    assert f"{mean('XCiT', 'with')} and {mean('SwiftFormer', 'with')} on [a task that no sum over frames" in readme
    without = sorted(mean(mixing, "without") for mixing in ("softmax", "XCiT", "SwiftFormer"))
    assert f"has {mean('softmax', 'with')}, and {without[0]} to {without[-1]} without" in readme


@pytest.mark.parametrize("benchmark", ["cost", "accuracy"])
def test_readmes_show_the_tables_of_the_records(benchmark):
    root = PACKAGE.parent
    tables = importlib.import_module(f"benchmarks.{benchmark}.tables")
    found = json.loads((root / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    assert tables.front_table(found) in (root / "README.md").read_text()
    assert tables.page(found) in (root / "benchmarks" / "README.md").read_text()
