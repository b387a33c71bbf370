"""Which image transformers can be adapted, and do all laws hold? ``python -m benchmarks.coverage [library ...]``.

Every model of the catalogue is built small with random weights and adapted with ``num_frames`` as the only option. The
results are written per model to ``results/coverage.json`` and as tables to the README of the benchmarks.
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
from peft_aim.attention import in_words
from peft_aim.tracing import Images, traits

TITLES = {
    "timm": "timm, models with attention and MLP blocks",
    "transformers": "transformers, image classifiers",
    "towers": "transformers, vision towers and backbones that take plain pixels",
    "torchvision": "torchvision",
    "open_clip": "open_clip, image towers",
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
    libraries, began = parser.parse_args().libraries, time.perf_counter()
    path = RESULTS / "coverage.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
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
    """Adapt a backbone and check the laws."""
    began = time.perf_counter()
    size = catalogue.image_size(backbone)
    facts = {"pixels": size, "parameters": sum(parameter.numel() for parameter in backbone.parameters())}
    try:
        found = laws.adapt(copy.deepcopy(backbone)).base_model.model.aim_clips.inspection
    except ValueError as error:
        return {**facts, "outcome": "rejected", "reason": _shortened(error)}
    if found.tower:  # open_clip's image towers are built separately
        reason = f"also takes text, so it does not classify clips as a whole; its image tower {found.tower} is adapted"
        return {**facts, "outcome": "not run", "reason": reason}
    facts |= {
        "blocks": len(found.blocks),
        "of": len(found.blocks) + len(found.left_out),
        "temporal attention": sorted({in_words(anatomy.attend) for anatomy in found.blocks.values()}),
    }
    if found.left_out:
        facts["left out"] = sorted({reason.split(" (its own forward")[0] for reason in found.left_out.values()})
    try:
        held = laws.check(lambda: copy.deepcopy(backbone), random_clips(backbone))
        outcome = {"outcome": "adapted", "laws": held}
    except Exception as error:  # a broken law or a crash, which breaks one as well
        outcome = {"outcome": "wrong", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {**facts, **outcome, "seconds": round(time.perf_counter() - began, 1)}


def random_clips(backbone: nn.Module) -> Images:
    """Return clips of noise, with a random brightness per frame, as inputs of a backbone."""
    generator, size = torch.Generator().manual_seed(0), catalogue.image_size(backbone)
    count = laws.CLIPS * laws.FRAMES
    images = torch.randn(count, 3, size, size, generator=generator) + torch.randn(count, 3, 1, 1, generator=generator)
    arguments = catalogue.inputs(backbone, images)
    return {name: argument.unflatten(0, (laws.CLIPS, laws.FRAMES)) for name, argument in arguments.items()}


def summary(rows: list[Row]) -> str:
    """Return the results in Markdown, with a row for each library."""
    names = ["library", "models", "adapted, all laws hold", "rejected", "adapted, a law fails", "not run"]
    lines = []
    for library in TITLES:
        own = [row for row in rows if row["library"] == library]
        count = Counter(row["outcome"] for row in own)
        share = f"{count['adapted']} ({count['adapted'] / len(own):.1%})" if own else "-"
        numbers = (len(own), share, count["rejected"], count["wrong"], count["not run"])
        lines.append(line(TITLES[library], *numbers))
    return headed(names, lines)


def by_family(rows: list[Row]) -> str:
    """Return the results in Markdown, with a table for each library and a row for each family."""
    names = ["family", "models", "adapted", "adapted blocks", "temporal attention", "why skipped or rejected"]
    parts = []
    for library, title in TITLES.items():
        families = defaultdict(list)
        for row in rows:
            if row["library"] == library:
                families[row["family"]].append(row)
        table = headed(names, [_family_line(name, own) for name, own in families.items()])
        parts.append(f"\n**{title}**\n\n{table}")
    return "\n".join(parts)


def _family_line(family: str, rows: list[Row]) -> str:
    adapted = [row for row in rows if row["outcome"] == "adapted"]
    blocks = sorted({f"{row['blocks']} of {row['of']}" for row in adapted if row["blocks"] < row["of"]})
    partly = f"{', '.join(blocks)} in some models" if blocks else "all" if adapted else "-"
    kinds = "; ".join(sorted({kind for row in adapted for kind in row["temporal attention"]})) or "-"
    reasons = Counter(row["reason"] for row in rows if row["outcome"] != "adapted")
    why = [f"{count} model{'s' * (count > 1)}: {reason}" for reason, count in reasons.most_common(3)]
    why += sorted({reason for row in adapted for reason in row.get("left out", [])})[:3]
    reason = "; ".join(why).replace("|", "/").replace("\n", " ") or "-"
    return line(family, len(rows), len(adapted), partly, kinds, reason)


def _families(wanted: str) -> list[tuple[str, list[str]]]:
    library, _, family = wanted.partition(":")
    families = defaultdict(list)
    for name in catalogue.names(library):
        families[catalogue.family(library, name)].append(name)
    return [(library, names) for name, names in families.items() if family in ("", name)]


def _line(rows: list[Row]) -> str:
    count = Counter(row["outcome"] for row in rows)
    wrong = [f"\n    {row['name']}: {row['reason']}" for row in rows if row["outcome"] == "wrong"]
    return f"{rows[0]['library']} {rows[0]['family']}: {dict(count)}{''.join(wrong)}"


def _shortened(error: Exception) -> str:
    """Return the first two observations that an error reports."""
    text = str(error)
    _, _, seen = text.partition("Candidates were:\n")
    lines = (seen.partition("\nIf the parts of a block")[0] or text).splitlines()
    return "; ".join(line.strip().split(" (its own forward")[0] for line in lines[:2])[:300]


if __name__ == "__main__":
    main()
