"""Adapters for several classes per video and for numbers: losses, metrics, training, and what follows it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from videos import write

from peft_aim import AIMConfig
from peft_aim.__main__ import main
from peft_aim.video.adapters import load_adapters
from peft_aim.video.data import Data, Sample
from peft_aim.video.evaluate import evaluate
from peft_aim.video.metrics import MultiLabelMetrics, RegressionMetrics
from peft_aim.video.pipeline import video_pipeline
from peft_aim.video.predict import predict
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.loss import ClipLoss, check_recipe
from peft_aim.video.training.normalized import Normalization
from peft_aim.video.training.run import train

MULTI, REGRESSION = "multi_label_classification", "regression"
RECIPE = Recipe(frames=2, epochs=2, batch_size=4, workers=0, min_frames=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of other lengths, with several labels, with numbers, and as segments."""
    folder = tmp_path_factory.mktemp("kinds")
    names = [write(folder / f"{i}.mp4", count=4 + i).name for i in range(6)]
    splits = ["train"] * 4 + ["val"] * 2
    labels = ["a|b", "b", "a|c", "c", "a|b", "b"]
    for form, cells in (("several", labels), ("numbers", [f"{100 + 10 * i}|{-i}" for i in range(6)])):
        rows = [",".join(row) + "\n" for row in zip(names, cells, splits, strict=True)]
        (folder / f"{form}.csv").write_text("path,label,split\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def trained(videos, image_model, tmp_path_factory):
    """Adapters of both kinds, with their data, models and reports."""
    found, out = {}, tmp_path_factory.mktemp("trained")
    for form, kind in (("several", None), ("numbers", REGRESSION)):
        data = Data.find(videos / f"{form}.csv", problem_type=kind)
        found[form] = (out / form, data, *train(data, image_model, out / form, RECIPE))
    return found


def test_average_precision_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    targets, probabilities = generator.integers(0, 2, (20, 3)), generator.random((20, 3))
    targets[:, 1] = 0
    found = MultiLabelMetrics.of(probabilities, targets, ["x", "y", "z"])
    assert found.map == pytest.approx(average_precision_score(targets[:, [0, 2]], probabilities[:, [0, 2]]))
    assert [row["ap"] is None for row in found.per_class] == [False, True, False]
    assert "mean over 2 classes; no video has y" in found.line and found.table().splitlines()[2].split() == [
        "y",
        "0",
        "-",
    ]
    with pytest.raises(ValueError, match="None of the 20 videos has any of the 3 classes, so there is no average"):
        MultiLabelMetrics.of(probabilities, targets * 0, ["x", "y", "z"])


def test_errors_of_numbers_are_those_of_scikit_learn():
    true, guess = np.random.default_rng(0).normal(size=(2, 15, 2))
    found = RegressionMetrics.of(guess, true, ["x", "y"])
    assert (found.mae, found.r2) == pytest.approx((mean_absolute_error(true, guess), r2_score(true, guess)))
    same = RegressionMetrics.of(guess[:, :1], np.ones((15, 1)), ["x"])
    assert same.r2 is None and same.line.endswith("R2 -") and same.logged.keys() == {"mae"}


def test_losses_are_those_of_torch():
    scores, targets = torch.randn(5, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [torch.nan] * 3])
    some, weights = slice(0, 4), torch.tensor([1.0, 2.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(scores[some], targets[some], pos_weight=weights)
    assert torch.allclose(ClipLoss(0.0, weights, MULTI)(scores, targets), expected)
    smooth = F.binary_cross_entropy_with_logits(scores[some], targets[some] * 0.9 + 0.05)
    assert torch.allclose(ClipLoss(0.1, None, MULTI)(scores, targets), smooth)
    assert torch.allclose(ClipLoss(0.0, None, REGRESSION)(scores, targets), F.mse_loss(scores[some], targets[some]))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"balance": "sampling"},
            MULTI,
            "balance='sampling' is not for several classes .* Give balance='loss'",
        ),
        ({"balance": "loss"}, REGRESSION, "balance='loss' is about classes, but the labels are numbers"),
        ({"label_smoothing": 0.1}, REGRESSION, "label_smoothing=0.1 is about classes"),
        ({"flip": True, "flip_pairs": ((0, 1),)}, REGRESSION, r"flip_pairs=\(\(0, 1\),\) is about classes"),
    ],
)
def test_options_without_a_meaning_are_rejected(options, kind, message):
    with pytest.raises(ValueError, match=message):
        check_recipe(Recipe(**options), kind)


