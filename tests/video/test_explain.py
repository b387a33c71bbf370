"""What a score rests on: sums, known places and times, any backbone, saved adapters, and bad input."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zoo
from peft import get_peft_model
from PIL import Image
from torch import nn
from videos import write_broken

import peft_aim.video
from peft_aim import AIMConfig
from peft_aim.__main__ import main
from peft_aim.video.adapters import load_adapters
from peft_aim.video.attribution import Explanation, attribute, blurred, explain, in_cells, integrated_gradients
from peft_aim.video.backbones import Source
from peft_aim.video.data import Data, evaluation_frames, open_video
from peft_aim.video.orders import orders
from peft_aim.video.predict import predict
from peft_aim.video.problem_type import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt

# Laws of attributions.


def linear(classes: int = 3, size: int = 32) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * size * size, classes))


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_attributions_of_a_linear_model_sum_up_to_the_difference_of_the_scores(problem_type):
    model, clip = linear(), torch.randn(4, 3, 32, 32)
    scores, before = (model(clips[None])[0] for clips in (clip, blurred(clip)))
    expected = (scores - before)[1] - ((scores - before).mean() if problem_type == SINGLE_LABEL else 0)
    found = attribute(model, clip, 1, problem_type)
    assert found.shape == (4, 4, 4)
    torch.testing.assert_close(found.sum(), expected, atol=1e-4, rtol=1e-4)


def test_attributions_are_the_integral_of_the_gradient():
    """That of a cube is known: (x**3)' = 3 x**2, integrated from 0 to x."""
    clip = torch.rand(2, 1, 2, 2)
    found = integrated_gradients(lambda clips: clips.pow(3).sum((1, 2, 3, 4)), clip, 0 * clip, steps=100)
    torch.testing.assert_close(found, clip[:, 0] ** 3, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (70, 45), (224, 224), (5, 230)])
def test_cells_share_all_pixels_among_them(size):
    pixels = torch.rand(2, *size)
    cells = in_cells(pixels)
    assert cells.shape[1:] == tuple(max(1, min(14, side // 8)) for side in size)
    torch.testing.assert_close(cells.sum((1, 2)), pixels.sum((1, 2)))


class Looks(nn.Module):
    """A model whose first score is the contrast in a single cell of a single frame."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        contrast = clips[:, 2, :, 16:24, 8:16].std((1, 2, 3))
        return torch.stack([contrast, clips.mean((1, 2, 3, 4))], 1)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_the_greatest_share_is_where_the_model_looks(problem_type):
    found = attribute(Looks(), torch.randn(4, 3, 32, 32), 0, problem_type)
    assert np.unravel_index(int(found.argmax()), found.shape) == (2, 2, 1)
    explanation = Explanation(Path("a.mp4"), "my-task", "a", False, [0.0, 0.5, 1.0, 1.5], found, {"in order": 0.5})
    assert explanation.frames[0][0] == 1.0 and explanation.place == (0.375, 0.625)


BACKBONES = {
    **{name: zoo.ZOO[name] for name in ("timm_vit", "timm_dinov2", "hf_vit")},
    **{name: zoo.ZOO[name] for name in ("torchvision_swin", "open_clip_vit", "own_sequence_first")},
    "convolutional_stem": lambda: timm.create_model("levit_128s", img_size=64, num_classes=5),
}


@pytest.mark.filterwarnings("ignore:AIM adapts 9 of 11 blocks")  # of the convolutional stem, which has downsampling
@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_can_be_explained(name):
    """Whatever its tokens are: with and without a class token, in windows, sequence first, after convolutions."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]().eval()
    size = 64 if name == "convolutional_stem" else zoo.SIZE
    backbone.image_size = (size, size)
    model = get_peft_model(backbone, AIMConfig(num_frames=4, temporal="auto")).eval().requires_grad_(False)
    clip = torch.randn(4, 3, size, size)
    found = attribute(model, clip, 1, MULTI_LABEL)
    with torch.no_grad():
        score, before = (zoo.scores(model(clips[None]))[0, 1] for clips in (clip, blurred(clip)))
    assert found.shape == (4, size // 8, size // 8) and found.isfinite().all() and found.any()
    torch.testing.assert_close(found.sum(), score - before, atol=0.05, rtol=0.05)


# Other orders of frames.


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.97, 0.31, 0.02, 0.12), "Order matters: 97.0% in order, 31.0% shuffled, 2.0% reversed, 12.0% with the"),
        ((0.9, 0.7, 0.9, 0.9), "Order matters somewhat: 90.0% in order"),
        ((0.9, 0.9, 0.9, 0.9), "Order hardly matters: 90.0% in order"),
    ],
)
def test_whether_order_matters_is_said_in_words(values, verdict):
    found = dict(zip(orders(4), values, strict=True))
    explanation = Explanation(Path("a.mp4"), "my-task", "a", False, [0.0] * 4, torch.zeros(4, 1, 1), found)
    assert explanation.verdict.startswith(verdict)


# Saved adapters.


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, image_model: str) -> Path:
    """An adapter with random weights for each kind of labels, and folders of images of one and three seconds."""
    root = tmp_path_factory.mktemp("tasks")
    kinds = {"one": (4, SINGLE_LABEL), "numbers": (4, REGRESSION), "still": (1, SINGLE_LABEL)}
    for name, (frames, problem_type) in kinds.items():
        recipe = Recipe(frames=frames, views=(2, 3))
        model, description = adapt(Data(["left", "right"], train=[]), Source(image_model), recipe)
        with torch.no_grad():
            for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.active_peft_config.problem_type = problem_type
        description.write(model.active_peft_config)
        model.active_peft_config.video["seconds"] = 1.0
        model.save_pretrained(root / name)
    random = np.random.default_rng(0)
    for name, count in (("frames", 12), ("long", 36)):
        (root / name).mkdir()
        for i in range(count):
            Image.fromarray(random.integers(256, size=(32, 48, 3), dtype=np.uint8)).save(root / name / f"{i:02}.png")
    (root / "plain").mkdir()
    Image.fromarray(np.full((32, 48, 3), 99, dtype=np.uint8)).save(root / "plain" / "0.png")
    return root


