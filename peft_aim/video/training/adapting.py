"""A backbone with a new adapter, by a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from peft_aim.config import AIMConfig
from peft_aim.video.backbones import Source, load_backbone
from peft_aim.video.data import Data
from peft_aim.video.description import Description
from peft_aim.video.problem_type import SINGLE_LABEL
from peft_aim.video.recipe import Recipe


def adapt(data: Data, source: Source, recipe: Recipe, **aim_options: Any) -> tuple[PeftModel, Description]:
    """Load the backbone, add a new adapter, and return both with the adapter's description.

    Raises:
        ValueError: If another problem type is asked for than that of the videos.
    """
    asked = aim_options.get("problem_type", data.problem_type)
    if asked != data.problem_type:
        raise ValueError(
            f"problem_type={asked!r} is asked for, but the labels of the videos are read as {data.problem_type!r}. "
            f"Read them as such, with Data.find(..., problem_type={asked!r})."
        )
    torch.manual_seed(recipe.seed)
    backbone, preprocessing = load_backbone(source)
    temporal = aim_options.get("temporal", recipe.temporal)
    temporal = "attention" if temporal is True else temporal
    recipe = replace(recipe, temporal=temporal or recipe.temporal).with_order()
    branch = ("temporal_layers", "causal", "temporal_adapters", "temporal_conv", "temporal_embedding")
    of_backbone = getattr(getattr(backbone, "config", None), "problem_type", None)
    drops = temporal or aim_options.get("joint", True)
    options = {
        "num_frames": recipe.frames,
        "id2label": dict(enumerate(data.classes)),
        "scale": recipe.scale,
        "temporal": temporal,
        **({name: getattr(recipe, name) for name in branch} if temporal else {}),
        "drop_path": recipe.drop_path if drops else 0.0,
        "head_dropout": recipe.head_dropout,
        "recompute": recipe.recompute,
        "final_norm": True,
        # Saved adapters have the backbone's, unless they have their own.
        "problem_type": data.problem_type if of_backbone or data.problem_type != SINGLE_LABEL else None,
    }
    adapted = get_peft_model(backbone, AIMConfig(**{**options, **aim_options}))
    recipe = recipe.for_width(token_width(adapted))
    kind, origin = adapted.active_peft_config.problem_type, source.resolved(backbone)
    return adapted, Description.new(recipe, preprocessing, origin, data.classes, problem_type=kind)


def token_width(adapted: PeftModel) -> int:
    """Return the token width of a backbone, that of its widest blocks if they differ."""
    found = adapted.get_base_model().aim_clips.inspection
    return max(block.width for block in (found.all_blocks or found.modules).values())
