"""Labels mean what they mean in transformers: the loss and its gradients are those of its own image classifiers."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset

from peft_aim import AIMConfig, hotswap_adapter

LABELS = {  # problem type, number of labels, labels of two clips
    "regression": ("regression", 2, torch.tensor([[0.5, -1.0], [2.0, 0.0]])),
    "one number": ("regression", 1, torch.tensor([0.5, 2.0])),
    "a column": ("regression", 1, torch.tensor([[0.5], [2.0]])),
    "single": ("single_label_classification", 3, torch.tensor([2, 0])),
    "multi": ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 1, 0]])),
    "binary": ("multi_label_classification", 1, torch.tensor([[1.0], [0.0]])),
}
CASES = [(form, where) for form in LABELS for where in ("adapter", "model", "inferred")]
CASES = [case for case in CASES if case not in [("regression", "inferred"), ("binary", "inferred")]]


def adapt(name: str = "hf_vit", **options: object) -> PeftModel:
    config = AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, "num_labels": 3, **options})
    return get_peft_model(zoo.build(name), config).eval()


def of_transformers(model: PeftModel, scores: Tensor, labels: Tensor, problem: str | None) -> Tensor:
    """Return the loss that transformers' own classifiers compute from scores, with a config of their own."""
    config = tf.ViTConfig(num_labels=scores.shape[-1], problem_type=problem)
    return type(model.get_base_model())(tf.ViTConfig(**zoo.SMALL)).loss_function(labels, scores, config)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.fixture
def clips() -> Tensor:
    return zoo.make_clips()


@pytest.mark.parametrize("form", LABELS)
def test_a_new_adapter_trains_like_a_classifier_of_transformers_with_the_same_head(form):
    """On clips of one frame: loss, scores, and the gradients of the head."""
    problem, count, labels = LABELS[form]
    model, images = adapt(num_labels=count, problem_type=problem, init_weights=True), zoo.make_clips(frames=1)[:, 0]
    head = next(module for module in model.modules() if hasattr(module, "aim_head")).aim_head["default"]
    plain = zoo.build("hf_vit")
    plain.classifier, plain.config.num_labels, plain.config.problem_type = copy.deepcopy(head), count, problem
    expected = plain.eval()(images, labels=labels)
    output = model(images, labels=labels)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    output.loss.backward()
    expected.loss.backward()
    assert torch.equal(head.weight.grad, plain.classifier.weight.grad)


@pytest.mark.parametrize(("form", "where"), CASES)
def test_the_loss_is_that_of_transformers(form, where, clips):
    problem, count, labels = LABELS[form]
    model = adapt(num_labels=count, problem_type=problem if where == "adapter" else None)
    if where == "model":
        model.get_base_model().config.problem_type = problem
    before = model.get_base_model().config.problem_type
    for _ in range(2):  # nothing is left of the first call
        loss = model(clips, labels=labels).loss
        expected = of_transformers(model, model(clips).logits, labels, None if where == "inferred" else problem)
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, gradients(model, loss), gradients(model, expected)))
        assert torch.equal(model(clips, labels=labels, return_dict=False)[0], loss)
        assert model.get_base_model().config.problem_type == before


def test_each_adapter_has_its_own_problem_type(clips, tmp_path):
    model = adapt(problem_type="multi_label_classification")
    model.add_adapter("other", AIMConfig(num_frames=zoo.FRAMES, num_labels=2, problem_type="regression"))
    several, numbers, index = torch.ones(2, 3), torch.ones(2, 2), torch.tensor([4, 0])
    multi = model(clips, labels=several).loss
    assert torch.equal(multi, of_transformers(model, model(clips).logits, several, "multi_label_classification"))
    model.set_adapter("other")
    output = model(clips, labels=numbers)
    assert torch.equal(output.loss, nn.functional.mse_loss(output.logits, numbers))
    with model.disable_adapter():  # the model's own head and problem type
        output = model(clips, labels=index)
        assert torch.equal(output.loss, nn.functional.cross_entropy(output.logits, index))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build("hf_vit"), tmp_path).eval()
    assert loaded.peft_config["default"].problem_type == "multi_label_classification"
    assert torch.equal(loaded(clips, labels=several).loss, multi)
    swapped = adapt(problem_type="regression")
    hotswap_adapter(swapped, tmp_path)
    assert torch.equal(swapped(clips, labels=several).loss, multi)


@pytest.mark.parametrize("where", ["model", "config"])
def test_the_problem_type_of_the_backbone_is_saved_with_the_adapter(where, clips, tmp_path):
    """Another user's backbone does not have it, or has another one."""
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    options = {"problem_type": "regression"} if where == "config" else {}
    backbone = tf.ViTForImageClassification(tf.ViTConfig(**zoo.SMALL, **options))
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, num_labels=3, init_weights=False)).eval()
    if where == "model":
        backbone.config.problem_type = "regression"
    loss = model(clips, labels=labels).loss
    assert loss == nn.functional.mse_loss(model(clips).logits, labels)
    model.save_pretrained(tmp_path)
    assert AIMConfig.from_pretrained(tmp_path).problem_type == "regression"
    assert model.peft_config["default"].problem_type is None  # it still follows the model
    for other in (None, "multi_label_classification"):
        theirs = tf.ViTForImageClassification(tf.ViTConfig(**zoo.SMALL, problem_type=other))
        theirs.load_state_dict(model.unload().state_dict() if other is None else backbone.state_dict())
        loaded = PeftModel.from_pretrained(theirs, tmp_path).eval()
        assert loaded(clips, labels=labels).loss == loss
        assert theirs.config.problem_type == other
        loaded.save_pretrained(tmp_path / "again")
        assert AIMConfig.from_pretrained(tmp_path / "again").problem_type == "regression"


