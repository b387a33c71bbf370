"""``peft-aim convert``: convert a checkpoint of the official code to an adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peft import PeftModel

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source
from peft_aim.video.recipe import PRESETS, Recipe


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "convert",
        "Convert a checkpoint of the official AIM code to a PEFT adapter.",
        "peft-aim convert vit_b_clip_8frame_k400.pth k400 --model vit_base_patch16_clip_quickgelu_224.openai "
        "--recipe kinetics400",
    )
    parser.add_argument("checkpoint", help="the .pth file; it is loaded without running any code it may contain")
    parser.add_argument("output", metavar="OUT", help="new or empty folder for the adapter")
    parser.add_argument(
        "--scale",
        type=float,
        metavar="X",
        help="factor on the joint adapter (default: 1.0 for --recipe ssv2, else 0.5)",
    )
    parser.add_argument(
        "--recipe", choices=PRESETS, help="recipe it was trained with: sets frame sampling, views and scale"
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one per line (default: 0, 1, ...)")
    add_backbone(parser, required=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert the checkpoint, save the adapter and print its settings."""
    from peft_aim.convert import from_official
    from peft_aim.video.backbones import load_backbone
    from peft_aim.video.description import Description
    from peft_aim.video.output import check_output

    check_output(Path(arguments.output))
    recipe = PRESETS[arguments.recipe] if arguments.recipe else Recipe()
    origin = source(arguments)
    backbone, preprocessing = load_backbone(origin)
    scale = recipe.scale if arguments.scale is None else arguments.scale
    if not arguments.recipe:
        print(
            "Note: the checkpoint does not record how it was trained. Assuming one frame per segment, 1 x 1 views "
            f"(clips x crops) and scale {scale}. If you know its recipe, pass it as --recipe: {', '.join(PRESETS)}.",
            file=sys.stderr,
        )
    model = from_official(arguments.checkpoint, backbone, scale)
    config = model.active_peft_config
    names = _class_names(arguments.classes, config.num_labels)
    config.id2label = dict(enumerate(names))
    recipe = recipe.for_frames(config.num_frames)
    Description.new(recipe, preprocessing, origin.resolved(backbone), names, trained=False).write(config)
    _save(model, arguments.output)
    print(
        f"{config.num_frames} frames, {config.num_labels} classes, {config.temporal_adapters} temporal adapter(s), "
        f"scale {config.scale}, {model.get_nb_trainable_parameters()[0]:,} trainable parameters; "
        f"saved to {arguments.output}"
    )
    return 0


def _class_names(file: str | None, count: int) -> list[str]:
    """Return the class names in a file, or numbers if none is given.

    Raises:
        ValueError: If there are more or fewer names than the checkpoint has classes.
    """
    from peft_aim.video.data import read_names

    names = read_names(file) if file else [str(i) for i in range(count)]
    if len(names) != count:
        raise ValueError(
            f"{file} lists {len(names)} class name(s), but the checkpoint has {count} classes. Give one name per line."
        )
    return names


def _save(model: PeftModel, output: str) -> None:
    """Save the adapter.

    Raises:
        OSError: If the disk is full or read-only.
    """
    from peft_aim.video.output import raise_if_full

    try:
        model.save_pretrained(output, save_embedding_layers=False)  # else PEFT asks the Hub for text embeddings
    except Exception as error:
        raise_if_full(error, output, "convert it again")
        raise
