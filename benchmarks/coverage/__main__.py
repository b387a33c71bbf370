"""Which image transformers can be adapted, and do all laws hold? ``python -m benchmarks.coverage [library ...]``.

Every model of the catalogue is built small with random weights and adapted with ``num_frames`` as the only option, and
again with ``temporal="auto"`` if attention cannot run over time in some of its blocks. The results are written per
model to ``results/coverage.json`` and as tables to the README of the benchmarks.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn

from benchmarks.coverage import catalogue, laws
from benchmarks.reporting.record import RESULTS, record
from benchmarks.reporting.tables import FRONT, HERE, headed, insert, line
from peft_aim.backbone import Inspection
from peft_aim.layers import AIMLayer, TemporalAttention, TemporalConvolution
from peft_aim.tracing import Images, traits

TITLES = {
    "timm": "timm, models with attention and MLP blocks",
    "transformers": "transformers, image classifiers",
    "towers": "transformers, vision towers and backbones that take plain pixels",
    "torchvision": "torchvision",
    "open_clip": "open_clip, image towers",
    "home_made": "home-made: vit-pytorch, image classifiers",
}
Row = dict[str, Any]


def main() -> None:
    """Examine the given libraries or families ("timm:swin_transformer"); others keep their earlier results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "libraries",
        nargs="*",
        default=catalogue.LIBRARIES,
        help=f"of {', '.join(catalogue.LIBRARIES)}, or families of them (timm:swin_transformer); default: all",
    )
    parser.add_argument(
        "--auto", action="store_true", help='only add temporal="auto" to the models in the record that lack it'
    )
    given, began = parser.parse_args(), time.perf_counter()
    libraries, path = given.libraries, RESULTS / "coverage.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    if given.auto:
        add_auto(rows, began)
        libraries = []
    rows = [row for row in rows if not {row["library"], f"{row['library']}:{row['family']}"} & {*libraries}]
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for library in libraries:
            for of_family in pool.map(examine_family, *zip(*_families(library), strict=True)):
                rows += of_family
                print(_line(of_family), flush=True)
                keep(rows, began)  # a later crash loses none of these results
    insert("coverage", summary(rows), FRONT)
    insert("coverage", f"{summary(rows)}\n{by_family(rows)}", HERE)
    print(summary(rows))


def add_auto(rows: list[Row], began: float) -> None:
    """Examine the models of a record with ``temporal="auto"`` where that differs, and keep the results."""
    differ = [row for row in rows if (row["outcome"] == "rejected" or row.get("left out")) and "auto" not in row]
    differ.sort(key=lambda row: row["outcome"] != "rejected")  # an interrupted run has those that matter most
    known = [row for row in differ if "same_as" not in row]
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        names = [(row["library"], row["name"]) for row in known]
        for row, found in zip(known, pool.map(examine_auto, *zip(*names, strict=True)), strict=True):
            for other in differ:
                if other is row or (other["library"], other.get("same_as")) == (row["library"], row["name"]):
                    other["auto"] = found
            print(row["library"], row["name"], found["outcome"], found.get("reason", ""), flush=True)
            keep(rows, began)


def examine_auto(library: str, name: str) -> Row:
    """Build a model and examine it with ``temporal="auto"``."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    return adapted(catalogue.build(library, name), "auto")


def keep(rows: list[Row], began: float) -> None:
    """Write the results so far, in the order of the catalogue."""
    order = {library: position for position, library in enumerate(catalogue.LIBRARIES)}
    rows.sort(key=lambda row: (order[row["library"]], row["family"], row["name"]))
    minutes = round((time.perf_counter() - began) / 60, 1)
    record("coverage", "python -m benchmarks.coverage", seed=0, minutes=minutes, rows=rows)


def examine_family(library: str, names: list[str]) -> list[Row]:
    """Examine the models of a family, but only the first of those with the same structure."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    known: dict[tuple, Row] = {}
    rows = []
    for name in names:
        row = {"library": library, "family": catalogue.family(library, name), "name": name}
        try:
            backbone = catalogue.build(library, name)
        except Exception as error:
            rows.append({**row, "outcome": "not run", "reason": _shortened(error)})
            continue
        alike = (traits(backbone), catalogue.image_size(backbone))
        if alike in known:
            rows.append({**known[alike], **row, "same_as": known[alike]["name"]})
        else:
            known[alike] = {**row, **examine(backbone)}
            rows.append(known[alike])
    return rows


def examine(backbone: nn.Module) -> Row:
    """Adapt a backbone and check the laws; with ``temporal="auto"`` as well, where that differs."""
    size = catalogue.image_size(backbone)
    facts = {"pixels": size, "parameters": sum(parameter.numel() for parameter in backbone.parameters())}
    facts |= adapted(backbone, "attention")
    if facts["outcome"] == "rejected" or facts.get("left out"):
        facts["auto"] = adapted(backbone, "auto")
    return facts


