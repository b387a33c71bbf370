"""Trunks that call norms, attentions and MLPs themselves get the adapters of blocks that are modules."""

from __future__ import annotations

from functools import partial

import home_made
import pytest
import torch
import torch.nn.functional as F
import zoo
from home_made import DEPTH, HEADS, MSA, D, Flat, Gamma, MLPFirst, Net, mlp
from peft import get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.backbone.sums import _layouts, _Sum
from peft_aim.layers import AIMLayer

PLACES = {"0": "norm1", "1": "attn", "2": "norm2", "3": "mlp"}
FRAMES = 4


class Block(nn.Module):
    """What the trunk does between two sums, as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(D), MSA(), nn.LayerNorm(D), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def adapt(trunk: nn.Module, **options: object) -> nn.Module:
    backbone = Net(trunk).eval()
    zoo.randomize(backbone)
    torch.manual_seed(1)
    return get_peft_model(backbone, AIMConfig(num_frames=FRAMES, init_weights=False, **options)).eval()


def as_blocks(flat: nn.Module, **options: object) -> tuple[nn.Module, dict[str, str]]:
    """Return the same model made of blocks, with the same adapters, and its names of the parameters."""
    model = adapt(nn.Sequential(*[Block() for _ in range(DEPTH)]), **options)
    names = {}
    for name in flat.state_dict():
        before, _, rest = name.partition("trunk.layers.")
        if rest:
            index, place, *rest = rest.replace(".base_layer", "").split(".")
            inner = "." if "aim_" in rest[0] else f".base_layer.{PLACES[place]}."
            rest = f"trunk.{index}{inner}{'.'.join(rest)}"
        names[name] = before + rest if rest else name
    model.load_state_dict({names[name]: tensor for name, tensor in flat.state_dict().items()})
    return model, names


OPTIONS = {
    "all": {"drop_path": 0.3, "temporal_embedding": False},
    "embedding": {},
    "two": {"temporal_adapters": 2, "scale": 0.5},
    "no joint": {"joint": False},
    "no temporal": {"temporal": False},
    "convolution": {"temporal": "conv"},
    "block": {"recompute": "block"},
    "mlp": {"recompute": "mlp"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_scores_and_gradients_are_those_of_blocks(options):
    flat = adapt(Flat(), **options)
    blocks, names = as_blocks(flat, **options)
    clips, results = zoo.make_clips(2, FRAMES), []
    for model in (flat, blocks):
        torch.manual_seed(2)
        scores = model.train()(clips)
        scores.square().sum().backward()
        results.append((scores, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    gradients = {names[name]: gradient for name, gradient in results[0][1].items()}
    assert all(gradient is not None for gradient in gradients.values())
    torch.testing.assert_close(gradients, results[1][1], rtol=1e-3, atol=1e-5)


class Dropped(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + self.drop(attend(norm1(x)))
            x = x + self.drop(mix(norm2(x)))
        return x


class Scaled(Flat):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Gamma()

    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + self.scale(attend(norm1(x)))
            x = x + self.scale(mix(norm2(x)))
        return x


@torch.no_grad()
def test_a_dropout_of_the_caller_spares_the_temporal_branch():
    """With everything else dropped, x <- x + T(attn_T(norm(x))) is left, in training."""
    model = adapt(Dropped(), temporal_embedding=False).train()
    trunk, seen = model.base_model.model.trunk, []
    for module in (trunk, model.base_model.model.norm):
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    trunk.drop.p = 1.0
    model(zoo.make_clips(2, FRAMES))
    x, result = seen
    for layer in (m for m in model.modules() if isinstance(m, AIMLayer) and m.anatomy.attention is not None):
        x = x + layer.over_time("default", FRAMES, x)
    torch.testing.assert_close(result, x)


@torch.no_grad()
def test_a_layer_scale_of_the_caller_is_on_attention_alone():
    model = adapt(Scaled(), temporal_embedding=False)
    trunk, seen = model.base_model.model.trunk, []
    for module in (trunk, model.base_model.model.norm):
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    trunk.scale.scale.zero_()
    model(zoo.make_clips(2, FRAMES))
    x, result = seen
    for layer in (m for m in model.modules() if isinstance(m, AIMLayer) and m.anatomy.attention is not None):
        x = x + layer.over_time("default", FRAMES, x)
    torch.testing.assert_close(result, x)


@torch.no_grad()
def test_switching_adapters_leaves_nothing_behind():
    model = adapt(Dropped())
    clips = zoo.make_clips(2, FRAMES)
    model.add_adapter("other", AIMConfig(num_frames=FRAMES, temporal=False, temporal_embedding=False))
    first = model(clips)
    with model.disable_adapter():
        before = model(clips)
    model.set_adapter("other")
    torch.testing.assert_close(model(clips), before)
    model.set_adapter("default")
    assert torch.equal(model(clips), first) and not torch.allclose(first, before)
    layers = [module for module in model.modules() if isinstance(module, AIMLayer)]
    assert all(layer._given.get() is None and layer._change.get() is None for layer in layers)


@torch.no_grad()
def test_with_the_mlp_first_the_temporal_branch_comes_behind_it():
    """x <- x + mlp(norm1(x)) + J, then x <- x + T(attn_T(norm2(x))), then x <- x + attn(norm2(x)) + S."""
    model = adapt(nn.Sequential(MLPFirst(), MLPFirst()), temporal_embedding=False, spatial=False, joint=False)
    seen: list[Tensor] = []
    model.base_model.model.trunk.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model.base_model.model.norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(zoo.make_clips(2, FRAMES))
    x, result = seen
    for block in model.base_model.model.trunk:
        x = x + block.mlp(block.norm1(x))
        x = x + block.attn.over_time("default", FRAMES, x)
        x = x + block.attn.base_layer(block.norm2(x))
    torch.testing.assert_close(result, x)


@torch.no_grad()
def test_they_can_be_compiled():
    model, clips = adapt(Dropped()), zoo.make_clips(2, FRAMES)
    before = model(clips)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(clips), before)
    layer = next(module for module in model.modules() if isinstance(module, AIMLayer))
    layer.compile(backend="eager")
    torch.testing.assert_close(model(clips), before)


class DroppedByAFunction(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + F.dropout(attend(norm1(x)), 0.1, self.training)
            x = x + mix(norm2(x))
        return x


class NormsBehind(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + norm1(attend(x))
            x = x + norm2(mix(x))
        return x


class OneNorm(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for _, attend, norm, mix in self.layers:
            x = x + attend(norm(x))
            x = x + mix(norm(x))
        return x


class OneAttention(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + attend(norm1(x))
            x = x + attend(norm2(x))
            x = x + mix(x)
        return x


class DroppedNorms(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + attend(F.dropout(norm1(x), 0.1, self.training))
            x = x + mix(norm2(x))
        return x


class Halved(Flat):
    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + 0.5 * attend(norm1(x))
            x = x + mix(norm2(x))
        return x


class HalvedPatches(Flat):
    """The factor on the last token is 1."""

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.cat([torch.full((x.shape[1] - 1, 1), 0.5), torch.ones(1, 1)])
        for norm1, attend, norm2, mix in self.layers:
            x = x + factor * attend(norm1(x))
            x = x + mix(norm2(x))
        return x


IN_TRAINING = (
    r"but something else in training \(a dropout in between has to be a module that takes the output, or have the "
    r"rate 0\), so it would not add a temporal branch either"
)
NOT_ADDED = "its caller does not add its output to its input with factor 1"
REFUSED = {
    DroppedByAFunction: f"its caller adds its output to its input in evaluation, {IN_TRAINING}",
    DroppedNorms: f"its caller adds its output to its input in evaluation, {IN_TRAINING}",
    NormsBehind: f"{NOT_ADDED}: trunk.layers.0.0, a LayerNorm, takes it, so it would",
    OneNorm: f"{NOT_ADDED}, but perhaps to that of trunk.layers.0.2; trunk.layers.0.2 is called on other tokens",
    Halved: f"{NOT_ADDED}, so it would not add a temporal branch either",
    HalvedPatches: f"{NOT_ADDED}, so it would not add a temporal branch either",
    OneAttention: f"{NOT_ADDED}, but perhaps to that of trunk.layers.0.2; trunk.layers.0.1 is called on other tokens",
}


@pytest.mark.parametrize("trunk", REFUSED)
def test_what_the_caller_does_instead_is_said(trunk):
    with pytest.raises(
        ValueError, match=rf"  trunk.layers.0.1[:,].* it mixes spatial positions, but {REFUSED[trunk]}"
    ):
        get_peft_model(Net(trunk()), AIMConfig())


def test_few_different_numbers_make_no_sum():
    """In half precision, most values of any sum are among those of another one."""
    backbone = Net(Halved())
    backbone.image_size = (224, 224)
    with pytest.raises(ValueError, match="does not add its output to its input with factor 1"):
        get_peft_model(backbone.bfloat16(), AIMConfig())


def test_a_sum_is_seen_without_its_registers_or_with_others():
    tokens, noise, others = torch.randn(3, 2, 8, D)
    total = _Sum(tokens, noise)

    def is_seen(count: int, with_others: bool) -> bool:
        kept = (tokens + noise)[:, count:]
        seen = torch.cat([others[:, :count], kept], 1) if with_others else kept
        return total.is_in(seen, partial(_layouts, seen))

    assert all(is_seen(count, with_others=False) for count in (0, 1, 7))
    assert is_seen(4, with_others=True) and not is_seen(5, with_others=True)


class DropPath(nn.Module):
    """Stochastic depth without a factor in training."""

    rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, 1) >= self.rate) if self.training else x


@pytest.mark.parametrize("rate", [0.0, 0.5])
@torch.no_grad()
def test_a_temporal_branch_is_not_dropped_whatever_the_rate_was_at_first(rate):
    trunk = Dropped()
    trunk.drop = DropPath()
    trunk.drop.rate = rate
    model, seen = adapt(trunk, temporal_embedding=False).train(), []
    trunk.drop.rate = 1.0
    for module in (model.base_model.model.trunk, model.base_model.model.norm):
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(zoo.make_clips(2, FRAMES))
    x, result = seen
    for layer in (m for m in model.modules() if isinstance(m, AIMLayer) and m.anatomy.attention is not None):
        x = x + layer.over_time("default", FRAMES, x)
    torch.testing.assert_close(result, x)


def test_a_call_without_the_norm_is_an_error():
    model = adapt(Flat())
    attention = model.base_model.model.trunk.layers[0][1]
    with pytest.raises(RuntimeError, match=r"runs, but not the norm trunk.layers.0.0 before it, which takes the tok"):
        attention(torch.zeros(FRAMES, 17, D))


def test_its_norm_cannot_be_trained_by_modules_to_save():
    message = r"matches trunk.layers.0.0, which overlaps with the modules that AIM adapts"
    with pytest.raises(ValueError, match=message):
        get_peft_model(Net(Flat()), AIMConfig(modules_to_save=["trunk.layers.0.0"]))


@torch.no_grad()
def test_torch_s_own_attention_gets_changed_keys_too():
    """In x + attention(x, x, x), the temporal branch changes the keys and values as well as the queries."""

    class Plain(Flat):
        def forward(self, x: Tensor) -> Tensor:
            for _, attend, norm, mix in self.layers:
                x = x + attend(x, x, x)[0]
                x = x + mix(norm(x))
            return x

    model = adapt(Plain(lambda: nn.MultiheadAttention(D, HEADS, batch_first=True)))
    seen: list[tuple[Tensor, ...]] = []
    for layer in model.base_model.model.trunk.layers:
        layer[1].base_layer.register_forward_pre_hook(lambda m, args: seen.append(args))
    model(zoo.make_clips(2, FRAMES))
    assert len(seen) == home_made.DEPTH
    assert all(query is key is value for query, key, value in seen)


def test_the_summary_says_where_the_norms_are(capsys):
    adapt(Flat()).print_adapted_blocks()
    assert "(norm outside) itself; (norm outside) itself" in capsys.readouterr().out
