"""``peft-aim export``: an adapter and its backbone as one file, for onnxruntime or torch."""

from __future__ import annotations

import argparse

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "export",
        "Export an adapter and its backbone as one file, which takes uint8 frames (B, T, H, W, 3) and returns "
        "probabilities (B, classes).",
        "peft-aim export my-task my-task.onnx --to onnx --videos videos",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    parser.add_argument("out", help="file to write, NAME.onnx or NAME.pt2")
    parser.add_argument(
        "--to",
        choices=("onnx", "pt2"),
        help="onnx for onnxruntime, pt2 for torch.export.load (default: what OUT ends in)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="fp16 takes half of the memory, int8 a quarter for the weights of linear layers, which onnxruntime or "
        "torchao quantizes (default: fp32)",
    )
    group = parser.add_argument_group("comparison with the model")
    group.add_argument("--videos", metavar="VIDEOS", help="labeled videos, as for evaluate, to compare the top-1 on")
    group.add_argument("--split", default="val", help="split of the videos (default: val)")
    group.add_argument("--root", metavar="DIR", help="folder that paths in a list or table are relative to")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export the adapter and print how exact the file is."""
    from peft_aim.video.exporting import export

    options = {name: getattr(arguments, name) for name in ("to", "precision", "videos", "split", "root")}
    print(export(arguments.adapter, arguments.out, source=source(arguments), **options))
    return 0
