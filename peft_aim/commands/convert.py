"""``peft-aim convert``: an adapter from a checkpoint of the official code."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source
from peft_aim.video.recipe import PRESETS, Recipe


def add(commands: Commands) -> None:
    """Say what it takes."""
    parser = new_command(
        commands,
        "convert",
        "Turn a checkpoint of the official AIM code into an adapter.",
        "peft-aim convert vit_b_clip_8frame_k400.pth k400 --model vit_base_patch16_clip_quickgelu_224.openai "
        "--recipe kinetics400",
    )
    parser.add_argument("checkpoint", help="the .pth file; it is read without running what may be in it")
    parser.add_argument("output", metavar="OUT", help="new or empty folder for the adapter")
    parser.add_argument("--scale", type=float, help="factor on the joint adapter: 0.5 (default), or 1.0 for SSv2")
    parser.add_argument("--recipe", choices=PRESETS, help="how it was trained: says sampling, views and scale")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one in each line; else 0, 1 ...")
    add_backbone(parser, required=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was found."""
    from peft_aim.convert import from_official
    from peft_aim.video.backbones import load_backbone
    from peft_aim.video.data import read_names
    from peft_aim.video.description import Description
    from peft_aim.video.training import check_output

    check_output(Path(arguments.output), overwrite=False)
    recipe = PRESETS[arguments.recipe] if arguments.recipe else Recipe()
    origin = source(arguments)
    backbone, preprocessing = load_backbone(origin)
    scale = recipe.scale if arguments.scale is None else arguments.scale
    if not arguments.recipe:
        print(
            "Note: the file doesn't say how it was trained. Assumed: one frame per segment, 1 x 1 views, scale "
            f"{scale}. Better say it with --recipe, {', '.join(PRESETS)}.",
            file=sys.stderr,
        )
    model = from_official(arguments.checkpoint, backbone, scale)
    config = model.active_peft_config
    names = read_names(arguments.classes) if arguments.classes else [str(i) for i in range(config.num_labels)]
    if len(names) != config.num_labels:
        raise ValueError(
            f"{arguments.classes} names {len(names)} classes, but the checkpoint has {config.num_labels}."
        )
    config.id2label = dict(enumerate(names))
    if recipe.stride:
        recipe = replace(recipe, stride=max(1, recipe.stride * recipe.frames // config.num_frames))
    recipe = replace(recipe, frames=config.num_frames)
    Description.new(recipe, preprocessing, origin.resolved(backbone), names, trained=False).write(config)
    model.save_pretrained(arguments.output, save_embedding_layers=False)  # of text: PEFT would ask the Hub
    print(
        f"{config.num_frames} frames, {config.num_labels} classes, {config.temporal_adapters} temporal adapter(s), "
        f"scale {config.scale}: {model.get_nb_trainable_parameters()[0]:,} parameters, in {arguments.output}"
    )
    return 0
