"""What does AIM cost, compared with other methods and by its settings? ``python -m benchmarks.cost``, about an hour.

Counts multiply-adds and saved activations, and takes times as ratios within the run, for one backbone: frozen with a
linear head, with AIM, with the reference implementation of AIM, with LoRA over averaged frames, and fully fine-tuned,
over averaged frames and with divided space-time attention. Then it measures how AIM's cost grows, and what swapping
adapters costs. With ``--device cuda`` it measures only what depends on the device: the rows. ``--attach`` measures
what attaching an adapter costs, in minutes, and needs vit-pytorch. ``--quantized`` measures the memory of quantized
backbones, in a minute, and needs torchao and bitsandbytes. ``--mixed`` measures batches whose clips have several
adapters, in minutes.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from benchmarks.cost.attach import attaching
from benchmarks.cost.growth import growth
from benchmarks.cost.mixed import mixing
from benchmarks.cost.plan import QUICK, Plan
from benchmarks.cost.quantized import quantizing, versions
from benchmarks.cost.swap import swapping
from benchmarks.cost.tables import (
    FROZEN,
    PLAIN,
    REFERENCE,
    SETTING,
    publish,
    publish_attach,
    publish_gpu,
    publish_mixed,
    publish_over_time,
    publish_quantized,
)
from benchmarks.measuring.counting import cost_of_step, loss, peak_of_step
from benchmarks.measuring.timing import in_turns, ratio, settle
from benchmarks.methods import rivals
from benchmarks.methods.reference import reference_aim
from benchmarks.reporting.arguments import keep_published, parse
from benchmarks.reporting.record import record

Facts = dict[str, Any]
ON_GPU = {"dtype": "bfloat16", "batch": 32}


def rows(plan: Plan) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Return, for each row, the function that makes its model from the backbone."""
    classes, frames = plan.classes, plan.frames
    of_aim = rivals.trained_parameters(rivals.aim(plan.model(), classes, frames))
    return {
        FROZEN: lambda model: rivals.frozen(model, classes),
        **{name: lambda model, s=s: rivals.aim(model, classes, frames, recompute=s) for s, name in SETTING.items()},
        REFERENCE: lambda model: reference_aim(model, classes, frames),
        **{name: lambda model, o=o: rivals.aim(model, classes, frames, **o) for name, o in rivals.OVER_TIME.items()},
        "LoRA, frames averaged": lambda model: rivals.lora(model, classes, of_aim),
        "full fine-tuning, frames averaged": lambda model: rivals.full(model, classes),
        "full fine-tuning, divided space-time attention": lambda model: rivals.divided(model, classes, frames),
    }


