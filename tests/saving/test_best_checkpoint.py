"""Trainer loads the best weights of an adapter at the end, or one is told that it cannot, and what to do."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset

from peft_aim import AIMConfig
from peft_aim.saving import adapter_weights, peft_model


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(peft_model, "warned", set())


class Clips(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"labels": index, "pixel_values": zoo.make_clips(batch=1, seed=index)[0]}


def train(model: PeftModel, folder: Path, resume: bool = False) -> str:
    """Train three steps, of which the first is the best by decree; return the folder of its checkpoint."""
    arguments = tf.TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="step",
        greater_is_better=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    steps = iter(range(9))
    data, metrics = Clips(), lambda found: {"step": float(next(steps))}
    trainer = tf.Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer.state.best_model_checkpoint


def adapt(adapter_name: str) -> PeftModel:
    config = AIMConfig(num_frames=zoo.FRAMES, num_labels=2, init_weights=False)
    return get_peft_model(zoo.build("hf_vit"), config, adapter_name=adapter_name)


def has_weights_of(model: PeftModel, name: str, folder: str) -> bool:
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    own = adapter_weights(model, name)
    return all(torch.equal(own[key.removeprefix("base_model.model.")], tensor) for key, tensor in saved.items())


def test_the_best_weights_of_the_default_adapter_are_loaded(tmp_path):
    model = adapt("default")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot load the best")
        best = train(model, tmp_path)
    assert best == str(tmp_path / "checkpoint-1") and has_weights_of(model, "default", best)
    assert not has_weights_of(model, "default", str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("beside", [[], ["default"]])
def test_for_other_adapters_a_warning_says_what_to_do(beside, tmp_path):
    model = adapt("signs")
    for name in beside:
        model.add_adapter(name, AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    with pytest.warns(
        UserWarning, match=r"Trainer cannot load the best checkpoint of the adapter 'signs': .*checkpoin"
    ) as w:
        best = train(model, tmp_path) if not beside else model.save_pretrained(tmp_path / "checkpoint-1")
    advice = next(str(one.message) for one in w if "cannot load the best" in str(one.message))
    assert (
        "Name the adapter 'default', or after training call model.load_adapter(f'{checkpoint}/signs', 'signs')"
        in advice
    )
    if not beside:
        assert not has_weights_of(model, "signs", f"{best}/signs")
        model.load_adapter(f"{best}/signs", "signs")
        assert has_weights_of(model, "signs", f"{best}/signs")


def test_other_folders_and_adapters_that_are_not_active_do_not_warn(tmp_path):
    model = adapt("default")
    model.add_adapter("signs", AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    model.save_pretrained(tmp_path / "checkpoint-1")
    model.set_adapter("signs")
    model.save_pretrained(tmp_path / "my-task")
