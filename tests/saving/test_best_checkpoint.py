"""Trainer loads the best weights of an adapter at the end, whatever its name."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset

from peft_aim import AIMConfig
from peft_aim.saving import adapter_weights


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


@pytest.mark.parametrize(("name", "beside"), [("default", None), ("signs", "default")])
def test_the_best_weights_are_loaded_whatever_the_name_of_the_adapter(name, beside, tmp_path):
    model = adapt(name)
    if beside:  # of the same shapes: taken for the other's, its weights would fit
        model.add_adapter(beside, AIMConfig(num_frames=zoo.FRAMES, num_labels=2, init_weights=False))
    best = train(model, tmp_path)
    assert best == str(tmp_path / "checkpoint-1")
    inside = "" if name == "default" else name
    assert has_weights_of(model, name, str(tmp_path / "checkpoint-1" / inside))
    assert not has_weights_of(model, name, str(tmp_path / "checkpoint-3" / inside))


def test_a_training_that_resumes_at_its_end_loads_the_best_weights(tmp_path, monkeypatch):
    """Then nothing is saved in this process."""
    model = adapt("signs")
    best = train(model, tmp_path)
    assert has_weights_of(model, "signs", f"{best}/signs")
    monkeypatch.setattr(tf.Trainer, "_load_best_model", inspect.unwrap(tf.Trainer._load_best_model))
    model = adapt("signs")
    best = train(model, tmp_path, resume=True)
    assert best == str(tmp_path / "checkpoint-1") and has_weights_of(model, "signs", f"{best}/signs")


def test_models_without_aim_are_loaded_by_transformers_alone(tmp_path):
    adapt("signs").save_pretrained(tmp_path / "aim")
    plain = zoo.build("hf_vit")
    trainer = tf.Trainer(plain, tf.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    plain.save_pretrained(tmp_path / "checkpoint-1")
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    before = plain.classifier.weight.clone()
    plain.classifier.weight.data.zero_()
    trainer._load_best_model()
    assert torch.equal(plain.classifier.weight, before)
