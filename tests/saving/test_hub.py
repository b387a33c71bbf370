"""Adapters on the Hub, over a bad line: nothing is left behind, a retry works, and every cause is said as it is."""

from __future__ import annotations

import re

import huggingface_hub
import pytest
import torch
import zoo
from hub import Hub, hub_of_this_process
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from peft_aim import AIMConfig, hotswap_adapter

WEIGHTS = r".*adapter_model\.safetensors"
FAULTS = {
    "500": f"HEAD {WEIGHTS}|GET {WEIGHTS}",
    "drop": f"GET {WEIGHTS}",
    "truncate": f"GET {WEIGHTS}",
    "garble": f"GET {WEIGHTS}",
    "503": f"GET {WEIGHTS}",
    "401": f"GET {WEIGHTS}",
}
FILE = "adapter_model.safetensors"
BROKE_OFF = f"The download of {FILE} of you/task from the Hub broke off"
REASONS = {
    "500": rf"The Hub cannot be reached for {FILE} of you/task \(it answers with status 500\), and the cache .*hub "
    "has no copy. Check the connection and try again.",
    "drop": rf"{BROKE_OFF} \(\w+: .*\), so nothing was loaded. Try again.",
    "truncate": rf"{BROKE_OFF} \(.*\), so nothing was loaded. Try again.",
    "garble": rf"{FILE} is broken \(.*\), so nothing was loaded. Delete .*blobs.*, and load it again.",
    "503": rf"The Hub failed to send {FILE} of you/task \(503\), so nothing was loaded. Try again later.",
    "401": r"The Hub does not let you read you/task \(401\). Check your token: log in with `hf auth login`, or pass",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_of_this_process(tmp_path / "home", monkeypatch) as running:
        yield running


def adapt(adapter_name: str = "default", **options: object) -> PeftModel:
    config = AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, "num_labels": 2, **options})
    return get_peft_model(zoo.build("timm_vit"), config, adapter_name=adapter_name).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a saved adapter, and the scores of its model."""
    torch.manual_seed(0)
    model, folder = adapt(), tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return folder, model(zoo.make_clips())


def state_of(model: nn.Module) -> tuple[str, dict, set, list]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return repr(model), {k: t.clone() for k, t in model.state_dict().items()}, set(vars(model)), hooks


def same_state(one: tuple, other: tuple) -> bool:
    tensors = one[1].keys() == other[1].keys() and all(torch.equal(t, other[1][k]) for k, t in one[1].items())
    return tensors and (one[0], one[2:]) == (other[0], other[2:])


def repair(message: str) -> None:
    """Do what a message about a broken file asks for."""
    if found := re.search(r"Delete (\S+), and load it again", message):
        huggingface_hub.file_download.Path(found[1]).unlink()


@pytest.mark.parametrize("how", FAULTS)
def test_a_failed_download_leaves_the_backbone_as_it_was(hub, trained, how):
    folder, scores = trained
    hub.add("you/task", folder)
    backbone = zoo.build("timm_vit")
    before = state_of(backbone)
    hub.fails(how, FAULTS[how])
    for _ in range(2):
        with pytest.raises(ValueError, match=REASONS[how]) as caught:
            PeftModel.from_pretrained(backbone, "you/task")
        assert same_state(state_of(backbone), before)
    hub.fails(how, "nothing")
    repair(str(caught.value))
    assert torch.equal(PeftModel.from_pretrained(backbone, "you/task")(zoo.make_clips()), scores)


@pytest.mark.parametrize("how", FAULTS)
def test_a_failed_download_leaves_other_adapters_as_they_were(hub, trained, how):
    folder, scores = trained
    hub.add("you/task", folder)
    model = adapt("mine", num_labels=3)
    before = state_of(model)
    hub.fails(how, FAULTS[how])
    with pytest.raises(ValueError, match=REASONS[how]) as caught:
        model.load_adapter("you/task", "task")
    assert same_state(state_of(model), before) and list(model.peft_config) == ["mine"]
    hub.fails(how, "nothing")
    repair(str(caught.value))
    model.load_adapter("you/task", "task")
    model.set_adapter("task")
    assert torch.equal(model(zoo.make_clips()), scores)


@pytest.mark.parametrize("how", FAULTS)
def test_a_failed_download_swaps_nothing(hub, trained, how):
    folder, scores = trained
    hub.add("you/task", folder)
    model = adapt()
    before = state_of(model)
    hub.fails(how, FAULTS[how])
    with pytest.raises(ValueError, match=REASONS[how]) as caught:
        hotswap_adapter(model, "you/task")
    assert same_state(state_of(model), before)
    hub.fails(how, "nothing")
    repair(str(caught.value))
    hotswap_adapter(model, "you/task")
    assert torch.equal(model(zoo.make_clips()), scores)


@pytest.mark.parametrize("how", ["500", "drop", "truncate"])
def test_wherever_the_line_breaks_nothing_is_left_behind(hub, trained, how, monkeypatch):
    """Each request in turn is the first that fails."""
    folder, scores = trained
    hub.add("you/task", folder)
    backbone = zoo.build("timm_vit")
    before, first = state_of(backbone), 0
    while True:
        cache = folder.parent / f"cache-{how}-{first}"
        hub.requests.clear()
        hub.fault = lambda method, path, first=first: how if len(hub.requests) > first else None
        try:
            model = PeftModel.from_pretrained(backbone, "you/task", cache_dir=cache)
            break
        except Exception:
            assert same_state(state_of(backbone), before)
        first += 1
    assert first >= 4 and torch.equal(model(zoo.make_clips()), scores)


def test_interrupting_a_download_leaves_nothing_behind(hub, trained, monkeypatch):
    hub.add("you/task", trained[0])
    backbone = zoo.build("timm_vit")
    before = state_of(backbone)

    def interrupted(name, file, **options):
        if "safetensors" in file:
            raise KeyboardInterrupt
        return huggingface_hub.hf_hub_download(name, file, **options)

    monkeypatch.setattr("peft_aim.config.hub.hf_hub_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PeftModel.from_pretrained(backbone, "you/task")
    assert same_state(state_of(backbone), before)


def causes(hub: Hub, folder) -> dict[str, tuple[dict, str]]:
    hub.add("you/task", folder)
    hub.add("you/task", folder, branch="v2")
    hub.add("you/several", folder, into="one/")
    hub.add("you/several", folder, into="two/")
    hub.add("you/private", folder, private=True)
    hub.add("you/gated", folder, gated=True)
    log_in = "log in with `hf auth login`, or pass token="
    return {
        "you/none": (
            {},
            "There is no folder you/none, and on the Hub no repository of this name, or a private one that",
        ),
        "you/private": ({}, f"you have no right to read (401). Check the name; if it is private, {log_in}."),
        "you/nothing": ({"token": "hf_x"}, "There is no folder you/nothing, and on the Hub .* (404)."),
        "you/gated": ({}, f"is gated, and you have no access to it (403). Ask for access on its page, and {log_in}."),
        "you/task": ({"revision": "v3"}, "has no revision 'v3'. Pass one of main, v2, or a commit, as revision."),
        "you/several": (
            {"subfolder": "three"},
            "you/several on the Hub has no file three/adapter_config.json in revision 'main'. Adapters are in one, "
            "two: pass one as subfolder.",
        ),
        "a/b/c": ({}, "a/b/c is neither a folder nor a Hub id, OWNER/NAME. Give one of them."),
    }


NAMES = ["you/none", "you/private", "you/nothing", "you/gated", "you/task", "you/several", "a/b/c"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("load", ["config", "load_adapter", "hotswap"])
def test_each_cause_is_said_as_it_is(hub, trained, name, load):
    options, message = causes(hub, trained[0])[name]
    model = adapt()
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        if load == "config":
            AIMConfig.from_pretrained(name, **options)
        elif load == "load_adapter":
            model.load_adapter(name, "other", **options)
        else:
            hotswap_adapter(model, name, **options)
    assert list(model.peft_config) == ["default"]


def test_private_repositories_revisions_and_subfolders_load(hub, trained):
    folder, scores = trained
    hub.add("you/private", folder, private=True)
    other = folder.parent / "other"
    adapt(num_labels=4).save_pretrained(other)
    hub.add("you/private", other, branch="v2")
    hub.add("you/private", folder, into="inside/", branch="v2")
    for options in ({}, {"revision": "v2", "subfolder": "inside"}):
        model = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/private", token="hf_x", **options)
        assert torch.equal(model(zoo.make_clips()), scores)
    model = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/private", token="hf_x", revision="v2")
    assert model(zoo.make_clips()).shape == (2, 4)


def test_offline_what_is_in_the_cache_loads(hub, trained, monkeypatch):
    folder, scores = trained
    hub.add("you/task", folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"adapter_config.json of you/task is not in the cache .*hub, and downloads are"
    ):
        AIMConfig.from_pretrained("you/task")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    config = AIMConfig.from_pretrained("you/task")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    backbone = zoo.build("timm_vit")
    before = state_of(backbone)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors of you/task is not in the cache"):
        PeftModel.from_pretrained(backbone, "you/task")
    assert same_state(state_of(backbone), before)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    config.fetch_weights()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(PeftModel.from_pretrained(backbone, "you/task")(zoo.make_clips()), scores)


def test_a_copy_in_the_cache_replaces_a_server_that_is_down(hub, trained):
    folder, scores = trained
    hub.add("you/task", folder)
    AIMConfig.from_pretrained("you/task").fetch_weights()
    hub.fails("503", ".*")
    model = adapt()
    hotswap_adapter(model, "you/task")
    assert torch.equal(model(zoo.make_clips()), scores)


def test_weights_saved_as_bin_load(hub, tmp_path):
    model = adapt()
    model.save_pretrained(tmp_path / "bin", safe_serialization=False)
    repository = hub.add("you/task", tmp_path / "bin")
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task")
    assert torch.equal(loaded(zoo.make_clips()), model(zoo.make_clips()))
    repository.commit({"adapter_model.bin": b"no pickle"})
    with pytest.raises(ValueError, match=r"adapter_model.bin is broken .* Delete .*, and load it again."):
        PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task")
    del repository.files()["adapter_model.bin"]
    with pytest.raises(ValueError, match="safetensors in revision 'main'. It is incomplete: upload it again."):
        AIMConfig.from_pretrained("you/task").fetch_weights()


def test_broken_configs_are_named(hub, trained, tmp_path):
    repository = hub.add("you/task", trained[0])
    repository.commit({"adapter_config.json": b'{"peft_type": "AIM", '})
    loads = (
        lambda: AIMConfig.from_pretrained("you/task"),
        lambda: PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task"),
        lambda: adapt().load_adapter("you/task", "other"),
        lambda: hotswap_adapter(adapt(), "you/task"),
    )
    message = (
        r"snapshots.*adapter_config.json is broken \(Expecting .*\), so .* Delete .*blobs/\w+, and load it again."
    )
    for load in loads:
        with pytest.raises(ValueError, match=message) as caught:
            load()
    repository.commit({"adapter_config.json": (trained[0] / "adapter_config.json").read_bytes()})
    repair(str(caught.value))
    assert torch.equal(PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task")(zoo.make_clips()), trained[1])
    with pytest.raises(
        ValueError, match=r"contains no adapter_config.json, so it is no saved adapter. Adapters are in a:"
    ):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "adapter_config.json").write_text("{}")
        AIMConfig.from_pretrained(tmp_path)


# Pushing.


def card_of(hub: Hub, name: str = "you/task", path: str = "README.md", branch: str = "main") -> str:
    return hub.repositories[name].files(branch)[path].decode()


def test_the_card_is_pushed_with_the_name_of_the_repository(hub):
    model = adapt()
    model.push_to_hub("you/task", tags=["signs"])
    card = card_of(hub)
    assert "# you/task" in card and 'PeftModel.from_pretrained(backbone, "you/task")' in card
    assert "video-classification" in card and "- signs" in card and "Model ID" not in card and "tmp" not in card
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task")
    assert torch.equal(loaded(zoo.make_clips()), model(zoo.make_clips()))
    model.add_adapter("other", AIMConfig(num_frames=6, num_labels=3))
    model.push_to_hub("you/task", revision="v2")
    assert "to clips of 4 frames" in card_of(hub, branch="v2") and "- signs" in card_of(hub, branch="v2")
    other = card_of(hub, path="other/README.md", branch="v2")
    assert 'PeftModel.from_pretrained(backbone, "you/task", subfolder="other")' in other
    assert "to clips of 6 frames" in other and "# you/task" in other


def test_hand_written_cards_are_kept_when_an_adapter_is_pushed(hub):
    model = adapt()
    model.push_to_hub("you/task")
    mine = "---\nlicense: mit\n---\n\n# My signs\n\nTop-1 on my videos: 97%\n"
    hub.repositories["you/task"].commit({"README.md": mine.encode()})
    model.push_to_hub("you/task")
    assert "Top-1 on my videos: 97%" in card_of(hub) and "## Use" not in card_of(hub)


def test_an_adapter_of_another_name_has_the_card_of_the_repository_too(hub):
    model = adapt("signs")
    model.push_to_hub("you/task")
    for path in ("README.md", "signs/README.md"):
        assert 'PeftModel.from_pretrained(backbone, "you/task", subfolder="signs")' in card_of(hub, path=path)
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task", subfolder="signs")
    assert torch.equal(loaded(zoo.make_clips()), model(zoo.make_clips()))


def test_a_pushed_config_has_its_card(hub):
    AIMConfig(num_frames=5).push_to_hub("you/config")
    assert "to clips of 5 frames" in card_of(hub, "you/config") and "# you/config" in card_of(hub, "you/config")


def test_an_uploaded_folder_has_its_card(hub, trained):
    huggingface_hub.create_repo("you/task", token="hf_x")
    huggingface_hub.upload_folder(repo_id="you/task", folder_path=trained[0], token="hf_x")
    name = trained[0].name
    assert f"On the Hub, give the id of the repository in place of `{name}`." in card_of(hub)
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), "you/task")
    assert torch.equal(loaded(zoo.make_clips()), trained[1])


def test_other_methods_are_pushed_as_by_peft(hub):
    model = get_peft_model(zoo.build("hf_vit"), LoraConfig(target_modules="all-linear"))
    model.push_to_hub("you/lora")
    assert "Model Card for Model ID" in card_of(hub, "you/lora")
    hub.fails("500", f".* {WEIGHTS}")
    with pytest.raises(Exception, match="500 "):
        model.load_adapter("you/lora", "other")
    assert "other" in model.peft_config  # as PEFT leaves it