def test_the_explanation_is_of_the_model_that_was_saved(tasks):
    found = explain(str(tasks / "one"), tasks / "frames")
    loaded = load_adapters(str(tasks / "one"))
    with open_video(tasks / "frames") as video:
        clip = loaded.descriptions[0].as_evaluated.of(video)[3]  # of 2 x 3, the middle view
    with torch.no_grad():
        values = loaded.model(torch.stack([clip, clip.flip(0), clip[[2] * 4]])).logits.softmax(-1)
    index = ("left", "right").index(found.label)
    assert [found.orders[order] for order in ("in order", "reversed", "frozen")] == pytest.approx(
        values[:, index].tolist()
    )
    torch.testing.assert_close(found.attributions, attribute(loaded.model, clip, index))
    assert found.seconds == pytest.approx([i / 12 for i in evaluation_frames(12, 4, None, 2)[1]])
    (other,) = {"left", "right"} - {found.label}
    opposite = explain(str(tasks / "one"), tasks / "frames", label=other)
    torch.testing.assert_close(opposite.attributions, -found.attributions)  # of two classes
    assert opposite.value == pytest.approx(1 - found.value)


def test_a_long_video_is_explained_where_the_class_is_most_probable(tasks):
    whole = explain(str(tasks / "one"), tasks / "long", window=0)
    assert whole.seconds[-1] - whole.seconds[0] > 1.5
    (prediction,) = predict(str(tasks / "one"), tasks / "long")
    for label in ("left", "right"):
        found = explain(str(tasks / "one"), tasks / "long", label)
        surest = max(prediction.windows, key=lambda window: dict(window.top)[label])
        assert surest.begin <= found.seconds[0] < found.seconds[-1] <= surest.end


@pytest.mark.parametrize("name", ["one", "numbers", "still"])
def test_the_command_prints_and_draws(tasks, tmp_path, capsys, name):
    command = ["explain", str(tasks / name), str(tasks / "frames"), "--output", str(tmp_path), "--label", "right"]
    assert main(command) == 0
    text = capsys.readouterr().out
    value = r"-?\d+\.\d+" if name == "numbers" else r"\d+\.\d%"
    order = f"Order.*: {value} in order, {value} shuffled, {value} reversed, {value} with the middle frame alone"
    for line in (
        f"frames: right {value} \\(frames from 0.\\d+ to 0.\\d+ s\\)",
        r"Frames with the greatest share: \d\.\d\d s \(\d+%\)",
        r"Place with the greatest share: \d+% from the left, \d+% from the top",
        "The clip has a single frame, and so no order" if name == "still" else order,
    ):
        assert re.search(line, text), line
    assert np.asarray(Image.open(tmp_path / "frames right.png")).std() > 10


def test_all_attributions_are_printed_as_json(tasks, tmp_path, capsys):
    command = ["explain", str(tasks / "one"), str(tasks / "frames"), "--output", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.shape(found["attributions"]) == (len(found["seconds"]), 4, 4)
    assert sum(found["shares"]) == pytest.approx(1) and found["orders"]["in order"] == found["value"]


def test_a_video_without_any_detail_is_not_explained_by_a_place(tasks):
    found = explain(tasks / "one", tasks / "plain")
    assert "No part of the clip speaks for it: it shows no detail and no change." in str(found)
    against = replace(found, attributions=-torch.ones(2, 2, 2))
    assert "No part of the clip speaks for it: all parts speak against it." in str(against)
    assert found.place is None and json.loads(json.dumps(against.to_dict()))["place"] is None


def test_order_matters_also_if_others_are_more_probable(tasks):
    found = explain(tasks / "one", tasks / "frames")
    others = {"in order": 0.002, "shuffled": 0.9, "reversed": 0.95, "frozen": 0.9}
    assert replace(found, orders=others).verdict.startswith("Order matters: 0.2% in order, 90.0% shuffled")


# Bad input.


def test_bad_input_is_explained(tasks, tmp_path, capsys):
    broken = write_broken(tmp_path / "broken")
    (tmp_path / "empty").mkdir()
    for name, video, options, reason in (
        ("one", "frames", ["--label", "up"], "one does not predict 'up'. Give one of left, right."),
        ("numbers", "frames", [], "numbers predicts 2 numbers. Give one with --label: left, right."),
        ("one", "frames", ["--window", "-1"], "window=-1.0 is out of range. Give a window of 0 s or more."),
        ("one", broken["note"], [], "note.mp4 cannot be read as a video: "),
        ("one", tmp_path / "empty", [], "empty is a folder without images."),
        ("one", tmp_path / "no.mp4", [], "no.mp4 cannot be read as a video: No such file or directory"),
    ):
        assert main(["explain", str(tasks / name), str(tasks / video), *options, "--output", str(tmp_path)]) == 1
        assert reason in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["explain", str(tasks / "one"), str(tasks / "frames"), "--output", str(tmp_path / "file")]) == 1
    assert f"The output {tmp_path / 'file'} is a file. Give a folder." in capsys.readouterr().err


def test_it_is_a_function_of_the_package():
    assert peft_aim.video.explain is explain
    with pytest.raises(AttributeError, match="module 'peft_aim.video' has no attribute 'explian'"):
        peft_aim.video.explian  # noqa: B018
