"""Exported files: what onnxruntime and torch.export make of them, on their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from videos import write

from peft_aim import AIMConfig
from peft_aim.__main__ import main
from peft_aim.video import export
from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.description import Description
from peft_aim.video.exporting import Exported, NotExportable, exported, onnx_file, pt2_file, to_onnx, traced
from peft_aim.video.exporting.clip_model import ClipModel
from peft_aim.video.predict import predict
from peft_aim.video.recipe import Recipe

onnxruntime = pytest.importorskip("onnxruntime")
CLASSES = ["dark", "light"]
README = Path(__file__).parents[3] / "benchmarks" / "README.md"


def saved(backbone: str, folder: Path, **options: object) -> str:
    """Save an adapter for 4 frames with random weights."""
    torch.manual_seed(0)
    model, preprocessing = load_backbone(backbone)
    config = AIMConfig(num_frames=4, id2label=dict(enumerate(CLASSES)), init_weights=False, **options)
    adapted = get_peft_model(model, config)
    Description.new(Recipe(frames=4, views=(1, 1)), preprocessing, Source(backbone), CLASSES).write(config)
    adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(image_model, tmp_path_factory) -> str:
    return saved(image_model, tmp_path_factory.mktemp("exported") / "my-task", temporal_embedding="blocks")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for i, name in enumerate(CLASSES):
        write(root / "val" / name / "0.mp4", count=5 + 6 * i)
    return root


@pytest.fixture(scope="module")
def in_onnx(adapter, videos) -> Exported:
    return export(adapter, Path(adapter).with_suffix(".onnx"), videos=videos)


def expected(adapter: str, frames: torch.Tensor) -> torch.Tensor:
    loaded = load_adapters(adapter)
    return ClipModel(loaded.model.get_base_model(), loaded.descriptions[0]).eval()(frames).detach()


def frames(clips: int, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (clips, count, 32, 32, 3), dtype=torch.uint8)


@pytest.mark.parametrize(("clips", "count"), [(1, 4), (3, 4), (2, 1), (1, 7)])
def test_onnxruntime_gives_the_probabilities_of_the_model(adapter, in_onnx, clips, count):
    session, given = onnxruntime.InferenceSession(in_onnx.path), frames(clips, count)
    found = torch.from_numpy(session.run(None, {"frames": given.numpy()})[0])
    assert torch.allclose(found, expected(adapter, given), atol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(clips))


def test_the_result_says_how_exact_the_file_is(in_onnx):
    assert in_onnx.difference < 1e-5 and in_onnx.lengths is None
    assert (in_onnx.videos.videos, in_onnx.videos.differing, in_onnx.bytes) == (2, 0, in_onnx.path.stat().st_size)
    lines = str(in_onnx).splitlines()
    assert re.fullmatch(r".*my-task.onnx: 0.\d MiB, fp32, clips of any number of frames", lines[0])
    assert re.fullmatch(r"verified with onnxruntime: largest difference \d.\de-\d\d", lines[1])
    assert re.match(r"2 videos: top-1 (\d+.0%) before and \1 after the export, 0 predictions differ", lines[2])


def test_a_script_without_torch_predicts_the_same(adapter, in_onnx, videos):
    """The script of the benchmarks' README; the videos need no resizing, which is the only difference."""
    script = re.search(r"## Exported files.*?```python\n(.*?)```", README.read_text(), re.S)[1]
    script += "\nassert not {'torch', 'peft_aim'} & {*sys.modules}"
    paths = sorted(map(str, videos.rglob("*.mp4")))
    command = [sys.executable, "-c", script, str(in_onnx.path), *paths]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [prediction.top[0] for prediction in predict(adapter, paths)]
    assert [line.split()[1] for line in lines] == [name for name, _ in found]
    assert [float(line.split()[2][:-1]) for line in lines] == pytest.approx([100 * p for _, p in found], abs=1)


def test_the_metadata_has_what_the_input_is_made_of(adapter, in_onnx):
    facts = json.loads(onnxruntime.InferenceSession(in_onnx.path).get_modelmeta().custom_metadata_map["peft_aim"])
    config = load_adapters(adapter).model.peft_config["adapter0"]
    assert facts["labels"] == CLASSES and facts["image_size"] == [32, 32] and facts["lengths"] is None
    assert facts["sampling"] == {"frames": 4, "stride": None, "clips": 1, "crops": 1}
    assert facts["backbone_fingerprint"] == config.backbone_fingerprint
    assert facts["problem_type"] == "single_label_classification" and facts["interpolation"] == "bilinear"


