"""Mixed batches: ``adapter_names`` runs each clip with its own adapter, as one call per adapter would."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import zoo
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from peft_aim import AIMConfig

NAMES = ["signs", "__base__", "words", "signs"]


def config(**options: object) -> AIMConfig:
    return AIMConfig(**{"num_frames": zoo.FRAMES, "init_weights": False, **options})


def adapt(backbone: nn.Module, signs: int | None = None, words: int | None = None, **options: object) -> PeftModel:
    """Add two adapters, with as many classes."""
    model = get_peft_model(backbone, config(num_labels=signs, **options), adapter_name="signs")
    model.add_adapter("words", config(num_labels=words, joint=False, spatial=True, **options))
    return model.eval()


def one_call_each(model: PeftModel, clips: torch.Tensor, names: list[str]) -> list[torch.Tensor]:
    """Return the scores of each clip."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(names)
    for name in dict.fromkeys(names):
        rows = [row for row, other in enumerate(names) if other == name]
        if name == "__base__":
            with model.disable_adapter():
                scores = zoo.scores(model(clips[rows]))
        else:
            model.set_adapter(name)
            scores = zoo.scores(model(clips[rows]))
        for row, score in zip(rows, scores, strict=True):
            found[row] = score
    return found


def states(model: PeftModel) -> list:
    layers = [m for m in model.modules() if hasattr(m, "_active_adapter")]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return [flags, [(layer._active_adapter, layer._disable_adapters) for layer in layers]]


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_each_clip_runs_with_its_adapter(name):
    model, clips = adapt(zoo.build(name)), zoo.make_clips(batch=4)
    before = states(model)
    mixed = zoo.scores(model(clips, adapter_names=NAMES))
    assert states(model) == before
    assert torch.equal(mixed, torch.stack(one_call_each(model, clips, NAMES)))
    assert not torch.allclose(mixed[0], zoo.scores(model(clips, adapter_names=["words"] * 4))[0])


@torch.no_grad()
def test_patch_groups_run_with_their_adapter():
    """PEFT's own mechanism takes the rows of a layer for those of the batch (peft issue 1967)."""
    model = adapt(timm.create_model("mobilevit_xxs", num_classes=5), 2, 2, temporal="auto")
    clips = torch.randn(3, 2, 3, 64, 64)
    names = ["words", "signs", "words"]
    assert torch.equal(model(clips, adapter_names=names), torch.stack(one_call_each(model, clips, names)))


@torch.no_grad()
def test_scores_for_fewer_classes_are_padded(clips):
    model = adapt(zoo.build("hf_vit"), signs=2, words=7, modules_to_save=["layernorm"])
    model.base_model.model.vit.layernorm.modules_to_save["words"].weight.data.mul_(2)
    clips = zoo.make_clips(batch=4)
    mixed, single = model(clips, adapter_names=NAMES).logits, one_call_each(model, clips, NAMES)
    assert mixed.shape == (4, 7) and [len(scores) for scores in single] == [2, 5, 7, 2]
    for row, scores in zip(mixed, single, strict=True):
        assert torch.equal(row[: len(scores)], scores) and (row[len(scores) :] == -torch.inf).all()
    assert torch.equal(mixed.softmax(-1)[0, 2:], torch.zeros(5))


@torch.no_grad()
def test_images_and_empty_batches():
    model, images = adapt(zoo.build("timm_vit")), zoo.make_clips(batch=1)[0]
    expected = torch.stack(one_call_each(model, images, NAMES))
    assert torch.equal(model(images, adapter_names=NAMES), expected)
    assert model(images[:0], adapter_names=[]).shape == (0, 5)


