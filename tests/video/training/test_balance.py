"""Classes of different sizes: by sampling and by the loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from peft_aim.video.data.balance import balanced, class_weights
from peft_aim.video.data.clips import TrainingClips
from peft_aim.video.data.data import Data
from peft_aim.video.data.transforms import ForTraining, Preprocessing
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.loss import ClipLoss
from peft_aim.video.training.run import train
from peft_aim.video.training.trainer import ClipTrainer

LABELS = [0] * 7 + [1] * 2 + [3]
SHORT = Recipe(frames=2, epochs=2, batch_size=4, workers=0, min_frames=1)


def test_all_classes_are_drawn_equally_often_and_the_videos_of_a_class_too():
    for seed in range(5):
        drawn = balanced(LABELS, seed)
        assert len(drawn) == len(LABELS)
        assert sorted(Counter(LABELS[i] for i in drawn).values()) == [3, 3, 4]
        for label in (0, 1, 3):
            counts = Counter(i for i in drawn if LABELS[i] == label)
            often = [counts[i] for i, other in enumerate(LABELS) if other == label]
            assert max(often) - min(often) <= 1
    assert balanced(LABELS, 0) == balanced(LABELS, 0) != balanced(LABELS, 1)


def test_draws_depend_on_seed_and_epoch_only(folder):
    data = Data.find(folder)
    videos = [*data.train, *[data.train[0]] * 5]

    def clips(**changes):
        recipe = replace(SHORT, balance="sampling", **changes)
        grey = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
        return TrainingClips(videos, recipe, ForTraining(grey, recipe, data.classes))

    some = clips()
    first = [*some.drawn]
    assert Counter(videos[i].label for i in first) in ({0: 5, 1: 6}, {0: 6, 1: 5})
    assert len(first) == 11 and len(some) == 12
    some.epoch.fill_(1)
    second = [*some.drawn]
    assert second != first == [*clips().drawn] != [*clips(seed=1).drawn]
    assert [some[i]["labels"] for i in range(11)] == [videos[i].label for i in second]
    loader = torch.utils.data.DataLoader(some, batch_size=12, num_workers=1, persistent_workers=True)
    assert next(iter(loader))["labels"][:11].tolist() == [videos[i].label for i in second]
    some.epoch.fill_(0)
    assert next(iter(loader))["labels"][:11].tolist() == [videos[i].label for i in first]


def test_the_mean_weight_of_the_loss_is_one():
    weights = class_weights(LABELS, 4)
    assert weights[LABELS].mean() == pytest.approx(1)
    assert torch.allclose(weights[[0, 1, 3]] * torch.tensor([7, 2, 1]), torch.tensor(10 / 3)) and weights[2] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_clip_is_weighted_by_its_class(smoothing):
    scores, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 0]), torch.tensor([0.5, 1.0, 2.0])
    targets = F.one_hot(labels, 3).float()
    each = F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)
    assert torch.allclose(ClipLoss(smoothing, weights)(scores, targets), (each * weights[labels]).mean())
    unreadable = torch.cat([targets, torch.full((2, 3), torch.nan)])
    assert torch.allclose(
        ClipLoss(smoothing, weights)(torch.cat([scores, scores[:2]]), unreadable), (each * weights[labels]).mean()
    )


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_balanced_training_resumes_to_the_same_result(folder, tmp_path, image_model, monkeypatch, balance):
    (folder / "train" / "dark" / "0.mp4").unlink()
    recipe, data, losses = replace(SHORT, balance=balance, batch_size=2), Data.find(folder), []
    _, report = train(data, image_model, tmp_path / "once", recipe)
    step = ClipTrainer.training_step

    def killed(self, *args, **kwargs):
        losses.append(self.compute_loss_func)
        return 1 / 0 if self.state.global_step == 4 else step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ClipTrainer, "training_step", killed)
        with pytest.raises(ZeroDivisionError):
            train(data, image_model, tmp_path / "twice", recipe)
    train(data, image_model, tmp_path / "twice", recipe, resume=True)
    expected = (tmp_path / "once" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "twice" / "adapter_model.safetensors").read_bytes() == expected
    weights = losses[0].weights
    assert weights is None if balance == "sampling" else torch.allclose(weights, torch.tensor([5 / 4, 5 / 6]))
    assert Path(tmp_path / "once" / "curve.png").exists() and report.curve
