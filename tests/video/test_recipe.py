"""Recipes: the paper's settings, and validation."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from peft_aim.commands.train import _help
from peft_aim.video.recipe import PRESETS, Recipe, preset

COMMON = {
    "lr": 3e-4,
    "lr_batch": 64,
    "batch_size": 64,
    "weight_decay": 0.05,
    "warmup_epochs": 2.5,
    "drop_path": 0.2,
    "head_dropout": 0.5,
    "precision": "fp16",
    "crop_scale": (0.08, 1.0),
    "mixup": 0.0,
    "keep": "last",
    "max_grad_norm": 0.0,
    "balance": "none",
}
DENSE = {"epochs": 30, "scale": 0.5, "temporal_adapters": 1, "flip": True, "label_smoothing": 0.0}
PAPER = {
    "kinetics400": {**DENSE, "frames": 32, "stride": 4, "views": (3, 1), "color_jitter": False},
    "kinetics400-large": {**DENSE, "frames": 32, "stride": 4, "views": (3, 1), "color_jitter": True},
    "kinetics400-swin": {**DENSE, "frames": 32, "stride": 2, "views": (4, 3), "temporal_layers": "even"},
    "kinetics700": {**DENSE, "frames": 8, "stride": 16, "views": (3, 3)},
    "kinetics700-large": {**DENSE, "frames": 32, "stride": 4, "views": (3, 3)},
    "ssv2": {
        "epochs": 50,
        "frames": 8,
        "stride": None,
        "scale": 1.0,
        "temporal_adapters": 2,
        "flip": False,
        "flip_pairs": ((86, 87), (93, 94), (166, 167)),
        "rand_augment": (4, 7),
        "random_erasing": 0.25,
        "label_smoothing": 0.1,
        "views": (1, 3),
    },
    "diving48": {**DENSE, "epochs": 50, "frames": 32, "stride": None, "views": (1, 1)},
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_match_the_paper(name):
    assert PRESETS.keys() == PAPER.keys()
    options = asdict(PRESETS[name])
    expected = {**COMMON, **PAPER[name]}
    assert {key: options[key] for key in expected} == expected
    assert PRESETS[name].peak_lr == 3e-4


def test_what_makes_order_visible_follows_the_temporal_branch():
    found = {temporal: Recipe(temporal=temporal).with_order() for temporal in ("attention", "auto", "conv")}
    chosen = {temporal: (recipe.temporal_conv, recipe.temporal_embedding) for temporal, recipe in found.items()}
    assert chosen == {"attention": (True, "blocks"), "auto": (True, "blocks"), "conv": (False, "input")}
    given = Recipe(temporal_conv=False, temporal_embedding="input")
    assert given.with_order() == given


def test_changing_the_number_of_frames_keeps_the_span_of_a_clip():
    assert [preset("kinetics400", frames=frames).stride for frames in (8, 16, 32)] == [16, 8, 4]
    assert preset("kinetics400", frames=8, stride=2).stride == 2
    assert preset("ssv2", frames=16).stride is None


def test_the_learning_rate_scales_with_the_batch_if_lr_batch_is_set():
    assert preset("ssv2", batch_size=8).peak_lr == pytest.approx(3e-4 / 8)
    assert preset("ssv2", batch_size=128, lr=1e-4).peak_lr == pytest.approx(2e-4)
    assert Recipe(lr=1e-3, batch_size=4).peak_lr == 1e-3


def test_warmup_is_a_tenth_of_training_or_as_given_and_at_most_a_quarter():
    assert Recipe(epochs=50).warmup == 0.1
    assert preset("kinetics400").warmup == pytest.approx(2.5 / 30)
    assert Recipe(epochs=4, warmup_epochs=2.5).warmup == 0.25


def test_small_data_is_trained_for_steps_and_large_data_for_epochs():
    assert Recipe().for_videos(17).epochs == 67  # of 3 steps each
    assert Recipe().for_videos(10_000).epochs == 6
    assert Recipe(epochs=2).for_videos(17).epochs == 2


def test_the_default_learning_rate_depends_on_the_width_of_the_backbone():
    assert Recipe().for_width(192).peak_lr == pytest.approx(3.125e-3)
    assert Recipe().for_width(768).peak_lr == pytest.approx(7.8125e-4)
    assert Recipe(lr=1e-3).for_width(768).peak_lr == 1e-3


def test_recipes_survive_json():
    recipe = preset("ssv2")
    as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    assert Recipe(**as_lists) == recipe


@pytest.mark.parametrize("option", fields(Recipe), ids=lambda option: option.name)
def test_every_option_has_help(option):
    assert len(_help(option)) > 10


def test_help_shows_defaults_as_they_are_typed():
    shown = {option.name: _help(option).rpartition("(default: ")[2] for option in fields(Recipe)}
    assert (shown["views"], shown["crop_scale"], shown["seed"]) == ("1x1)", "0.5 1.0)", "0)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0 is invalid. Give 1 or more"),
        ({"epochs": 0}, "epochs=0 is invalid. Give "),
        ({"frames": 0}, "frames=0 is invalid. Give "),
        ({"batch_size": 0}, "batch_size=0 is invalid. Give "),
        ({"batch_size": 8, "accumulation": 3}, "accumulation=3 is invalid. Give a divisor of batch_size"),
        ({"lr": float("nan")}, "lr=nan is invalid. Give a positive number"),
        ({"lr_batch": 0}, "lr_batch=0 is invalid. Give "),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is invalid. Give "),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0 is invalid. Give "),
        ({"drop_path": 1.0}, r"drop_path=1.0 is invalid. Give a number in \[0, 1\)"),
        ({"head_dropout": 1.0}, "head_dropout=1.0 is invalid. Give "),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is invalid. Give "),
        ({"random_erasing": 2.0}, "random_erasing=2.0 is invalid. Give "),
        ({"mixup": -1.0}, "mixup=-1.0 is invalid. Give "),
        ({"rand_augment": (2, 31)}, r"rand_augment=\(2, 31\) is invalid. Give "),
        ({"crop_scale": (2.0, 1.0)}, r"crop_scale=\(2.0, 1.0\) is invalid. Give two numbers in \(0, 1\]"),
        ({"flip_pairs": ((1, 2, 3),)}, "flip_pairs=.* is invalid. Give pairs of classes"),
        ({"precision": "fp8"}, "precision='fp8' is invalid. Give one of .'fp32', 'bf16', 'fp16'"),
        ({"recompute": "all"}, "recompute='all' is invalid. Give one of .'nothing', 'pointwise', 'mlp', 'block'"),
        ({"save_dtype": "half"}, "save_dtype='half' is invalid. Give one of .None, 'float16', 'bfloat16'"),
        ({"views": (0, 1)}, r"views=\(0, 1\) is invalid. Give "),
        ({"min_frames": 0}, "min_frames=0 is invalid. Give "),
        ({"workers": -1}, "workers=-1 is invalid. Give "),
        ({"epochs": 0}, "epochs=0 is invalid. Give 1 or more, or leave it out"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 is invalid. Give 0 or a positive number"),
        ({"keep": "first"}, "keep='first' is invalid. Give one of .'best', 'last'"),
        ({"balance": "all"}, "balance='all' is invalid. Give one of .'none', 'loss', 'sampling'"),
        ({"patience": 0}, "patience=0 is invalid. Give 1 or more, or leave it out"),
        ({"patience": 3, "keep": "last"}, "patience=3 stops .* but keep='last' .* Give keep='best', or leave out"),
        ({"temporal_layers": "evn"}, "temporal_layers='evn' is invalid. Give 'even', 'odd' or indices of blocks"),
        ({"temporal_layers": (0, -1)}, r"temporal_layers=\(0, -1\) is invalid"),
        ({"temporal": "both"}, "temporal='both' is invalid"),
        ({"temporal_adapters": 3}, "temporal_adapters=3 is invalid. Give 1 or 2"),
        ({"scale": float("inf")}, "scale=inf is invalid. Give "),
    ],
    ids=str,
)
def test_recipes_are_validated(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_unknown_presets_are_rejected():
    with pytest.raises(ValueError, match="There is no recipe 'hmdb51'. Choose one of kinetics400, "):
        preset("hmdb51")
