"""PEFT stays as it is around a tuner: only what a call added is removed, only faults of the Hub are called so."""

from __future__ import annotations

import functools
import re

import pytest
import zoo
from hub import hub_of_this_process
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from test_hub import FILE, NAMES, adapt, causes, same_state, state_of, trained  # noqa: F401 (a fixture)

from peft_aim import AIMConfig
from peft_aim.saving import extend_peft_model


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_of_this_process(tmp_path / "home", monkeypatch) as running:
        yield running


@pytest.mark.parametrize("options", [{"inference_mode": True}, {}])
def test_a_failed_load_removes_no_adapter_that_was_there_before(options, tmp_path):
    model = adapt(**options)
    adapt(num_labels=3).save_pretrained(tmp_path)
    before = state_of(model)
    for source in ("/nonexistent", tmp_path):
        with pytest.raises(ValueError, match=r"exactly|adapter_config|neither a folder|weights"):
            model.load_adapter(source, "default")
        assert list(model.peft_config) == ["default"] and same_state(state_of(model), before)


def test_a_failed_load_into_a_new_model_gives_the_backbone_back():
    backbone = zoo.build("timm_vit")
    before = state_of(backbone)
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        PeftModel.from_pretrained(backbone, "/nonexistent", config=AIMConfig(num_frames=4))
    assert same_state(state_of(backbone), before)


def extended(name: str, function, monkeypatch):
    """Let PEFT do something else, below the package's extension."""
    monkeypatch.setattr(PeftModel, name, function)
    extend_peft_model()


def failing(error: BaseException, before: type[Exception] = EntryNotFoundError):
    def load_adapter(*args, **kwargs):
        try:
            raise before("not there")
        except before:
            raise error  # noqa: B904 (as PEFT does)

    return load_adapter


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("other")])
def test_other_errors_pass_as_they_are(error, monkeypatch):
    model = adapt()
    extended("load_adapter", failing(error), monkeypatch)
    with pytest.raises(type(error)) as caught:
        model.load_adapter("you/task", "other")
    assert caught.value is error


def test_an_interrupt_with_a_cause_of_the_hub_passes_as_it_is(monkeypatch):
    interrupt = KeyboardInterrupt()
    interrupt.__cause__ = EntryNotFoundError("not there")
    extended("load_adapter", failing(interrupt), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        adapt().load_adapter("you/task", "other")


def test_an_error_that_the_caller_handles_is_not_the_reason(tmp_path, trained):  # noqa: F811
    model = adapt()
    adapt(num_labels=3).save_pretrained(tmp_path)
    (tmp_path / FILE).write_bytes((trained[0] / FILE).read_bytes())
    with pytest.raises(ValueError, match="exactly this adapter's weights"):
        try:
            raise EntryNotFoundError("not there")
        except EntryNotFoundError:
            model.load_adapter(tmp_path, "other")


def test_subfolders_are_listed_by_one_request(hub, trained):  # noqa: F811
    hub.add("you/several", trained[0], into="one/")
    hub.fails("drop", "GET /api/.*")
    with pytest.raises(ValueError, match="has no file three/adapter_config.json .* Give the folder or Hub id"):
        AIMConfig.from_pretrained("you/several", subfolder="three")
    assert len([path for method, path in hub.requests if path.startswith("/api/")]) == 1


# Why a config could not be downloaded, when its method is not known yet.


@pytest.mark.parametrize("name", NAMES)
def test_each_cause_follows_the_sentence_of_peft(hub, trained, name):  # noqa: F811
    options, message = causes(hub, trained[0])[name]
    start = re.escape(f"Can't find 'adapter_config.json' at '{name}'. ")
    with pytest.raises(ValueError, match=f"{start}.*{re.escape(message)}".replace(r"\.\*", ".*")):
        PeftModel.from_pretrained(zoo.build("timm_vit"), name, **options)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("500", "cannot be reached for adapter_config.json of you/task (it answers with status 500)"),
        ("offline", "adapter_config.json of you/task is not in the cache"),
        ("401", "The Hub does not let you read you/task (401). Check your token: log in"),
    ],
)
def test_failures_of_the_hub_follow_the_sentence_of_peft(hub, trained, how, message, monkeypatch):  # noqa: F811
    hub.add("you/task", trained[0])
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif how == "401":
        hub.fails(how, "GET .*")
    else:
        hub.fails(how, ".*")
    backbone = zoo.build("timm_vit")
    lora = get_peft_model(zoo.build("timm_vit"), LoraConfig(target_modules=["fc1"]))
    loads = (
        lambda: PeftModel.from_pretrained(backbone, "you/task"),
        lambda: lora.load_adapter("you/task", "b"),
        lambda: adapt().load_adapter("you/task", "b"),
    )
    for load in loads:
        with pytest.raises(ValueError, match=f"^Can't find .* at 'you/task'. .*{re.escape(message)}"):
            load()


def test_in_folders_the_sentence_of_peft_stands_alone(tmp_path):
    with pytest.raises(ValueError, match=f"^Can't find 'adapter_config.json' at '{re.escape(str(tmp_path))}'$"):
        PeftModel.from_pretrained(zoo.build("timm_vit"), str(tmp_path))


# Others extend PEFT too.

METHODS = {
    PeftModel: ["from_pretrained", "load_adapter", "save_pretrained", "_upload_modified_files"],
    PeftConfig: ["_get_peft_type"],
}


def test_wrappers_of_others_are_kept(monkeypatch, tmp_path):
    model, calls = adapt(), []
    ours = PeftModel.save_pretrained

    @functools.wraps(ours)
    def of_others(*args, **kwargs):
        calls.append("others")
        return ours(*args, **kwargs)

    monkeypatch.setattr(PeftModel, "save_pretrained", of_others)
    before = {name: getattr(cls, name) for cls, names in METHODS.items() for name in names}
    extend_peft_model()
    assert all(getattr(cls, name) == before[name] for cls, names in METHODS.items() for name in names)
    model.save_pretrained(tmp_path)
    assert calls == ["others"]


def test_what_others_do_when_pushing_is_kept(monkeypatch, tmp_path):
    uploads = []
    extended("_upload_modified_files", lambda self, *args, **kwargs: uploads.append((args, kwargs)), monkeypatch)
    adapt()._upload_modified_files(tmp_path, "you/task", {}, token="hf_x")
    assert uploads == [((tmp_path, "you/task", {}), {"token": "hf_x"})]
    assert "# you/task" in (tmp_path / "README.md").read_text()
    lora = get_peft_model(zoo.build("timm_vit"), LoraConfig(target_modules=["fc1"]))
    (tmp_path / "README.md").unlink()
    lora._upload_modified_files(tmp_path, "you/lora", {})
    assert len(uploads) == 2 and not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("as_keyword", [True, False])
def test_transformers_may_ask_for_names_in_any_way(as_keyword, monkeypatch):
    conversion = pytest.importorskip("peft.utils.transformers_weight_conversion", reason="transformers 4 needs none")

    def with_more(weight_conversions, adapter_name, peft_config=None, more=None):
        return [more]

    with_more.__module__ = conversion.__name__
    monkeypatch.setattr(conversion, "build_peft_weight_mapping", with_more)
    extend_peft_model()
    ours = conversion.build_peft_weight_mapping
    extend_peft_model()
    assert conversion.build_peft_weight_mapping is ours
    config = AIMConfig(num_frames=2)
    found = ours([], "a", peft_config=config, more=1) if as_keyword else ours([], "a", config, 1)
    assert found[0] == 1 and len(found) == 2
    assert ours([], "a", LoraConfig(), 1) == [1]