class Stepper:
    """A training step (forward, backward and AdamW) and the inference of a model."""

    def __init__(self, model: nn.Module, clips: Tensor) -> None:
        self.model, self.clips = model, clips
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(self) -> None:
        """Run a training step."""
        loss(self.model(self.clips)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def infer(self) -> None:
        """Run inference."""
        self.model(self.clips)


def measure(plan: Plan, names: Sequence[str] = ()) -> list[Facts]:
    """Count the cost of all rows, or of those named, then time them in turns."""
    clips, found, steppers, on_gpu = plan.clips(), [], {}, plan.device == "cuda"
    for name, build in rows(plan).items():
        if names and name not in names:
            continue
        model = plan.ready(build(plan.model()))
        steppers[name] = Stepper(model, clips)
        counted = {} if on_gpu else cost_of_step(model, clips, loss)
        facts = {"row": name, **sizes(model), **counted, "peak_mb": peak(model, clips)}
        print(facts, flush=True)
        found.append(facts)
    compiled = () if names else (PLAIN,) if on_gpu else (FROZEN, PLAIN, REFERENCE)  # on a GPU it takes minutes
    for name in compiled:
        model = copy.deepcopy(steppers[name].model)
        model.compile(backend=plan.compiler)
        steppers[f"{name}, compiled"] = Stepper(model, clips)
        found.append({"row": f"{name}, compiled"})
    steps = in_turns({name: stepper.step for name, stepper in steppers.items()}, plan.rounds)
    for facts in found:
        if on_gpu and "peak_mb" not in facts:  # the allocator sees the memory inside compiled graphs
            facts["peak_mb"] = peak(steppers[facts["row"]].model, clips)
    for stepper in steppers.values():
        stepper.model.eval()
    inference = in_turns({name: stepper.infer for name, stepper in steppers.items()}, plan.rounds)
    for facts in found:
        facts["step_seconds"], facts["inference_seconds"] = steps[facts["row"]], inference[facts["row"]]
        facts["step_ratio"] = ratio(facts["step_seconds"], steps[REFERENCE])
        facts["inference_ratio"] = ratio(facts["inference_seconds"], inference[FROZEN])
    return found


def counts(plan: Plan) -> list[Facts]:
    """Count the cost of AIM and of its reference implementation on another backbone."""
    found, clips = [], plan.clips()
    for name, build in rows(plan).items():
        if name in (REFERENCE, *SETTING.values()):
            found.append({"row": name, **cost_of_step(plan.ready(build(plan.model())), clips, loss)})
            print(found[-1], flush=True)
    return found


def sizes(model: nn.Module) -> Facts:
    """Return the number of trainable parameters, and the size of their file."""
    trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    return {"parameters": sum(p.numel() for p in trained.values()), "file_bytes": len(save(trained))}


def peak(model: nn.Module, clips: Tensor) -> float:
    """Return the peak of memory during a step, beyond that before it, in MB: the allocator's on a GPU."""
    if clips.device.type != "cuda":
        return peak_of_step(model, clips, loss)
    settle()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(model(clips)).backward()
    settle()
    model.zero_grad()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def planned(given: argparse.Namespace) -> Plan:
    """Return what the command line asks for."""
    options = ("backbone", "device", "dtype", "batch", "rounds")
    changes = {name: getattr(given, name) for name in options if getattr(given, name) is not None}
    if given.backbone:
        changes |= {"with_gelu": None, "options": {}, "attach": {given.backbone: given.backbone}}
    return replace(usual(given), **changes)


def usual(given: argparse.Namespace) -> Plan:
    """Return the plan of the published results on the device that the command line asks for."""
    return QUICK if given.quick else replace(Plan(), **ON_GPU) if given.device == "cuda" else Plan()


def of(plan: Plan) -> Facts:
    """Return the facts that records of measurements with times have."""
    return {"threads": torch.get_num_threads(), "plan": asdict(plan)}


ALONE: dict[str, tuple[Callable[[Plan], Facts], Callable[[Path], None]]] = {
    "over_time": (
        lambda plan: of(plan) | {"rows": measure(plan, (FROZEN, REFERENCE, PLAIN, *rivals.OVER_TIME))},
        publish_over_time,
    ),
    "attach": (lambda plan: {"rows": attaching(plan.attach)}, publish_attach),
    "quantized": (
        lambda plan: of(plan) | {"rows": quantizing(plan), "quantizers": versions()},
        publish_quantized,
    ),
    "mixed": (lambda plan: of(plan) | {"rows": mixing(plan)}, publish_mixed),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``cost.json``, the plots and the tables."""
    parser = argparse.ArgumentParser("benchmarks.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="timm's name of another backbone")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, help="clips per step")
    parser.add_argument("--rounds", type=int, help="number of times that each time is taken")
    parser.add_argument("--over-time", action="store_true", help="measure attention and convolutions over time alone")
    parser.add_argument("--attach", action="store_true", help="measure what attaching an adapter costs alone")
    parser.add_argument("--quantized", action="store_true", help="measure the memory of quantized backbones alone")
    parser.add_argument("--mixed", action="store_true", help="measure batches with several adapters alone")
    given, command = parse(parser, argv, others=("backbone",))
    plan = planned(given)
    keep_published(parser, given, [name for name in ON_GPU if getattr(plan, name) != getattr(usual(given), name)])
    for name, (measured, make_table) in ALONE.items():
        if getattr(given, name):
            print(record(f"cost_{name}", command, 0, given.output, **measured(plan)))
            make_table(given.output)
            return
    facts = of(plan)
    facts["rows"] = measure(plan)
    if plan.device == "cuda":
        print(record("cost_gpu", command, 0, given.output, **facts))
        publish_gpu(given.output)
        return
    facts |= {"swapping": swapping(plan), "growth": growth(plan)}
    facts["gelu"] = counts(replace(plan, backbone=plan.with_gelu)) if plan.with_gelu else []
    print(record("cost", command, 0, given.output, **facts))
    publish(given.output)


if __name__ == "__main__":
    main()
