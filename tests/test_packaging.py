"""The package as such: what it needs, and that PEFT knows it."""

from __future__ import annotations

import ast
import importlib.metadata
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
    allowed |= {"accelerate", "huggingface_hub"}  # which PEFT requires
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
