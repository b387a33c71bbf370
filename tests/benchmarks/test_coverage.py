"""A sample of the coverage benchmark: all laws for one small model of each structure in its catalogue."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.coverage import __main__ as coverage
from benchmarks.coverage import catalogue, laws
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import FRONT, HERE
from peft_aim.backbone import inspect_backbone
from peft_aim.layers import TemporalAttention
from peft_aim.tracing import run

SAMPLE = {
    "timm": [
        "beit_base_patch16_224",  # bias inside the attention
        "cait_xxs24_224",  # class attention at the end
        "coatnet_0_rw_224",  # channels first
        "hiera_tiny_224",  # mask units, pooled queries
        "levit_128",  # no norms, values wider than keys
        "mobilevit_xs",  # images split into patch groups
        "mvitv2_tiny",  # pooled, adds the query to the output
        "naflexvit_base_patch16_gap",  # no convolution
        "nest_tiny",  # tokens in blocks
        "pvt_v2_b0",  # reduced keys
        "tiny_vit_5m_224",  # norm inside the attention
        "xcit_nano_12_p16_224",  # attention between channels
    ],
    "transformers": ["siglip2", "swiftformer", "swinv2"],
    "open_clip": ["ViT-B-32"],
}
RECORD = RESULTS / "coverage.json"


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in SAMPLE.items() for name in names])
def test_all_laws_hold(library, name, monkeypatch):
    backbone = catalogue.build(library, name)
    build, clips = lambda: copy.deepcopy(backbone), coverage.random_clips(backbone)
    unloading = laws.unloading_gives_back_the_backbone
    unloading(build, clips)  # of a backbone that has been inspected, unlike the copies from here on
    found = inspect_backbone(build())
    monkeypatch.setattr("peft_aim.model.inspect_backbone", lambda *_: found)
    monkeypatch.setattr(laws, "LAWS", [law for law in laws.LAWS if law is not unloading])
    held = laws.check(build, clips)
    assert list(held) == [law.__name__ for law in laws.LAWS]
    assert {result.partition(":")[0] for result in held.values()} <= {"holds", "not offered"}


def test_onnxruntime_gives_the_same(monkeypatch):
    """Of a model whose attention has three axes."""
    pytest.importorskip("onnxruntime")
    backbone, scored = catalogue.build("timm", "samvit_base_patch16"), laws.in_onnxruntime.scored
    build, clips = lambda: copy.deepcopy(backbone), coverage.random_clips(backbone)
    found = []
    monkeypatch.setattr(laws.in_onnxruntime, "scored", lambda *given: found.append(scored(*given)) or found[0])
    laws.onnxruntime_gives_the_same(build, clips)

    def wrong_by(off: float, model: nn.Module, example: dict, images: dict) -> torch.Tensor:
        return found[0] + 0.01 if hasattr(model, "aim_clips") else laws.scores(run(model, images)) + off

    for off, kind, message in (
        (0.0, laws.Broken, "scores change by up to 1.0e-02"),
        (0.01, laws.NotOffered, "the backbone alone changes its scores, too, by up to 1.0e-02"),
    ):
        monkeypatch.setattr(laws.in_onnxruntime, "scored", partial(wrong_by, off))
        with pytest.raises(kind, match=message):
            laws.onnxruntime_gives_the_same(build, clips)


class Spatial(nn.MultiheadAttention):
    """Adds a spatial bias, made for 17 positions, to any sequence of that length."""

    def forward(self, query, key, value, **kwargs):
        if query.shape[1] == 17:
            query = query + torch.arange(17.0)[:, None]
        return super().forward(query, query, query, **kwargs)


class Leaking(nn.LayerNorm):
    """Mixes the spatial positions of an image."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.mean(1, keepdim=True)


def forget_to_be_causal(layer):
    layer.aim_settings["default"] = replace(layer.aim_settings["default"], temporal=TemporalAttention(layer.anatomy))