def test_what_is_not_the_adapters_own_is_not_saved(tmp_path):
    """Neither the problem type of a backbone whose head is kept, nor one that an adapter was not trained with."""
    model = adapt()
    model.save_pretrained(tmp_path / "unset")
    config = model.get_base_model().config
    config.problem_type = "regression"
    model.add_adapter("headless", AIMConfig(num_frames=zoo.FRAMES))
    model.add_adapter("own", AIMConfig(num_frames=zoo.FRAMES, num_labels=2, problem_type="multi_label_classification"))
    model.load_adapter(tmp_path / "unset", "loaded")
    model.save_pretrained(tmp_path / "set")
    found = {name: AIMConfig.from_pretrained(tmp_path / "set" / name).problem_type for name in ("headless", "own")}
    assert found == {"headless": None, "own": "multi_label_classification"}
    assert AIMConfig.from_pretrained(tmp_path / "set" / "loaded").problem_type is None
    config.problem_type = "token_classification"  # not a setting: the file could not be loaded
    model.save_pretrained(tmp_path / "foreign")
    assert AIMConfig.from_pretrained(tmp_path / "foreign").problem_type is None


WRONG = {
    "index for multi": ("multi_label_classification", 3, torch.tensor([1, 0])),
    "integers for multi": ("multi_label_classification", 3, torch.ones(2, 3, dtype=torch.long)),
    "too many numbers": ("regression", 2, torch.ones(2, 3)),
    "numbers to broadcast": ("regression", 2, torch.ones(2)),
    "a column to broadcast": ("regression", 2, torch.ones(2, 1)),
    "a row to broadcast": ("regression", 1, torch.ones(2, 2)),
    "floats for single": ("single_label_classification", 3, torch.ones(2)),
    "scores for single": ("single_label_classification", 3, torch.ones(2, 3)),
    "small integers": ("single_label_classification", 3, torch.ones(2, dtype=torch.int32)),
    "inferred, too many": (None, 2, torch.ones(2, 3)),
    "inferred, integers": (None, 3, torch.ones(2, 3, dtype=torch.long)),
    "inferred, bytes": (None, 3, torch.ones(2, dtype=torch.uint8)),
}


@pytest.mark.parametrize("form", WRONG)
def test_labels_that_do_not_fit_are_rejected_with_shapes_and_dtypes(form, clips):
    problem, count, labels = WRONG[form]
    model = adapt(num_labels=count, problem_type=problem)
    first = f"problem_type='{problem}'" if problem else f"No problem_type is set, so labels of {labels.dtype} mean '"
    with pytest.raises(ValueError) as caught:
        model(clips, labels=labels)
    message = str(caught.value)
    assert message.startswith(first)
    assert f" with {count} output{'s' if count > 1 else ''} needs labels (2" in message
    assert f", but got {tuple(labels.shape)} of {labels.dtype}. Pass labels in that form, or change" in message


def test_a_problem_type_of_the_model_that_contradicts_the_labels_is_rejected(clips):
    """As of a checkpoint that was trained with other labels."""
    backbone = tf.ViTForImageClassification(tf.ViTConfig(**zoo.SMALL, problem_type="multi_label_classification"))
    model = get_peft_model(backbone, AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    with pytest.raises(ValueError, match=r"'multi_label_classification' with 3 outputs .* got \(2,\) of torch.int64"):
        model(clips, labels=torch.tensor([1, 2]))
    model.add_adapter("one", AIMConfig(num_frames=zoo.FRAMES, num_labels=3, problem_type=list(LABELS.values())[3][0]))
    model.set_adapter("one")
    assert model(clips, labels=torch.tensor([1, 2])).loss.isfinite()


def test_single_labels_of_one_class_are_rejected(clips):
    model = adapt(num_labels=1, problem_type="single_label_classification")
    with pytest.raises(ValueError, match="with 1 output has a loss of zero whatever the label. Use 2 outputs"):
        model(clips, labels=torch.tensor([0, 0]))


def test_a_loss_of_the_user_takes_any_labels(clips):
    model = adapt(problem_type="regression")
    model.get_base_model().loss_function = lambda labels, scores, config: scores.sum() * len(labels[0])
    output = model(clips, labels=torch.ones(2, 7, dtype=torch.long))
    assert torch.equal(output.loss, output.logits.sum() * 7)


class Tagged(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        labels = torch.tensor([float(index % 2), 1.0, 0.0])
        return {"pixel_values": zoo.make_clips(batch=1, seed=index)[0], "labels": labels}


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_trainer_trains_and_evaluates(problem, tmp_path):
    model = adapt(problem_type=problem)
    options = {"max_steps": 6, "learning_rate": 1e-2, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = tf.TrainingArguments(str(tmp_path), per_device_train_batch_size=4, save_strategy="no", **options)

    def metrics(found):
        assert found.predictions.shape == found.label_ids.shape == (4, 3)
        return {"error": float(np.abs(found.predictions - found.label_ids).mean())}

    data = Tagged()
    trainer = tf.Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] and "eval_error" in after


def test_problem_types_are_checked():
    with pytest.raises(ValueError, match=r"problem_type='multi' is not a setting. Use one of 'regression', 'single"):
        AIMConfig(num_labels=2, problem_type="multi")
    with pytest.raises(ValueError, match=r"has no effect: .*the adapter has none.*set model.config.problem_type"):
        AIMConfig(problem_type="regression")
