"""The README: its code runs, its links lead somewhere, and its figures are those of the records."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as tf
from torch.utils.data import Dataset
from videos import write

from peft_aim.__main__ import main
from peft_aim.video import recipe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
OF_BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
INSTALL = ['pip install -e ".[video]" && peft-aim demo', 'pip install -e ".[test]" && pytest']


def found(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


# Code.


class Clips(Dataset):
    """Two random clips, as the README describes its data set."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.randn(8, 3, 224, 224), "labels": index}


@pytest.fixture
def small_models(monkeypatch):
    """Build small backbones with fixed random weights instead of downloading large ones."""
    create = timm.create_model

    def small(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return create(name, embed_dim=32, num_heads=2, depth=2, patch_size=56, **options)

    def small_vit(name: str) -> tf.PreTrainedModel:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return tf.ViTForImageClassification(tf.ViTConfig(**sizes, patch_size=56))

    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.setattr(tf.AutoModelForImageClassification, "from_pretrained", small_vit)


def run_in_shell(lines: str) -> None:
    """Run the commands of peft-aim in this process; those that install are run by CI."""
    commands = lines.splitlines()
    for command in commands if commands != INSTALL else []:
        program, *arguments = shlex.split(command)
        assert program == "peft-aim" and main(arguments) == 0, command


@pytest.mark.filterwarnings("ignore:.*pin_memory")  # by the Trainer, without an accelerator
def test_all_code_runs_from_top_to_bottom(small_models, tmp_path, monkeypatch, folder):
    names: dict[str, Any] = {"dataset": Clips()}
    monkeypatch.setattr(recipe, "LEAST_STEPS", 12)  # the code has to run, not to learn
    first, *others = BLOCKS
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    exec(first[1], names)
    assert names["scores"].shape == (2, 400)
    assert {path.name for path in Path("my-task").iterdir()} >= {"adapter_model.safetensors", "README.md"}
    monkeypatch.chdir(tmp_path)
    write(Path("new.mp4"))
    for language, code in others:
        if language == "sh":
            run_in_shell(code)
        else:
            if not Path("other-task").exists():
                shutil.copytree("my-task", "other-task")
            exec(code, names)
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert list(Path("predictions").iterdir()) and list(Path("my-task").glob("checkpoint-*"))


# Links.


def anchors(text: str) -> set[str]:
    """Return the anchors of headings, as GitHub makes them."""
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in re.findall(r"^#+ (.*)", text, re.M)}


@pytest.mark.parametrize("readme", ["README.md", "benchmarks/README.md"])
def test_links_lead_somewhere(readme):
    text, folder = (ROOT / readme).read_text(), (ROOT / readme).parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert not path or (folder / path).exists(), link
        assert not anchor or anchor in anchors((folder / path).read_text() if path else text), link


def test_the_contents_name_all_sections():
    sections = re.findall(r"^## (.*)", README, re.M)
    assert re.findall(r"\[([^]]+)\]\(#", README[: README.index("\n## ")]) == sections


def test_it_is_short():
    assert README.count("\n") <= 220


def test_it_names_the_oldest_versions():
    about = importlib.metadata.metadata("peft-aim")
    required = [requirement.split(";")[0] for requirement in about.get_all("Requires-Dist")]
    oldest = dict(requirement.split(">=") for requirement in required if ">=" in requirement)  # extras come last
    text = " ".join(README.split())
    python = about["Requires-Python"].removeprefix(">=")
    versions = [f"Python {python}", *(f"{name} {oldest[name]}" for name in ("torch", "peft", "transformers"))]
    assert f"({', '.join(versions)} and timm {oldest['timm']}, or newer)" in text


# Figures.


@pytest.mark.parametrize("benchmark", ["real", "cost", "accuracy", "streaming", "early", "explain"])
def test_tables_are_those_of_the_records(benchmark):
    tables, record = importlib.import_module(f"benchmarks.{benchmark}.tables"), found(benchmark)
    assert benchmark != "real" or tables.front_table(record) in README
    assert tables.page(record) in OF_BENCHMARKS


def test_tables_of_other_devices_are_those_of_the_records():
    assert importlib.import_module("benchmarks.cost.tables").gpu_page(found("cost_gpu")) in OF_BENCHMARKS
    assert importlib.import_module("benchmarks.real.tables").short_page(found("real_cpu")) in OF_BENCHMARKS


@pytest.mark.parametrize(
    ("benchmark", "module"),
    [
        ("demo", "demo.tables"),
        ("token_mixers", "token_mixers.tables"),
        ("real_defaults", "real.defaults"),
        ("exported", "exported.__main__"),
    ],
)
def test_smaller_tables_are_those_of_the_records(benchmark, module):
    table = importlib.import_module(f"benchmarks.{module}").table
    assert table(found(benchmark)["rows"]) in OF_BENCHMARKS


def test_results_in_the_text_are_those_of_the_records():
    text = " ".join(README.split())
    signs, *order = (row["results"]["views"]["1x1"]["top1"] for row in found("real_defaults")["rows"])
    order = sum(order) / len(order)
    assert f"reaches {signs:.1%} on *signs* at 224 px, and {order:.1%} on *order*" in text
    plan, curve = found("real")["plan"], found("real_defaults")["rows"][0]["curve"]
    assert f"{plan['size']} px and {plan['steps']} training steps" in text
    assert f"in {curve[-1]['epoch'] * 288 // 8} steps" in text  # 288 training videos, batches of 8


