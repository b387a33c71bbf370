"""Training reports what a single view of the val videos scores with its frames in other orders."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from videos import write

from peft_aim.video.backbones import Source
from peft_aim.video.data import Data, Preprocessing, Sample
from peft_aim.video.description import Description
from peft_aim.video.evaluate import evaluate_model
from peft_aim.video.orders import orders, reordered
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.run import train


def test_other_orders_are_always_the_same_and_have_all_frames():
    assert orders(6) == orders(6) and orders(1) == {"in order": [[0]]}
    for order in orders(6)["shuffled"]:
        assert sorted(order) == list(range(6)) != order


def test_videos_are_shuffled_differently():
    clips = torch.arange(6).view(1, 6, 1, 1, 1).expand(9, -1, -1, -1, -1)
    found = reordered(clips, range(9))
    ways = [tuple(clip.flatten().tolist()) for clip in found["shuffled"]]
    assert len(set(ways)) > 6 and ways[0] == ways[8] and reordered(clips[:, :1], range(9)) == {}


class Brightens(nn.Module):
    """A model whose class 0 is a clip that gets brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clips: Tensor) -> Tensor:
        gain = self.scale * (clips[:, -1] - clips[:, 0]).mean((1, 2, 3))
        return torch.stack([gain, -gain], 1)


@pytest.mark.parametrize(("frames", "views"), [(4, (1, 1)), (4, (2, 1)), (1, (1, 1))])
def test_a_model_that_uses_order_is_wrong_in_reverse(tmp_path, frames, views):
    gray = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    description = Description.new(Recipe(frames=frames), gray, Source("none"), ["brighter", "darker"])
    videos = [Sample(write(tmp_path / f"{i}.mp4", count=12), 0) for i in range(8)]
    plain = evaluate_model(Brightens(), description, videos, views, workers=0)
    found = evaluate_model(Brightens(), description, videos, views, workers=0, in_orders=True)
    assert found.views == plain.views and not plain.orders and "orders" not in plain.summary()
    assert list(found.orders) == (["shuffled", "reversed"] if frames > 1 else [])
    if frames > 1:
        assert found.views["1x1"].top1 == 1 and found.orders["reversed"].top1 == 0 < found.orders["shuffled"].top1 < 1


def test_training_reports_other_orders(folder, tmp_path, image_model):
    recipe = Recipe(frames=2, epochs=1, batch_size=4, workers=0, keep="last")
    _, report = train(Data.find(folder), image_model, tmp_path / "out", recipe)
    saved = json.loads((tmp_path / "out" / "report.json").read_text())["results"]["orders"]
    assert {order: row["top1"] for order, row in saved.items()} == {
        order: metrics.top1 for order, metrics in report.evaluation.orders.items()
    }
    card = (tmp_path / "out" / "README.md").read_text()
    for order in ("shuffled", "reversed"):
        assert f"1 x 1, frames {order}: top-1" in str(report) and f"| val | 4 | 1 x 1, frames {order} |" in card


@pytest.mark.parametrize(("kind", "key"), [(MULTI_LABEL, "map"), (REGRESSION, "mae")])
def test_other_kinds_of_labels_have_their_metric(tmp_path, kind, key):
    gray = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    description = Description.new(Recipe(frames=4), gray, Source("none"), ["gain", "loss"], problem_type=kind)
    labels = {MULTI_LABEL: [frozenset({0}), frozenset({0, 1})], REGRESSION: [(1.0, -1.0), (1.0, -2.0)]}[kind]
    videos = [Sample(write(tmp_path / f"{i}.mp4", count=12), label) for i, label in enumerate(labels)]
    found = evaluate_model(Brightens(), description, videos, workers=0, in_orders=True).summary()
    assert found["orders"].keys() == {"shuffled", "reversed"} and key in found["orders"]["reversed"]
    assert kind != REGRESSION or found["orders"]["reversed"]["mae"] > found["views"]["1x1"]["mae"]
