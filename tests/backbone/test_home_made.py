"""Home-made layouts: all laws hold for blocks of two modules and the like, and what cannot be adapted is refused."""

from __future__ import annotations

import copy
import warnings

import home_made
import pytest
import torch
import zoo
from home_made import DEPTH, Foo, LayerScale, Net, Pairs, WithoutClassToken, feed_forward
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.coverage import laws
from benchmarks.measuring.counting import gmac
from peft_aim import AIMConfig
from peft_aim.backbone import inspect_backbone
from peft_aim.layers import AIMLayer

PAIRS = [name for name in home_made.LAYOUTS if not name.startswith("torch_encoder") and "several" not in name]


@pytest.fixture(autouse=True)
def without_fast_path():
    """torch's transformer layers round differently on their fast path, which adapters, as any hooks, switch off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def clips(batch: int = laws.CLIPS) -> Tensor:
    return zoo.make_clips(batch, laws.FRAMES)


@pytest.mark.parametrize("name", home_made.LAYOUTS)
def test_all_laws_hold(name, monkeypatch):
    backbone = home_made.build(name)
    found = inspect_backbone(backbone)
    monkeypatch.setattr("peft_aim.model.inspect_backbone", lambda *_: found)
    held = laws.check(lambda: copy.deepcopy(backbone), {"images": clips()})
    assert {result.partition(":")[0] for result in held.values()} <= {"holds", "not offered"}
    assert list(held) == [law.__name__ for law in laws.LAWS]


@pytest.mark.parametrize("name", home_made.LAYOUTS)
def test_every_block_has_all_adapters(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(home_made.build(name), AIMConfig(num_frames=laws.FRAMES))
    layers = [module for module in model.modules() if isinstance(module, AIMLayer)]
    for branch in ("temporal", "spatial", "joint"):
        assert sum(layer.has("default", branch) for layer in layers) == DEPTH
    assert len(layers) == DEPTH * (1 + (name in PAIRS))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["pairs_of_foo", "pairs_of_layer_scales", "residual_wrappers", "pairs_with_gated_mlps"]
)
def test_blocks_of_two_modules_compute_the_paper_s_equations(name):
    """x <- x + T(attn_T(x)); x <- x + a + S(a); x <- x + mlp(h) + s J(h), with J on the normalized tokens."""
    model = laws.adapt(home_made.build(name), scale=0.7, temporal_embedding=False)
    first, second = [module for module in model.modules() if isinstance(module, AIMLayer)][:2]
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    follows = [m for m in model.modules() if isinstance(m, AIMLayer)][2]
    follows.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    model(clips())

    def adapter(layer: AIMLayer, branch: str, x: Tensor) -> Tensor:
        down, up = (getattr(layer, f"aim_{branch}_{part}")["default"] for part in ("down", "up"))
        return up(nn.functional.gelu(down(x)))

    def part(layer: AIMLayer, name: str) -> nn.Module:
        return copy.deepcopy(layer.base_layer).get_submodule(name)

    def gain(layer: AIMLayer) -> Tensor | float:
        return layer.base_layer.scale if isinstance(layer.base_layer, LayerScale) else 1.0

    for module in (first, second):  # from here on, without hooks
        module.detach()
    x = seen[0]
    x = x + first.over_time("default", laws.FRAMES, x)
    normed = x if first.anatomy.norm1 is None else part(first, first.anatomy.norm1)(x)
    a = part(first, first.anatomy.attention)(normed)
    x = x + gain(first) * (a + adapter(first, "spatial", a))
    h = part(second, second.anatomy.norm2)(x)
    given = x if second.anatomy.has_norm_inside_mlp else h
    mixed = part(second, second.anatomy.mlp)(given)
    x = x + gain(second) * (mixed + 0.7 * adapter(second, "joint", h))
    torch.testing.assert_close(seen[1], x, rtol=1e-5, atol=1e-5)


MIXES = "it mixes spatial positions, but"
NOT_ADDED = (
    f"{MIXES} its caller does not add its output to its input with factor 1, so it would not add a temporal branch"
)
THREE = r"(?s)can adapt 3 blocks of Net, but not these:\n"
ACCOUNT = {
    "pairs_with_a_factor": f"trunk.layers.0.0, .* {NOT_ADDED} either",
    "blocks_with_the_mlp_first_and_a_factor": "trunk.0, trunk.1, trunk.2: its mlp runs before its attention attn, so "
    "a temporal branch before the block would not get the tokens that its attention gets",
    "parallel_branches": f"trunk.layers.0.0, .* {NOT_ADDED} either",
    "another_token_mixer": f"{THREE}  trunk.3: {MIXES} TokenMLP cannot .*pass target_modules='trunk",
    "a_token_mixer_in_a_block": f"trunk.0.extra, .* {MIXES} TokenMLP cannot",
    "an_attention_beside_blocks": f"{THREE}  trunk.3.inner: {NOT_ADDED}",
    "one_branch_of_several_with_a_factor": f"{THREE.replace('3', '2')}  trunk.layers.0.0: {NOT_ADDED}",
}


@pytest.mark.parametrize("name", home_made.REFUSED)
def test_modules_that_mix_positions_are_not_skipped_silently(name):
    with pytest.raises(ValueError, match=ACCOUNT[name]):
        get_peft_model(home_made.build(name), AIMConfig())


def test_layers_are_counted_as_blocks(capsys):
    config = AIMConfig(num_frames=4, layers_to_transform=[0, 2], temporal_layers="even", drop_path=0.2)
    model = get_peft_model(home_made.build("pairs_of_foo"), config)
    layers = {name: m for name, m in model.base_model.model.named_modules() if isinstance(m, AIMLayer)}
    assert [*layers] == ["trunk.layers.0.0", "trunk.layers.0.1", "trunk.layers.2.0", "trunk.layers.2.1"]
    rates = [layer.aim_settings["default"].drop_path for layer in layers.values()]
    assert rates == pytest.approx([0, 0, 0.2, 0.2])
    model.print_adapted_blocks()
    text = capsys.readouterr().out
    assert "2 of 3 blocks with attention are adapted" in text
    assert "trunk.layers.2.0 + 1 " in text and "itself; net.0 net" in text
    with pytest.raises(ValueError, match="selects block 3, but Net has 3 blocks, 0 to 2"):
        get_peft_model(home_made.build("pairs_of_foo"), AIMConfig(layers_to_transform=[3]))


def test_a_half_without_the_other_is_reported():
    with pytest.warns(UserWarning, match=r"only one half of 3 blocks:\n  trunk.layers.0.0: trunk.layers.0.1, "):
        get_peft_model(home_made.build("pairs_of_foo"), AIMConfig(target_modules=r"trunk\.layers\.\d\.0"))

    class NoSkip(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            for attend, mix in self.layers:
                x = mix(x + attend(x))
            return x

    message = r"only one half of 3 blocks:\n  trunk.layers.0.0: trunk.layers.0.1 follows, but its caller does not add"
    with pytest.warns(UserWarning, match=message):
        get_peft_model(Net(NoSkip(Foo, feed_forward)), AIMConfig())
    message = (
        r"only one half of 1 blocks:\n  trunk.layers.2.0: trunk.layers.2.1 follows, but its output does not reach"
    )
    with pytest.warns(UserWarning, match=message):
        get_peft_model(Net(WithoutClassToken(Foo, feed_forward)), AIMConfig())


def test_saved_halves_load_without_a_warning(tmp_path):
    for options in ({}, {"joint": False}, {"spatial": False, "temporal": False}):
        model = laws.adapt(home_made.build("pairs_of_foo"), temporal_embedding=False, **options)
        model.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = PeftModel.from_pretrained(home_made.build("pairs_of_foo"), tmp_path)
        assert torch.equal(model(clips()), loaded(clips()))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["torch_encoder_norms_first", "torch_encoder_norms_last", "torch_encoder_layers"])
def test_torch_s_fast_path_does_not_bypass_adapters(name, grad, train):
    torch.backends.mha.set_fastpath_enabled(True)
    backbone = home_made.build(name)
    with torch.set_grad_enabled(grad):
        before = zoo.frame_average(backbone, clips())
        model = laws.adapt(backbone).train(train)
        for branch in ("temporal", "spatial", "joint"):
            layers = [m for m in model.modules() if isinstance(m, AIMLayer)]
            ups = [getattr(layer, f"aim_{branch}_up")["default"] for layer in layers]
            with torch.no_grad():
                one = model(clips())
                ups[-1].weight.mul_(2)
            assert not torch.allclose(one, model(clips()), atol=1e-6)
        with model.disable_adapter():
            torch.testing.assert_close(model(clips()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [*((name, 3) for name in home_made.LAYOUTS), ("pairs_of_msa", 12)])
def test_attaching_costs_two_images_at_most(name, depth, monkeypatch):
    monkeypatch.setattr(home_made, "DEPTH", depth)
    monkeypatch.setattr(
        zoo, "SIZE", 112
    )  # 197 tokens: what is tried on a few sequences hardly depends on their number
    model = home_made.build(name)
    of_image = gmac(lambda: model(torch.zeros(1, 3, zoo.SIZE, zoo.SIZE)))
    ratio = gmac(lambda: get_peft_model(model, AIMConfig())) / of_image
    assert ratio <= 2.2 and (depth == 3 or ratio <= 1)  # of copies, one runs


def test_trunks_may_use_what_their_halves_store():
    class Storing(Foo):
        def forward(self, x: Tensor) -> Tensor:
            self.penalty = self.to_qkv.weight.square().mean()
            return super().forward(x)

    class Using(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            penalty = 0
            for attend, mix in self.layers:
                x = x + attend(x)
                x, penalty = x + mix(x), penalty + attend.penalty
            return x + 0 * penalty

    model = get_peft_model(Net(Using(Storing, feed_forward)), AIMConfig())
    assert not hasattr(model.trunk.layers[0][0].base_layer, "penalty")
    assert sum(isinstance(module, AIMLayer) for module in model.modules()) == 2 * DEPTH
