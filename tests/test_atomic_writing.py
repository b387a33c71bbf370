"""Files are written as a whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from peft_aim.card import write_card
from peft_aim.config import AIMConfig
from peft_aim.files import write_atomically


def fail_half_way(path: Path) -> None:
    path.write_text("ha")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path):
    path = tmp_path / "report.json"
    write_atomically(path, "whole")
    with pytest.raises(OSError, match=r"No space left on device: '.*/report.json'"):
        write_atomically(path, fail_half_way)
    assert path.read_text() == "whole" and [*tmp_path.iterdir()] == [path]


def test_a_file_that_cannot_be_written_is_not_there(tmp_path):
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "report.json", fail_half_way)
    assert [*tmp_path.iterdir()] == []


def test_names_that_utf_8_cannot_encode_are_escaped(tmp_path):
    write_atomically(tmp_path / "a", "caf\udce9 à")
    assert (tmp_path / "a").read_text("utf-8") == r"caf\udce9 à"


def test_an_empty_model_card_is_replaced(tmp_path):
    """A full disk leaves one where PEFT writes its own, which does not make it hand-written."""
    (tmp_path / "README.md").write_text("")
    write_card(AIMConfig(num_frames=4).to_dict(), tmp_path)
    assert "to clips of 4 frames" in (tmp_path / "README.md").read_text()
