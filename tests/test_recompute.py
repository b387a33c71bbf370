"""With activation checkpointing, scores and gradients stay the same, for less activation memory."""

from __future__ import annotations

import pytest
import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import nn

from benchmarks.measuring.counting import cost_of_step
from peft_aim import AIMConfig, hotswap_adapter
from peft_aim.recompute import HOOKS, SETTINGS


def adapt(name: str, recompute: str, **options: object) -> PeftModel:
    options = {"num_frames": zoo.FRAMES, "init_weights": False, "recompute": recompute, **options}
    return get_peft_model(zoo.build(name), AIMConfig(**options)).train()


def run(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    scores = zoo.scores(model(zoo.make_clips()))
    scores.square().sum().backward()
    return scores, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", zoo.ZOO)
@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting != "nothing"])
def test_scores_and_gradients_stay_the_same(name, setting):
    options = {"drop_path": 0.5, "temporal_adapters": 2}
    (wanted, plain), (got, gradients) = (run(adapt(name, s, **options)) for s in ("nothing", setting))
    assert torch.equal(wanted, got)
    assert plain.keys() == gradients.keys()
    for key, gradient in plain.items():
        assert torch.equal(gradient, gradients[key]), key


def cost(name: str, setting: str) -> tuple[float, float]:
    """Return the multiplications in backward, and the megabytes of activations saved for it."""
    found = cost_of_step(adapt(name, setting), zoo.make_clips(), lambda output: zoo.scores(output).sum())
    return round(1e9 * found["backward_gmac"]), found["saved_mb"]


@pytest.mark.skipif(not HOOKS, reason="this torch hides from hooks what its selective checkpointing saves")
@pytest.mark.parametrize("name", ["timm_vit", "timm_clip", "timm_dinov2", "hf_vit", "hf_clip", "open_clip_vit"])
def test_each_setting_saves_less_and_pointwise_recomputes_no_product(name):
    (plain, *again), sizes = zip(*(cost(name, setting) for setting in SETTINGS), strict=True)
    tokens, blocks = 2 * zoo.FRAMES * (16 + 5), 2
    joint = tokens * 8 * 32 * blocks if name == "timm_dinov2" else 0  # its second layer comes before LayerScale
    assert again[0] == plain + joint < again[1] < again[2]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]


@pytest.mark.parametrize("setting", ["pointwise", "mlp", "block"])
def test_switching_adapters_before_backward_is_rejected(setting):
    model = adapt("timm_vit", setting)
    model.add_adapter("other", AIMConfig(num_frames=zoo.FRAMES))
    loss = model(zoo.make_clips()).sum()
    model.set_adapter("other")
    with pytest.raises(RuntimeError, match="for the adapter 'default', but now 'other' is active. Call backward"):
        loss.backward()


@pytest.mark.parametrize("setting", ["pointwise", "mlp", "block"])
def test_hot_swapping_before_backward_is_rejected(setting, tmp_path):
    model = adapt("timm_vit", setting)
    model.save_pretrained(tmp_path)
    loss = model(zoo.make_clips()).sum()
    hotswap_adapter(model, tmp_path)
    with pytest.raises(
        RuntimeError, match="for the adapter 'default', but now another one has been swapped in. Call backward"
    ):
        loss.backward()


class InPlace(nn.Module):
    """An MLP that changes the output of its first layer in place."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.silu(self.fc1(x), inplace=True))


def test_changes_in_place_are_handled_or_rejected():
    def gradients(setting: str) -> dict[str, torch.Tensor]:
        backbone = zoo.build("timm_vit")
        for block in backbone.blocks:
            block.mlp = InPlace(block.mlp)
        config = AIMConfig(num_frames=zoo.FRAMES, init_weights=False, recompute=setting)
        return run(get_peft_model(backbone, config).train())[1]

    wanted = gradients("nothing")
    for setting in ("mlp", "block"):
        got = gradients(setting)
        assert all(torch.equal(gradient, got[key]) for key, gradient in wanted.items())
    with pytest.raises(RuntimeError, match="has been mutated"):
        gradients("pointwise")


@pytest.mark.parametrize("setting", ["pointwise", "mlp", "block"])
def test_autocast_and_gradient_checkpointing_of_the_backbone(setting):
    def gradients(kind: str, checkpointing: bool) -> dict[str, torch.Tensor]:
        model = adapt("timm_clip", kind)
        model.set_grad_checkpointing(checkpointing)
        with torch.autocast("cpu", torch.bfloat16):
            return run(model)[1]

    wanted, got = gradients("nothing", False), gradients(setting, True)
    assert all(torch.equal(gradient, got[key]) for key, gradient in wanted.items())


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch cannot trace the context managers of PeftModel yet")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch.compile
@pytest.mark.parametrize("setting", ["pointwise", "mlp", "block"])
def test_recomputation_compiles_as_one_graph(setting):
    wanted, plain = run(adapt("timm_clip", setting))
    model = adapt("timm_clip", setting)
    scores = torch.compile(model, fullgraph=True, backend="aot_eager")(zoo.make_clips())
    scores.square().sum().backward()
    assert torch.allclose(scores, wanted, atol=1e-5)
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.allclose(parameter.grad, plain[key], atol=1e-4), key


def test_settings_without_effect_are_rejected():
    message = "recompute='mlp' has no effect: it acts on blocks with adapters, and spatial, temporal and"
    with pytest.raises(ValueError, match=message):
        AIMConfig(recompute="mlp", spatial=False, temporal=False, joint=False)


def test_unknown_settings_are_rejected():
    with pytest.raises(
        ValueError, match="recompute='all' is not a setting. Use one of 'nothing', 'pointwise', 'mlp', 'block'"
    ):
        AIMConfig(recompute="all")
