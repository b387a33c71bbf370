"""After an adapter is added, each of its parts runs and has an effect on the output; otherwise it is removed again."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import zoo
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measuring.counting import gmac
from peft_aim import AIMConfig
from peft_aim.layers.effect import check_effect
from peft_aim.tracing import without_arithmetic

D = 8


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


class Block(nn.Module):
    """A standard block; subclasses change one thing."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(D), nn.LayerNorm(D), Attention()
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """An image model of two blocks; subclasses change one thing."""

    block: type = Block

    def __init__(self):
        super().__init__()
        self.image_size = (32, 32)
        self.stem, self.head = nn.Conv2d(3, D, 8, 8), nn.Linear(D, 2)
        self.blocks = nn.ModuleList([self.block(), self.block()])

    def trunk(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(self.stem(images).flatten(2).mT).mean(1))


class DiscardsAttention(Model):
    class block(Block):  # noqa: N801
        def forward(self, x):
            self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))


class Auxiliary(Model):
    """The second block computes something that is not returned."""

    def trunk(self, x):
        self.blocks[1](x)
        return self.blocks[0](x)


class TrainsByWeights(Model):
    """The attention is not called, but its weights are used, where gradients are recorded."""

    class block(Block):  # noqa: N801
        def forward(self, x):
            attend = Attention.forward if torch.is_grad_enabled() else Attention.__call__
            x = x + attend(self.attn, self.norm1(x))
            return x + self.mlp(self.norm2(x))


class Bypasses(Model):
    """A list of its own holds the blocks, which are not replaced there."""

    def __init__(self):
        super().__init__()
        self.order = [(block,) for block in self.blocks]

    def trunk(self, x):
        for (block,) in self.order:
            x = block(x)
        return x


