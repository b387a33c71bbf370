"""Names in any script: in pictures with a font that has them, and on any console."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib import font_manager
from matplotlib.axes import Axes
from PIL import Image
from videos import write

from peft_aim.video import fonts
from peft_aim.video.fonts import fonts_for
from peft_aim.video.metrics import Metrics
from peft_aim.video.picture import draw_confusion, draw_strip, row_of

RARE = "\U00012000"  # a cuneiform sign, which the default font lacks


@pytest.fixture
def installed(tmp_path):
    """A font with one more character, among the installed ones."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "private"])
    builder.setupCharacterMap({ord(RARE): "private"})
    builder.setupGlyf({".notdef": Glyph(), "private": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "private": (500, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Private", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "private.ttf")
    before = [*font_manager.fontManager.ttflist]
    font_manager.fontManager.addfont(tmp_path / "private.ttf")
    fonts._installed.cache_clear()
    yield
    font_manager.fontManager.ttflist = before
    fonts._installed.cache_clear()


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """All texts that are drawn beside frames or at the axes."""
    seen: list[str] = []
    text, ticks, label = Axes.text, Axes.set_xticks, Axes.set_xlabel
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: seen.append(s) or text(self, x, y, s, **k))
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, s, **k: seen.append(s) or label(self, s, **k))
    monkeypatch.setattr(
        Axes, "set_xticks", lambda self, t, names=None, **k: seen.extend(names or ()) or ticks(self, t, names, **k)
    )
    return seen


def pictures(folder: Path, name: str) -> None:
    """Draw both pictures, with a class of this name; glyphs that are missing would warn."""
    classes = ["left", name]
    draw_confusion(folder / "confusion.png", Metrics.of(np.eye(2), np.array([0, 1]), classes))
    draw_strip(folder / "strip.png", [row_of(torch.zeros(2, 8, 8, 3), torch.tensor([0.1, 0.9]), classes, label=0)])
    for file in ("confusion.png", "strip.png"):
        assert np.asarray(Image.open(folder / file)).std() > 10


def test_an_installed_font_draws_what_the_default_one_lacks(tmp_path, installed, drawn):
    with fonts_for(["left", RARE]) as can_be_drawn:
        assert can_be_drawn and len(fonts.matplotlib.rcParams["font.family"]) == 2
    pictures(tmp_path, RARE)
    assert {"left", RARE, f"{RARE}  90%\n(true: left)"} <= {*drawn}


def test_names_that_no_font_has_are_drawn_by_index(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(fonts, "_installed", list)
    pictures(tmp_path, RARE)
    assert {"class 0", "class 1", "class 1  90%\n(true: class 0)"} <= {*drawn}
    assert "predicted\nclasses by index, since no installed font has their names" in drawn
    assert not any(RARE in str(text) for text in drawn)


@pytest.mark.parametrize("name", ["à gauche", "слева", "$x_$ ^", "line\nbreak\t\x07", "caf\udce9"])
def test_other_names_are_drawn_as_they_are_in_one_line(tmp_path, drawn, name):
    pictures(tmp_path, name)
    assert any(text == name or (not name.isprintable() and "\\" in text and "\n" not in text) for text in drawn)


def test_a_console_that_lacks_characters_gets_escapes(tmp_path, image_model):
    for name in ("слева", "右"):
        write(tmp_path / "videos" / "train" / name / "0.mp4", count=4)
        write(tmp_path / "videos" / "val" / name / "0.mp4", count=4)
    options = ["--frames", "2", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--output", "out"]
    command = [sys.executable, "-m", "peft_aim", "train", str(tmp_path / "videos"), "--model", image_model, *options]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env=ascii_only)
    assert result.returncode == 0, result.stderr
    assert rb"\u0441\u043b\u0435\u0432\u0430" in result.stdout and rb"\u53f3" in result.stdout