WRONG = {
    "Got adapter_names=.'signs'. for 2 clips. Give a list of one name per clip": {"adapter_names": ["signs"]},
    "Got adapter_names='no' for 2 clips": {"adapter_names": "no"},
    r"Got adapter_names=\['signs', None\] for 2 clips": {"adapter_names": ["signs", None]},
    r"Got adapter_names=\[\] for 2 clips": {"adapter_names": []},
    "non-existing adapter.s.: a, b. Use signs, words, or __base__": {"adapter_names": ["b", "a"]},
    "Got labels together with adapter_names.*Leave labels out": {
        "adapter_names": ["signs", "words"],
        "labels": torch.tensor([0, 1]),
    },
    r"an entry for each of the 2 clips, or of their 8 frames, but one has the shape \(3,\)": {
        "adapter_names": ["signs", "words"],
        "head_mask": torch.ones(3),
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_calls_raise_an_error_and_change_nothing(clips, message):
    model = adapt(zoo.build("hf_vit"))
    before = states(model)
    with pytest.raises(ValueError, match=message):
        model(clips, **WRONG[message])
    assert states(model) == before


def test_training_and_models_without_peft_model_raise_an_error(clips):
    names = ["signs", "words"]
    with pytest.raises(ValueError, match="Cannot pass adapter_names when the model is in training mode"):
        adapt(zoo.build("timm_vit")).train()(clips, adapter_names=names)
    injected = inject_adapter_in_model(config(), zoo.build("hf_vit"))
    with pytest.raises(ValueError, match=r"adapter_names=\['signs', 'words'\] needs a PeftModel.*set_adapter"):
        injected(clips, adapter_names=names)


def test_recomputed_blocks_raise_an_error_unless_gradients_are_off(clips):
    """In backward, they would run with whichever adapter is active then."""
    names = {"adapter_names": ["signs", "words"]}
    model = adapt(zoo.build("timm_vit"), recompute="pointwise")
    with pytest.raises(ValueError, match="cannot be used with recompute='pointwise' while gradients are recorded"):
        model(clips, **names)
    checkpointed = zoo.build("timm_vit")
    checkpointed.set_grad_checkpointing(True)
    checkpointed = adapt(checkpointed)
    with pytest.raises(ValueError, match=r"gradient checkpointing while .* Call the model under torch.no_grad\(\)"):
        checkpointed(clips, **names)
    with torch.no_grad():
        assert torch.equal(model(clips, **names), checkpointed(clips, **names))


@torch.no_grad()
def test_results_that_are_not_per_clip_raise_an_error(clips):
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = zoo.build("timm_vit")

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self.model(x)
            return scores, scores.sum()

    model = adapt(Sums())
    with pytest.raises(ValueError, match=r"returned tensors \(\), \(\) for 1, 1 clips, which are not one result per"):
        model(clips, adapter_names=["signs", "words"])


@torch.no_grad()
@pytest.mark.parametrize("first", [{"adapter_names": ["signs", "words"]}, {}])
def test_calls_of_other_threads_do_not_run_beside_mixed_ones(clips, first):
    """A call without names would run with the adapter of the clips that are being computed."""
    model, found = adapt(zoo.build("timm_vit")), []
    other = {} if first else {"adapter_names": ["signs", "words"]}

    def call(options: dict) -> None:
        try:
            found.append(model(clips, **options))
        except RuntimeError as error:
            found.append(str(error))

    def run_beside(*args: object) -> None:
        thread = threading.Thread(target=call, args=(other,))
        thread.start()
        thread.join()

    expected = model(clips, **first)
    handle = model.base_model.model.blocks[0].register_forward_pre_hook(run_beside)
    assert torch.equal(model(clips, **first), expected)
    handle.remove()
    assert found and all("Another thread calls this model at the same time" in message for message in found)
    assert torch.equal(model(clips, **other), model(clips, **other))


@torch.no_grad()
def test_mixed_calls_of_threads_take_turns(clips):
    model = adapt(zoo.build("timm_vit"))
    batches = [["signs", "words"], ["words", "signs"]] * 3
    expected = [model(clips, adapter_names=names) for names in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda names: model(clips, adapter_names=names), batches))
    assert all(map(torch.equal, found, expected))


@pytest.fixture
def clips() -> torch.Tensor:
    return zoo.make_clips()
