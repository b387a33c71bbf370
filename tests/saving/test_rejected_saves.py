"""A save that is rejected leaves everything as it was: no card, no empty folder, no half of an adapter."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model

from peft_aim import AIMConfig
from peft_aim.files import written_together


def adapt(adapter_name: str = "default", **options: object) -> PeftModel:
    config = AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})
    return get_peft_model(zoo.build("timm_vit"), config, adapter_name=adapter_name)


def files_in(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def spoil(model: PeftModel, adapter_name: str) -> PeftModel:
    """Let an adapter have a weight that half precision cannot hold."""
    next(p for name, p in model.named_parameters() if f".{adapter_name}." in name).data.fill_(1e6)
    return model


@pytest.mark.parametrize("name", ["default", "signs"])
def test_a_rejected_save_makes_no_folder(name, tmp_path):
    model = adapt(name)
    with pytest.raises(ValueError, match="so nothing was saved"):
        model.save_pretrained(tmp_path / "a" / "b", state_dict={})
    assert files_in(tmp_path) == {}


def test_a_rejected_save_leaves_the_earlier_files(tmp_path):
    adapt().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    (tmp_path / "notes").write_text("mine")
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match="cannot hold"):
        spoil(adapt(save_dtype="float16", num_labels=3), "default").save_pretrained(tmp_path)
    assert files_in(tmp_path) == before


def test_of_several_adapters_all_are_saved_or_none(tmp_path):
    model = adapt()
    model.add_adapter("signs", AIMConfig(num_frames=zoo.FRAMES, save_dtype="float16"))
    spoil(model, "signs")
    with pytest.raises(ValueError, match="cannot hold"):
        model.save_pretrained(tmp_path)
    assert files_in(tmp_path) == {}
    model.peft_config["signs"].save_dtype = None
    model.save_pretrained(tmp_path)
    own = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files_in(tmp_path).keys() == {*own, "signs", *(f"signs/{name}" for name in own)}
    loaded = PeftModel.from_pretrained(zoo.build("timm_vit"), tmp_path / "signs").eval()
    model.eval().set_adapter("signs")
    assert torch.equal(loaded(zoo.make_clips()), model(zoo.make_clips()))


def test_a_full_disk_leaves_the_earlier_adapter(tmp_path, monkeypatch):
    adapt().save_pretrained(tmp_path)
    before = files_in(tmp_path)

    def half(tensors, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("peft.peft_model.safe_save_file", half)
    with pytest.raises(OSError, match="No space left"):
        adapt(num_labels=3).save_pretrained(tmp_path)
    assert files_in(tmp_path) == before


def test_processes_that_write_nothing_leave_the_folder_alone(tmp_path):
    adapt().save_pretrained(tmp_path, is_main_process=False)
    assert files_in(tmp_path) == {}


def test_a_file_in_place_of_the_folder_is_reported_as_by_peft(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="should be a directory, not a file"):
        adapt().save_pretrained(tmp_path / "file")


def test_folders_that_somebody_else_has_filled_meanwhile_stay(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), written_together(tmp_path / "a" / "b"):
        (tmp_path / "a" / "theirs").write_text("theirs")
        raise RuntimeError("mine")
    assert files_in(tmp_path) == {"a": None, "a/theirs": b"theirs"}
