"""Commands on adapters from the Hub: one message that says what is wrong, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as tf
import zoo
from hub import hub_of_this_process
from peft import LoraConfig, get_peft_model
from videos import write

from peft_aim.__main__ import main
from peft_aim.video.backbones import Source
from peft_aim.video.data import Data
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.adapting import adapt

WEIGHTS = r".*adapter_model\.safetensors"
FAILURES = {
    "drop": (f"GET {WEIGHTS}", "from the Hub broke off ("),
    "garble": (f"GET {WEIGHTS}", "adapter_model.safetensors is broken ("),
    "500": (".*", "The Hub cannot be reached for adapter_config.json of you/task (it answers with status 500)"),
    "401": (".*", "The Hub does not let you read you/task (401). Check your token: log in with"),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_of_this_process(tmp_path / "home", monkeypatch) as running:
        yield running


@pytest.fixture(scope="module")
def task(tmp_path_factory, image_model):
    """An adapter as peft-aim train saves it, and the arguments of the command that uses it."""
    folder = tmp_path_factory.mktemp("task")
    video = write(folder / "video.mp4", count=4)
    model, description = adapt(Data(["dark", "light"], train=[]), Source(image_model), Recipe(frames=2))
    description.write(model.active_peft_config)
    model.save_pretrained(folder / "task")
    return folder / "task", [str(video), "--output", str(folder / "strips")]


@pytest.mark.parametrize("how", FAILURES)
def test_failed_downloads_are_said_as_they_are_and_a_retry_works(hub, task, how, capsys):
    folder, arguments = task
    hub.add("you/task", folder)
    where, message = FAILURES[how]
    hub.fails(how, where)
    assert main(["predict", "you/task", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    hub.fails(how, "nothing")
    if "Delete " in error:
        Path(error.split("Delete ")[1].split(",")[0]).unlink()
    assert main(["predict", "you/task", *arguments]) == 0


def test_other_failures_are_said_as_they_are(hub, task, tmp_path, capsys):
    folder, arguments = task
    hub.add("you/private", folder, private=True)
    (tmp_path / "config").mkdir()
    get_peft_model(zoo.build("hf_vit"), LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path / "lora")
    hub.add("you/lora", tmp_path / "lora")
    hub.add("you/vit", tf.ViTConfig().save_pretrained(tmp_path / "config") or tmp_path / "config")
    for name, message in (
        ("you/private", "or a private one that you have no right to read (401)"),
        ("you/lora", "you/lora is an adapter of LORA, not of AIM. Give a saved AIM adapter."),
        ("you/vit", "you/vit on the Hub has no file adapter_config.json in revision 'main'"),
    ):
        for command in (["predict", name, *arguments], ["evaluate", name, arguments[0]]):
            assert main(command) == 1
            error = capsys.readouterr().err
            assert error.startswith(f"peft-aim {command[0]}: {name} cannot be loaded as an AIM adapter: ")
            assert message in error and "Traceback" not in error