def adapted(backbone: nn.Module, temporal: str) -> Row:
    """Adapt a backbone with a kind of temporal branch, and check the laws."""
    began = time.perf_counter()
    try:
        model = laws.adapt(copy.deepcopy(backbone), temporal=temporal).base_model.model
    except ValueError as error:
        return {"outcome": "rejected", "reason": _shortened(error)}
    found = model.aim_clips.inspection
    if found.tower:  # open_clip's image towers are built separately
        reason = f"also takes text, so it does not classify clips as a whole; its image tower {found.tower} is adapted"
        return {"outcome": "not run", "reason": reason}
    facts = described(model, found)
    try:
        held = laws.check(lambda: copy.deepcopy(backbone), random_clips(backbone), temporal)
        outcome = {"outcome": "adapted", "laws": held}
    except Exception as error:  # a broken law or a crash, which breaks one as well
        outcome = {"outcome": "wrong", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {**facts, **outcome, "seconds": round(time.perf_counter() - began, 1)}


def described(model: nn.Module, found: Inspection) -> Row:
    """Return how many blocks have adapters, how information passes between frames, and why blocks are left out."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, AIMLayer)}
    branches = {name: m.aim_settings["default"].temporal for name, m in layers.items() if m.has("default", "temporal")}
    facts = {
        "blocks": len(branches),
        "of": len({*found.blocks, *found.left_out, *branches}),
        "temporal attention": sorted({str(b) for b in branches.values() if isinstance(b, TemporalAttention)}),
        "convolved": sum(isinstance(branch, TemporalConvolution) for branch in branches.values()),
    }
    left_out = {reason for name, reason in found.left_out.items() if name not in branches}
    return {**facts, **({"left out": sorted(r.split(" (its own forward")[0] for r in left_out)} if left_out else {})}


def random_clips(backbone: nn.Module) -> Images:
    """Return clips of noise, with a random brightness per frame, as inputs of a backbone."""
    generator, size = torch.Generator().manual_seed(0), catalogue.image_size(backbone)
    count = laws.CLIPS * laws.FRAMES
    images = torch.randn(count, 3, size, size, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)
    arguments = catalogue.inputs(backbone, images)
    return {name: argument.unflatten(0, (laws.CLIPS, laws.FRAMES)) for name, argument in arguments.items()}


def summary(rows: list[Row]) -> str:
    """Return the results in Markdown, with a row for each library."""
    names = ["library", "models", "temporal attention", '`temporal="auto"`', "rejected", "a law fails", "not run"]
    lines = []
    for library in TITLES:
        own = [row for row in rows if row["library"] == library]
        attention, auto = (Counter(row["outcome"] for row in found) for found in (own, map(in_auto, own)))
        shares = [
            f"{count['adapted']} ({count['adapted'] / len(own):.1%})" if own else "-" for count in (attention, auto)
        ]
        wrong = attention["wrong"] + auto["wrong"]
        lines.append(line(TITLES[library], len(own), *shares, auto["rejected"], wrong, auto["not run"]))
    return headed(names, lines)


def in_auto(row: Row) -> Row:
    """Return the results of a model with ``temporal="auto"``: the same, if attention runs over time in all blocks."""
    return row.get("auto", row)


def by_family(rows: list[Row]) -> str:
    """Return the results in Markdown, with a table for each library and a row for each family."""
    names = [
        "family",
        "models",
        "temporal attention",
        "in blocks",
        '`temporal="auto"`',
        "how attention runs over time",
    ]
    parts = []
    for library, title in TITLES.items():
        families = defaultdict(list)
        for row in rows:
            if row["library"] == library:
                families[row["family"]].append(row)
        table = headed([*names, "why not"], [_family_line(name, own) for name, own in families.items()])
        parts.append(f"\n**{title}**\n\n{table}")
    return "\n".join(parts)


def _family_line(family: str, rows: list[Row]) -> str:
    adapted = [row for row in rows if row["outcome"] == "adapted"]
    auto = sum(in_auto(row)["outcome"] == "adapted" for row in rows)
    blocks = sorted({f"{row['blocks']} of {row['of']}" for row in adapted if row["blocks"] < row["of"]})
    partly = f"{', '.join(blocks)} in some models" if blocks else "all" if adapted else "-"
    kinds = "; ".join(sorted({kind for row in adapted for kind in row["temporal attention"]})) or "-"
    reasons = Counter(row["reason"] for row in rows if row["outcome"] != "adapted")
    why = [f"{count} model{'s' * (count > 1)}: {reason}" for reason, count in reasons.most_common(3)]
    why += sorted({reason for row in adapted for reason in row.get("left out", [])})[:3]
    reason = "; ".join(why).replace("|", "/").replace("\n", " ") or "-"
    return line(family, len(rows), len(adapted), partly, auto, kinds, reason)


def _families(wanted: str) -> list[tuple[str, list[str]]]:
    library, _, family = wanted.partition(":")
    families = defaultdict(list)
    for name in catalogue.names(library):
        families[catalogue.family(library, name)].append(name)
    return [(library, names) for name, names in families.items() if family in ("", name)]


def _line(rows: list[Row]) -> str:
    counts = [dict(Counter(row["outcome"] for row in found)) for found in (rows, map(in_auto, rows))]
    both = [found for row in rows for found in (row, row.get("auto", {})) if found.get("outcome") == "wrong"]
    wrong = [f"\n    {row.get('name', 'with auto')}: {row['reason']}" for row in both]
    return f"{rows[0]['library']} {rows[0]['family']}: {counts[0]}, auto {counts[1]}{''.join(wrong)}"


def _shortened(error: Exception) -> str:
    """Return the first two observations that an error reports."""
    text = str(error)
    _, _, seen = text.partition("Candidates were:\n")
    lines = (seen.partition("\nIf the parts of a block")[0] or text).splitlines()
    return "; ".join(line.strip().split(" (its own forward")[0] for line in lines[:2])[:300]


if __name__ == "__main__":
    main()
