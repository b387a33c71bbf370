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
from collections.abc import Mapping
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
    parser.add_argument(
        "--new-laws", action="store_true", help="only check the laws that the models in the record lack, and add them"
    )
    given, began = parser.parse_args(), time.perf_counter()
    libraries, path = given.libraries, RESULTS / "coverage.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    if given.auto:
        add_auto(rows, began)
        libraries = []
    if given.new_laws:
        rows = add_laws(rows, libraries, began)
        libraries = []
    rows = [row for row in rows if not _is_wanted(row, libraries)]
    with workers() as pool:
        for library in libraries:
            for of_family in pool.map(examine_family, *zip(*_families(library), strict=True)):
                rows += of_family
                print(_line(of_family), flush=True)
                keep(rows, began)  # a later crash loses none of these results
    insert("coverage", summary(rows), FRONT)
    insert("coverage", f"{summary(rows)}\n{by_family(rows)}", HERE)
    print(summary(rows))


def workers() -> ProcessPoolExecutor:
    """Return processes that examine models, one for each CPU core."""
    return ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def add_auto(rows: list[Row], began: float) -> None:
    """Examine the models of a record with ``temporal="auto"`` where that differs, and keep the results."""
    differ = [row for row in rows if (row["outcome"] == "rejected" or row.get("left out")) and "auto" not in row]
    differ.sort(key=lambda row: row["outcome"] != "rejected")  # an interrupted run has those that matter most
    known = [row for row in differ if "same_as" not in row]
    with workers() as pool:
        names = [(row["library"], row["name"]) for row in known]
        for row, found in zip(known, pool.map(examine_auto, *zip(*names, strict=True)), strict=True):
            for other in differ:
                if other is row or (other["library"], other.get("same_as")) == (row["library"], row["name"]):
                    other["auto"] = found
            print(row["library"], row["name"], found["outcome"], found.get("reason", ""), flush=True)
            keep(rows, began)


def add_laws(rows: list[Row], libraries: list[str], began: float) -> list[Row]:
    """Check the laws that models of a record lack, and return all rows; an interrupted run can be resumed."""
    families = defaultdict(list)
    for row in rows:
        families[row["library"], row["family"]].append(row)
    lacking = [
        own
        for library in libraries
        for own in families.values()
        if _is_wanted(own[0], [library]) and any(map(lacks_laws, own))
    ]
    with workers() as pool:
        for old, new in zip(lacking, pool.map(examine_further, lacking), strict=True):
            rows = [row for row in rows if row not in old] + new
            print(_line(new), flush=True)
            keep(rows, began)
    return rows


def lacks_laws(row: Row) -> bool:
    """Whether a law has not been checked for an adapted model."""
    names = {law.__name__ for law in (*laws.LAWS, *laws.SLOW_LAWS)}
    return any("laws" in found and not names <= {*found["laws"]} for found in (row, in_auto(row)))


def examine_further(rows: list[Row]) -> list[Row]:
    """Check the laws that models of a family lack, but only for the first of those with the same structure."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    known: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: "same_as" in row):
        if "same_as" in row:
            known[row["name"]] = {**known[row["same_as"]], **{key: row[key] for key in ("name", "same_as")}}
            continue
        known[row["name"]] = row = copy.deepcopy(row)
        if lacks_laws(row):
            backbone = catalogue.build(row["library"], row["name"])
            for temporal, found in (("attention", row), ("auto", row.get("auto", {}))):
                if "laws" in found:
                    found.pop("reason", None)  # of a law that failed before
                    found.update(judged(backbone, temporal, found["laws"]))
    return [*known.values()]


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
    facts = {**described(model, found), **judged(backbone, temporal)}
    return {**facts, "seconds": round(time.perf_counter() - began, 1)}


def judged(backbone: nn.Module, temporal: str, known: Mapping[str, str] | None = None) -> Row:
    """Check the laws, except for those whose result is known."""
    try:
        clips = random_clips(backbone)
        held = laws.check(lambda: copy.deepcopy(backbone), clips, temporal, known, laws.SLOW_LAWS)
        return {"outcome": "adapted", "laws": held}
    except Exception as error:  # a broken law or a crash, which breaks one as well
        return {"outcome": "wrong", "reason": f"{type(error).__name__}: {error}"[:500]}


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
    names = [
        "library",
        "models",
        "temporal attention",
        '`temporal="auto"`',
        "`causal=True`",
        "exports, of those tried",
    ]
    lines = []
    for library in TITLES:
        own = [row for row in rows if row["library"] == library]
        attention, auto = (Counter(row["outcome"] for row in found) for found in (own, map(in_auto, own)))
        counts = attention["adapted"], auto["adapted"], sum(causal(row) == "holds" for row in own)
        shares = [f"{count} ({count / len(own):.1%})" if own else "-" for count in counts]
        wrong = attention["wrong"] + auto["wrong"]
        further = (exporting(own), auto["rejected"], wrong, auto["not run"])
        lines.append(line(TITLES[library], len(own), *shares, *further))
    return headed([*names, "rejected", "a law fails", "not run"], lines)


def causal(row: Row) -> str:
    """Return the result of the law of causal adapters, with temporal attention; an empty text if there is none."""
    return row.get("laws", {}).get(laws.causal_adapters_see_no_later_frame.__name__, "")


def exporting(rows: list[Row]) -> str:
    """Return how many of the models for which that was tried give the same scores in onnxruntime."""
    tried = [result for row in rows if (result := exports(row))]
    return f"{sum(result == 'holds' for result in tried)} of {len(tried)}" if tried else "-"


def exports(row: Row) -> str:
    """Return the result of the law of exported models; an empty text if it was not checked."""
    name = laws.onnxruntime_gives_the_same.__name__
    found = [result for r in (row, in_auto(row)) if (result := r.get("laws", {}).get(name, ""))]
    return max(found, key=lambda result: result != "holds", default="")


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
        "`causal=True`",
        "exports, of those tried",
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
    whole = sorted({causal(row).removeprefix("not offered: ") for row in adapted} - {"holds"})
    why += [f"not causal: {reason}" for reason in whole]
    why += sorted({f"not exported: {found.removeprefix('not offered: ')}" for found in map(exports, rows)} - GOOD)
    reason = "; ".join(why).replace("|", "/").replace("\n", " ") or "-"
    causally = sum(causal(row) == "holds" for row in rows)
    return line(family, len(rows), len(adapted), partly, auto, causally, exporting(rows), kinds, reason)


GOOD = {"not exported: holds", "not exported: "}


def _is_wanted(row: Row, libraries: list[str]) -> bool:
    return bool({row["library"], f"{row['library']}:{row['family']}"} & {*libraries})


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