def test_results_on_real_videos_in_the_text_are_those_of_the_records():
    text = " ".join(OF_BENCHMARKS.split())
    speed = found("train_gpu")["speed"]
    top1 = found("train_gpu")["results"]["views"]["1x1"]["top1"]
    loader, model = (speed[f"{what}_clips_per_second"] for what in ("loader", "model"))
    assert f"reached {top1:.1%}" in text and f"({loader:.0f} clips/s) is faster than the model ({model:.0f}" in text
    tables = importlib.import_module("benchmarks.real.tables")
    *_, own, _, longer = tables.curves(found("real"))
    assert f"reaches 90% after {tables.steps_to(own['curve'])} steps" in text
    assert tables.steps_to(longer["curve"]) is None and f"at chance after {longer['curve'][-1]['step']}" in text


def test_attention_and_convolution_are_compared_by_the_records():
    over_time = importlib.import_module("benchmarks.over_time.__main__")
    assert over_time.table() in OF_BENCHMARKS
    accuracy, real = (importlib.import_module(f"benchmarks.{name}.tables") for name in ("accuracy", "real"))
    cost = importlib.import_module("benchmarks.cost.tables")
    assert accuracy.over_time_page(found("accuracy_over_time")) in OF_BENCHMARKS
    assert real.over_time_page(found("real_over_time")) in OF_BENCHMARKS
    assert cost.quantized_page(found("cost_quantized")) in OF_BENCHMARKS
    assert cost.attach_page(found("cost_attach")) in OF_BENCHMARKS
    assert cost.mixed_page(found("cost_mixed")) in OF_BENCHMARKS
    assert f"{found('cost_mixed')['rows'][-1]['arithmetic_ratio']:.3f} times the arithmetic" in README
    assert cost.over_time_page(found("cost_over_time")) in OF_BENCHMARKS
    rows = cost.by_row(found("cost_over_time")["rows"])
    aim, conv = rows["AIM"], rows["convolution over time + spatial + joint"]
    less = (1 - conv[key] / aim[key] for key in ("forward_gmac", "saved_mb"))
    expected = "needs {:.0%} less arithmetic forward, and saves {:.0%} fewer activations".format(*less)
    assert expected in " ".join(README.split())


def test_the_demo_succeeds_where_the_frozen_backbone_is_at_chance():
    for task in ("motion", "change"):
        chance, frozen, aim = (row["top-1"] for row in found("demo")["rows"] if row["task"] == task)
        assert aim >= 0.9 and frozen <= chance + 0.15


def test_coverage_is_that_of_the_record():
    tables = importlib.import_module("benchmarks.coverage.__main__")
    rows = found("coverage")["rows"]
    assert tables.summary(rows) in README
    assert f"{tables.summary(rows)}\n{tables.by_family(rows)}" in OF_BENCHMARKS
    adapted = re.findall(r"^\|.*\| (\d+) \| \d+ \([\d.]+%\) \| (\d+) \(", README, re.M)
    models, laws = (sum(int(pair[i]) for pair in adapted) for i in range(2))
    assert f"{laws} of the {models} models above are adapted" in README


def test_figures_in_the_text_are_those_of_the_records():
    text = " ".join(README.split())
    rows = {row["row"]: row for row in found("cost")["rows"]}
    aim, frozen = rows["AIM"], rows["frozen backbone, linear head"]
    assert f"gets {aim['parameters'] / 1e6:.0f} M trainable parameters" in text
    assert f"in a file of {aim['file_bytes'] / 2**20:.0f} MiB" in text
    assert f"inference takes {aim['forward_gmac'] / frozen['forward_gmac']:.2f} times the arithmetic" in text
    on_gpu = {row["row"]: row for row in found("cost_gpu")["rows"]}
    plain, block = on_gpu["AIM"], on_gpu['AIM, recompute="block"']
    whole, recomputed = (row["peak_mb"] / 1e3 for row in (plain, block))
    longer = block["step_ratio"] / plain["step_ratio"]
    assert f'take {whole:.1f} GB, or {recomputed:.1f} GB and {longer:.2f} times the time with "block"' in text
    assert f"in about {WORDS[round(found('demo')['seconds'] / 60)]} minutes" in text
    assert max(row["ratio"] for row in found("cost")["attach"]) < 2
    for row in found("published")["rows"]:
        numbers = f"{row['gflops']} | {row['parameters']} M | {row['memory']} GB | {row['ssv2']}% | {row['k400']}%"
        assert f"| {row['method']} | {numbers} |" in OF_BENCHMARKS
    live = found("streaming")["rows"][0]
    assert f"with {live['most_gmac']:.1f} GMAC for a frame in a ViT-B/16" in text
    assert f"window of {live['frames']} frames takes {live['window_gmac']:.0f} " in text
    settings = [rows[name] for name in importlib.import_module("benchmarks.cost.tables").SETTING.values()]
    saved = [f"{row['saved_mb']:,.0f}" for row in settings]
    steps = [row["forward_gmac"] + row["backward_gmac"] for row in settings]
    more = [f"{step / steps[0] - 1:.0%}" for step in steps[1:]]
    assert (
        "{} MB of activations become {}, {} or {} MB, for {}, {} or {} more arithmetic".format(*saved, *more) in text
    )