def test_numbers_that_are_all_the_same_are_rejected():
    with pytest.raises(ValueError, match="All 2 training videos have 3 as 'x', so there is nothing to learn"):
        Normalization.of([Sample("a.mp4", (3.0,)), Sample("b.mp4", (3.0,))], ["x"])


@pytest.mark.parametrize(("form", "kind", "key"), [("several", MULTI, "map"), ("numbers", REGRESSION, "mae")])
def test_the_kind_of_labels_is_kept_in_the_adapter(trained, videos, tmp_path, form, kind, key):
    folder, data, _, report = trained[form]
    assert AIMConfig.from_pretrained(folder).problem_type == kind == data.problem_type
    result = evaluate(str(folder), videos / f"{form}.csv", tmp_path / "e", workers=0)
    assert result.best == report.evaluation.best and result.files == ["evaluation.json"]
    assert not (folder / "confusion.png").exists() and (folder / "curve.png").exists()
    saved = json.loads((folder / "report.json").read_text())
    values = [point[key] for point in saved["curve"]]
    best = min(values) if kind == REGRESSION else max(values)
    assert getattr(report.evaluation.views["1x1"], key) == pytest.approx(best, rel=1e-5)
    assert saved["kept"] == values.index(best) + 1
    assert {"several": "mAP", "numbers": "MAE"}[form] in (folder / "README.md").read_text()


def test_predictions_follow_the_kind_of_labels(trained, videos):
    folder = trained["numbers"][0]
    (numbers,) = predict(str(folder), videos / "0.mp4", window=0)
    assert [name for name, _ in numbers.top] == ["value 0", "value 1"] and "value 0 1" in str(numbers)
    assert 60 < numbers.top[0][1] < 180  # in the units of the labels
    rows = {row["label"]: row["score"] for row in video_pipeline(str(folder))(str(videos / "0.mp4"))}
    assert rows == pytest.approx(dict(numbers.top), rel=1e-4)
    folder = trained["several"][0]
    (several,) = predict(str(folder), videos / "0.mp4", window=0, top_k=9)
    rows = {row["label"]: row["score"] for row in video_pipeline(str(folder))(str(videos / "0.mp4"))}
    assert rows == pytest.approx(dict(several.top), abs=1e-5) and len(rows) == 3
    likely = [f"{name} {p:.1%}" for name, p in several.top if p > 0.5]
    assert str(several).endswith(", ".join(likely) or f"none above 50% ({several.top[0][0]} {several.top[0][1]:.1%})")


def test_folding_is_exact_and_can_be_undone(trained):
    folder, data, *_ = trained["numbers"]
    model, numbers = load_adapters(str(folder)).model, Normalization.of(data.train, data.classes)
    clips = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        before = model(clips).logits
        with numbers.folded(model):
            inside = model(clips).logits
        assert torch.equal(model(clips).logits, before)
    assert torch.allclose(inside, before * numbers.std + numbers.mean, rtol=1e-4)
    assert torch.allclose(numbers.normalized(before * numbers.std + numbers.mean), before, atol=1e-3)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"balance": "loss", "label_smoothing": 0.1, "patience": 1}])
def test_options_of_training_work_with_several_classes(trained, image_model, tmp_path, options):
    data = trained["several"][1]
    _, report = train(data, image_model, tmp_path / "out", replace(RECIPE, epochs=1, **options))
    assert 0 < report.evaluation.best.map <= 1


def test_adapters_of_one_class_are_not_evaluated_on_several(folder, videos, image_model, tmp_path, capsys):
    train(Data.find(folder), image_model, tmp_path / "one", replace(RECIPE, epochs=1))
    (tmp_path / "all.csv").write_text("path,label\na.mp4,dark|light\n")
    assert main(["evaluate", str(tmp_path / "one"), str(tmp_path / "all.csv"), "--output", str(tmp_path / "e")]) != 0
    assert "a.mp4 has the labels ['dark', 'light'], but the adapter predicts one class" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"problem_type='regression' is asked for, but the labels .* read as 'sing"):
        train(Data.find(folder), image_model, tmp_path / "two", RECIPE, problem_type=REGRESSION)