@pytest.mark.parametrize(
    ("law", "spoil"),
    [
        (laws.time_is_free_of_space, lambda layer: setattr(layer.base_layer.attn, "__class__", Spatial)),
        (laws.positions_never_mix, lambda layer: setattr(layer.base_layer.ln_1, "__class__", Leaking)),
        (laws.causal_adapters_see_no_later_frame, forget_to_be_causal),
        (laws.saved_and_loaded_gives_the_same, lambda layer: layer.register_forward_hook(lambda m, a, y: y + 1)),
        (laws.gradients_reach_every_adapter_and_nothing_else, lambda layer: layer.base_layer.requires_grad_()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_laws_can_be_broken(law, spoil, monkeypatch):
    """Each case breaks an adapted model: a check that cannot fail checks nothing."""
    adapt = laws.adapt

    def adapt_and_spoil(backbone: nn.Module, **options: object) -> nn.Module:
        model = adapt(backbone, **options)
        for layer in laws.layers(model):
            spoil(layer)
        return model

    backbone = catalogue.build("open_clip", "ViT-B-32")
    clips = coverage.random_clips(backbone)
    law(lambda: copy.deepcopy(backbone), clips)
    monkeypatch.setattr(laws, "adapt", adapt_and_spoil)
    with pytest.raises(laws.Broken):
        law(lambda: copy.deepcopy(backbone), clips)


def test_the_record_covers_every_library_and_no_law_fails():
    rows = json.loads(RECORD.read_text())["rows"]
    for library in catalogue.LIBRARIES:
        assert {row["name"] for row in rows if row["library"] == library} == set(catalogue.names(library))
    autos = [coverage.in_auto(row) for row in rows]
    assert [row for row in (*rows, *autos) if row["outcome"] == "wrong"] == []
    assert all(row["reason"] for row in (*rows, *autos) if row["outcome"] != "adapted")
    assert all("auto" in row for row in rows if row["outcome"] == "rejected")
    adapted = [row for row in (*rows, *autos) if row["outcome"] == "adapted"]
    names = {law.__name__ for law in laws.LAWS}
    assert all(names <= set(row["laws"]) for row in adapted)


def test_auto_adapts_nearly_all_models():
    rows = json.loads(RECORD.read_text())["rows"]
    auto = {library: [] for library in catalogue.LIBRARIES}
    for row in rows:
        auto[row["library"]].append(coverage.in_auto(row)["outcome"])
    assert auto["timm"].count("adapted") >= 0.98 * len(auto["timm"]) == 0.98 * 627
    assert auto["transformers"].count("adapted") >= 25 and auto["transformers"].count("not run") == 2


def test_the_tables_are_made_from_the_record():
    rows = json.loads(RECORD.read_text())["rows"]
    assert coverage.summary(rows) in FRONT.read_text()
    assert f"{coverage.summary(rows)}\n{coverage.by_family(rows)}" in HERE.read_text()


def test_new_laws_are_added_to_the_record(monkeypatch):
    def newer(*_):
        pass

    def newest(*_):
        if failing:
            raise laws.Broken("it changes")

    monkeypatch.setattr(laws, "LAWS", (newer, newest))
    monkeypatch.setattr(laws, "SLOW_LAWS", ())
    monkeypatch.setattr(catalogue, "build", lambda library, name: nn.Identity())
    monkeypatch.setattr(coverage, "random_clips", lambda backbone: {})
    row = {"library": "timm", "family": "vit", "name": "b", "outcome": "adapted", "laws": {"older": "holds"}}
    failing, copied = True, {**row, "name": "a", "same_as": "b"}
    found, same = coverage.examine_further([copied, row])
    assert (found["outcome"], found["reason"]) == ("wrong", "Broken: newest: it changes")
    assert same == {**found, "name": "a", "same_as": "b"} and coverage.lacks_laws(found)
    failing = False
    found, same = coverage.examine_further([same, found])
    assert found == {**row, "laws": {"older": "holds", "newer": "holds", "newest": "holds"}}
    assert same == {**found, "name": "a", "same_as": "b"} and not coverage.lacks_laws(found)
    assert row["laws"] == {"older": "holds"}