def test_int8_by_onnxruntime_is_smaller(adapter, in_onnx, tmp_path):
    found = export(adapter, tmp_path / "small.onnx", precision="int8")
    assert 0 < found.difference < 0.1 and [*tmp_path.iterdir()] == [found.path]
    assert b"MatMulInteger" in found.path.read_bytes()
    metadata = onnxruntime.InferenceSession(found.path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["peft_aim"])["precision"] == "int8"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_torch_loads_pt2_archives(adapter, tmp_path, precision):
    if precision == "int8":
        pytest.importorskip("torchao")
    found, given, extra = export(adapter, tmp_path / "a.pt2", precision=precision), frames(3, 4), {"metadata.json": ""}
    values = torch.export.load(found.path, extra_files=extra).module()(given)
    assert torch.allclose(values, expected(adapter, given), atol={"fp32": 1e-5}.get(precision, 0.02))
    assert json.loads(extra["metadata.json"])["precision"] == precision and values.dtype == torch.float32


def test_other_lengths_are_refused_where_the_number_of_frames_is_fixed(adapter, tmp_path, monkeypatch):
    def only_fixed(model, inputs, dynamic):
        if len(dynamic[0]) == 2:
            raise NotExportable("T")
        return traced(model, inputs, dynamic)

    monkeypatch.setattr(exported, "traced", only_fixed)
    found, extra = export(adapter, tmp_path / "a.pt2"), {"metadata.json": ""}
    assert "clips of 4 frames" in str(found)
    loaded = torch.export.load(found.path, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["lengths"] == [4] and loaded(frames(3, 4)).shape == (3, 2)
    with pytest.raises(AssertionError, match=r"size\(\)\[1\] == 4"):
        loaded(frames(3, 5))


def test_a_file_with_other_values_is_an_error_and_removed(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "traced", lambda *_: None)
    monkeypatch.setattr(pt2_file, "save", lambda model, graph, path, facts: path.write_text(""))
    monkeypatch.setattr(pt2_file, "load", lambda path: lambda frames: torch.ones(len(frames), 2))
    with pytest.raises(
        ValueError, match=r"a.pt2 gives other values than the model: .* up to \d.\de-\d\d, more than 1e-04"
    ):
        export(adapter, tmp_path / "new" / "a.pt2")
    assert not [*tmp_path.iterdir()]


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)


def test_errors_name_module_line_and_operator():
    with pytest.raises(NotExportable, match=r"1 \(Deciding\), line 'return x if x.sum\(\) > 0 else -x': Could not"):
        traced(nn.Sequential(nn.ReLU(), Deciding()), (torch.ones(2, 2),), None)
    model = nn.Sequential(nn.ReLU(), Spectrum())
    graph = traced(model, (torch.ones(2, 2),), None)
    with pytest.raises(NotExportable, match=r"1 \(Spectrum\), operator aten._linalg_eigh.default: .* --to pt2"):
        to_onnx(model, graph)
    with pytest.raises(NotExportable, match=r"onnxruntime rejects the model: .* --to pt2"):
        onnx_file.session_of(b"nothing")


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.tflite", [], "a.tflite does not end in .onnx or .pt2. Give"),
        ("a.pt2", ["--to", "onnx"], "a.pt2 does not end in .onnx. Give"),
        ("there.pt2", [], "there.pt2 exists. Give another name, or remove it."),
        ("a.pt2", ["--videos", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_errors(adapter, tmp_path, capsys, out, options, message):
    (tmp_path / "there.pt2").write_text("")
    assert main(["export", adapter, str(tmp_path / out), *options]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


def test_missing_packages_are_named(adapter, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        assert main(["export", adapter, str(tmp_path / "a.onnx")]) == 1
    assert "peft-aim export needs onnxscript: pip install 'peft-aim[export]'" in capsys.readouterr().err
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    monkeypatch.setattr(onnx_file, "to_onnx", lambda *_: Written())
    assert main(["export", adapter, str(tmp_path / "a.onnx")]) == 0
    assert (
        "not verified, since onnxruntime is not installed: pip install 'peft-aim[export]'" in capsys.readouterr().out
    )


class Written:
    """An ONNX program that is not run."""

    def __init__(self) -> None:
        self.model = type("Model", (), {"metadata_props": {}})()

    def save(self, path: Path) -> None:
        path.write_text("")


def test_adapters_without_a_description_are_errors(image_model, tmp_path, capsys):
    backbone, _ = load_backbone(image_model)
    get_peft_model(backbone, AIMConfig(num_frames=4, num_labels=2)).save_pretrained(tmp_path / "bare")
    assert main(["export", str(tmp_path / "bare"), str(tmp_path / "a.pt2")]) == 1
    assert "does not describe how to make clips" in capsys.readouterr().err
