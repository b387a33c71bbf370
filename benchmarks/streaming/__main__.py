"""What does a frame of a live video cost? ``python -m benchmarks.streaming``, about 15 minutes on two cores.

A causal adapter that gets the next frame of a :class:`peft_aim.streaming.Stream` is compared with AIM on a sliding
window, whose frames are all computed again for each new one. Arithmetic and memory are counted for windows of several
lengths; times are ratios within the run, for one length, compiled and not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend

from benchmarks.cost.plan import QUICK, Plan
from benchmarks.measuring.counting import Alive, gmac
from benchmarks.measuring.timing import in_turns, ratio
from benchmarks.methods import rivals
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.streaming.tables import publish
from peft_aim.streaming import Stream

Facts = dict[str, Any]
AS_TRAINED = rivals.OVER_TIME[rivals.AS_TRAINED]
# Options of AIM and number of frames.
ROWS = (("as published", {}, (8, 16, 32)), ("as trained by `peft-aim train`", AS_TRAINED, (8,)))


@torch.no_grad()
def counted(plan: Plan, frames: int, **options: Any) -> Facts:
    """Count arithmetic and memory of a frame, for windows of a number of frames.

    Returns:
        Multiply-adds in units of 10^9 (GMAC), of the window, and of the cheapest and the most expensive frame of a
        stream; the peak of live tensors of both in MB; and what the stream remembers after the first frame and after
        more than a window, in MB.
    """
    window = plan.ready(rivals.aim(plan.model(), plan.classes, frames, **options)).eval()
    clips = plan.clips(frames)
    facts = {
        "frames": frames,
        "window_gmac": gmac(lambda: window(clips)),
        "window_peak_mb": peak(lambda: window(clips)),
    }
    model = causal(plan, frames, **options)
    facts["clip_gmac"] = gmac(lambda: model(clips)) / frames
    stream, frame, of_frames, remembered = Stream(model), clips[:, 0], [], []
    stream.push(frame)
    for _ in range(frames + 2):
        remembered.append(sum(tensor.nbytes for tensor in stream.state_dict().values()) / 1e6)
        of_frames.append(gmac(lambda: stream.push(frame)))
    facts |= {"least_gmac": min(of_frames), "most_gmac": max(of_frames), "peak_mb": peak(lambda: stream.push(frame))}
    return {**facts, "first_mb": remembered[0], "last_mb": remembered[-1]}


def causal(plan: Plan, frames: int, **options: Any) -> nn.Module:
    """Return the backbone with a causal adapter."""
    return plan.ready(rivals.aim(plan.model(), plan.classes, frames, causal=True, **options)).eval()


def peak(function: Callable[[], object]) -> float:
    """Return the peak memory of live tensors in a call, in MB, without those that existed before."""
    with Alive() as alive:
        function()
    return alive.peak / 1e6


@torch.no_grad()
def timed(plan: Plan) -> Facts:
    """Time a frame in both ways, compiled and not, in turns.

    Returns:
        Seconds by name, their ratios to the window, and how often the compiled stream was compiled.
    """
    clips = plan.clips()
    window, model = plan.ready(rivals.aim(plan.model(), plan.classes, plan.frames)).eval(), causal(plan, plan.frames)
    compiled, graphs = compiled_stream(plan, model, clips)
    fast_window = torch.compile(window, backend=plan.compiler)
    stream = Stream(model)
    functions = {
        "window": lambda: window(clips),
        "stream": lambda: stream.push(clips[:, 0]),
        "window, compiled": lambda: fast_window(clips),
        "stream, compiled": lambda: compiled.push(clips[:, 0]),
    }
    functions["stream, compiled"]()  # the first frames are not
    seconds = in_turns(functions, plan.rounds)
    ratios = {
        "stream / window": ratio(seconds["stream"], seconds["window"]),
        "stream / window, compiled": ratio(seconds["stream, compiled"], seconds["window, compiled"]),
    }
    return {"seconds": seconds, "ratios": ratios, **graphs}


def compiled_stream(plan: Plan, model: nn.Module, clips: Tensor) -> tuple[Stream, Facts]:
    """Return a stream of the compiled model after two windows, and the number of graphs after 3 frames and at the end.

    The first frame runs uncompiled.
    """
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        graphs.append(1)
        return lookup_backend(plan.compiler)(graph, examples)

    stream, counts = Stream(torch.compile(model, backend=backend)), []
    for _ in range(2 * plan.frames):
        stream.push(clips[:, 0])
        counts.append(len(graphs))
    return stream, {"graphs": counts[2], "graphs_at_the_end": counts[-1]}


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``streaming.json`` and the table."""
    parser = argparse.ArgumentParser("benchmarks.streaming", description=__doc__.splitlines()[0])
    given, command = parse(parser, argv)
    plan = QUICK if given.quick else Plan()
    rows = []
    for name, options, lengths in ROWS:
        for frames in (2,) if given.quick else lengths:
            rows.append({"row": name, **counted(plan, frames, **options)})
            print(rows[-1], flush=True)
    facts = {"plan": asdict(replace(plan, growth={}, attach={})), "threads": torch.get_num_threads(), "rows": rows}
    print(record("streaming", command, 0, given.output, **facts, **timed(plan)))
    publish(given.output)


if __name__ == "__main__":
    main()