class Ignores(Model):
    """A module is called, and its result ignored."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D))

    def trunk(self, x):
        self.extra(x)
        return super().trunk(x)


IGNORED = "runs, but the output does not depend on it"
NAMED = {"norm1_module": "norm1", "attention_module": "attn", "norm2_module": "norm2", "mlp_module": "mlp"}
PLAIN = {"temporal_embedding": False}


@pytest.mark.parametrize(
    ("model", "options", "observed"),
    [
        (
            DiscardsAttention,
            NAMED,
            rf"blocks.0, blocks.1: spatial {IGNORED}\nTo leave out these modules, pass exclude_modules=\['blocks.0', "
            r"'blocks.1'\]; to leave out these parts everywhere, pass spatial=False.",
        ),
        (Auxiliary, PLAIN, rf"\n  blocks.1: temporal {IGNORED}; spatial {IGNORED}; joint {IGNORED}\nTo leave"),
        (TrainsByWeights, PLAIN, r"\n  blocks.0, blocks.1: spatial is never run\nTo leave"),
        (Bypasses, PLAIN, r"\n  blocks.0, blocks.1: temporal is never run\nTo leave"),
        (Bypasses, {"temporal": False}, r"\n  blocks.0: temporal_embedding is never run\nTo leave"),
        (
            Ignores,
            {**PLAIN, "temporal": "conv", "target_modules": r"extra|blocks\.0"},
            rf"  extra: temporal {IGNORED}\n",
        ),
    ],
)
def test_adapters_without_effect_are_removed_again(model, options, observed):
    backbone = model().train()
    backbone.blocks[0].eval()
    before = state(backbone)
    message = f"(?s)^Parts of the adapter 'default' have no effect on the output of {model.__name__} .*{observed}"
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, AIMConfig(num_frames=2, init_weights=False, **options))
    assert state(backbone) == before
    assert not any(isinstance(module, BaseTunerLayer) for module in backbone.modules())


def state(model: nn.Module) -> dict[str, object]:
    """Return all that an adapter must not change."""
    return {
        "names": [name for name, _ in model.named_modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "weights": [tensor.tolist() for tensor in model.state_dict().values()],
    }


class DeadUnits(Model):
    """Nothing passes its ReLU, whatever the image."""

    def trunk(self, x):
        return F.relu(super().trunk(x) - 1e6)


class WithoutGradients(Model):
    @torch.no_grad()
    def trunk(self, x):
        return super().trunk(x)


class Reentrant(Model):
    def trunk(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return x


class DetachedCopy(Model):
    """A detached auxiliary output beside the usual one, as of a momentum or logging branch."""

    def forward(self, images):
        scores = super().forward(images)
        return {"logits": scores, "teacher": scores.detach()}


class GradientsInTraining(Model):
    def trunk(self, x):
        with torch.set_grad_enabled(self.training):
            return super().trunk(x)


class SeveralOutputs(Model):
    def forward(self, images):
        x = self.stem(images).flatten(2).mT
        return {"logits": self.head(self.blocks[0](x).mean(1)), "others": [(self.blocks[1](x), None)]}


EVERYWHERE = {"num_frames": 2, "temporal_conv": True, "temporal_embedding": "blocks", "num_labels": 2}


@pytest.mark.parametrize("model", [Model, DeadUnits, SeveralOutputs, DetachedCopy, GradientsInTraining])
def test_adapters_with_an_effect_stay(model):
    adapted = get_peft_model(model(), AIMConfig(**EVERYWHERE))
    assert sum(isinstance(module, BaseTunerLayer) for module in adapted.modules()) == 3


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("model", [WithoutGradients, Reentrant])
def test_adapters_that_no_gradient_reaches_stay_with_a_warning(model):
    named = (
        rf"^No gradient reaches these parts of the adapter 'default' from the output of {model.__name__}, so training "
        r"will not change them:\n  blocks.0, blocks.1: temporal, spatial, joint\nThe model runs"
    )
    with pytest.warns(UserWarning, match=named):
        adapted = get_peft_model(model(), AIMConfig(**EVERYWHERE))
    assert sum(isinstance(module, BaseTunerLayer) for module in adapted.modules()) == 3
    get_peft_model(model(), AIMConfig(**EVERYWHERE, inference_mode=True))


def test_without_gradients_the_check_needs_few_runs():
    class Deep(WithoutGradients):
        def __init__(self):
            super().__init__()
            self.blocks.extend(self.block() for _ in range(4))

    model, runs = Deep(), []
    adapted = get_peft_model(model, AIMConfig(num_frames=2, inference_mode=True))
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    check_effect(model, model.aim_clips.inspection, *adapted.active_adapters, trainable=False)
    assert len(runs) == 2 + 1 + 3 + 1  # two without arithmetic; the output, and with noise for each kind of part


def test_models_that_cannot_record_gradients_are_adapted():
    model = Model()
    model.blocks[0].register_forward_hook(lambda module, args, output: print(output.numpy().shape))
    get_peft_model(model, AIMConfig(num_frames=2))


@pytest.mark.parametrize("name", ["timm_clip", "hf_swin"])
def test_the_check_leaves_no_trace(name):
    model = get_peft_model(zoo.build(name), AIMConfig(num_frames=2, num_labels=3)).train()
    backbone = model.base_model.model
    backbone.requires_grad_(True)
    before, randomness = copy.deepcopy(state(backbone)), torch.get_rng_state()
    check_effect(backbone, backbone.aim_clips.inspection, "default")
    assert state(backbone) == before and torch.equal(torch.get_rng_state(), randomness)
    assert not any(parameter.grad is not None for parameter in backbone.parameters())
    model.add_adapter("other", AIMConfig(num_frames=4, temporal_embedding=False))
    assert model.active_adapters == ["default"]
    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    assert all(layer.active_adapters == ["default"] for layer in layers)


def test_the_check_needs_almost_no_arithmetic():
    model = timm.create_model("vit_tiny_patch16_224", depth=1)
    adapted = get_peft_model(model, AIMConfig(num_frames=2))
    image = gmac(lambda: model(torch.zeros(1, 3, 224, 224)))
    assert gmac(lambda: check_effect(model, model.aim_clips.inspection, "default")) < 0.01 * image
    assert adapted.active_adapters == ["default"]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 9, 8)),
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 9, 8)),
        (nn.Linear(4, 6), (2, 3, 4)),
        (nn.Linear(4, 6, bias=False), (4,)),
        (nn.MultiheadAttention(4, 2), None),
    ],
)
def test_without_arithmetic_shapes_are_the_same(layer, shape):
    given = [torch.randn(shape)] if shape else [torch.randn(5, 2, 4)] * 3
    expected = layer(*given)
    with without_arithmetic(layer):
        found = layer(*given)
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    assert all(one.shape == other.shape and one.requires_grad == other.requires_grad for one, other in pairs)


def test_layers_whose_weights_are_not_in_memory_are_not_loaded():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.LayerNorm(4), nn.MultiheadAttention(4, 2))
    model = model.to("meta")
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with without_arithmetic(model):
        h = model[:3](x)
        mixed, weights = model[3](h, h, h)
    assert mixed.shape == (1, 8, 4) and weights.shape == (8, 1, 1)
    assert not mixed.any() and torch.autograd.grad(mixed.sum(), x)[0].shape == x.shape


def test_offloaded_layers_are_not_loaded(monkeypatch):
    backbone = get_peft_model(Model(), AIMConfig(num_frames=2)).base_model.model
    cpu_offload(backbone, torch.device("cpu"))
    loaded, load = [], AlignDevicesHook.pre_forward

    def note(hook: AlignDevicesHook, layer: nn.Module, *args: object, **kwargs: object) -> object:
        loaded.append(layer)
        return load(hook, layer, *args, **kwargs)

    monkeypatch.setattr(AlignDevicesHook, "pre_forward", note)
    check_effect(backbone, backbone.aim_clips.inspection, "default")
    assert not any(isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm)) for layer in loaded)
    backbone(torch.zeros(1, 2, 3, 32, 32))
    assert any(isinstance(layer, nn.Linear) for layer in loaded)


def test_nothing_is_checked_on_the_device_meta():
    with torch.device("meta"):
        model = DiscardsAttention()
    get_peft_model(model, AIMConfig(num_frames=2, **NAMED))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_saved_adapters_are_checked_before_their_weights_are_read(low_cpu_mem_usage, tmp_path):
    from peft import PeftModel

    fresh = Model()
    model = get_peft_model(copy.deepcopy(fresh), AIMConfig(num_frames=2, num_labels=3, final_norm=True))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 3)
    backbone = Bypasses()
    before = state(backbone)
    with pytest.raises(ValueError, match="have no effect on the output of Bypasses"):
        PeftModel.from_pretrained(backbone, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert state(backbone) == before
