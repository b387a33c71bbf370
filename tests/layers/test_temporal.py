"""The kinds of the temporal branch: attention, ST-Adapter's convolution, and each where it can run."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import nn

import peft_aim
from benchmarks.coverage import catalogue, laws
from benchmarks.coverage.__main__ import random_clips
from benchmarks.measuring.counting import gmac
from benchmarks.methods.rivals import CONVOLUTION_ALONE
from benchmarks.methods.st_adapter import STAdapter
from peft_aim import AIMConfig
from peft_aim.backbone import inspect_backbone
from peft_aim.layers import AIMLayer, TemporalAttention, TemporalConvolution


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    options = {"num_frames": zoo.FRAMES, "temporal": "conv", "init_weights": False, **options}
    return get_peft_model(backbone, AIMConfig(**options)).eval()


def layers(model: nn.Module) -> dict[str, AIMLayer]:
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, AIMLayer)}


def kinds(model: nn.Module) -> dict[str, str]:
    having = {name: layer for name, layer in layers(model).items() if layer.has("default", "temporal")}
    return {name: str(layer.aim_settings["default"].temporal) for name, layer in having.items()}


def transcribed(layer: AIMLayer, leading: int) -> STAdapter:
    """Return our own transcription of ST-Adapter, with the weights of a layer."""
    down, conv, up = (getattr(layer, f"aim_temporal_{name}")["default"] for name in ("down", "conv", "up"))
    adapter = STAdapter(layer.base_layer, layer.anatomy, zoo.FRAMES, down.out_features, leading).to(down.weight.dtype)
    adapter.down, adapter.up = down, up
    adapter.over_time.weight.data = conv.weight.detach().flatten(2)
    adapter.over_time.bias.data = conv.bias.detach()
    return adapter


# ---- fidelity ----


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm_vit", "timm_clip", "hf_vit", "open_clip_vit", "torchvision_vit"])
def test_blocks_equal_the_transcription_of_st_adapter(name):
    model = adapt(zoo.build(name), spatial=False, joint=False, temporal_embedding=False).double()
    for layer in layers(model).values():
        x = torch.randn(2 * zoo.FRAMES, 17, layer.anatomy.width, dtype=torch.float64)
        model.base_model.model.aim_clips.frames.remember(x, zoo.FRAMES)
        found, expected = layer(x), transcribed(layer, leading=0)(x)
        found, expected = (y if isinstance(y, torch.Tensor) else y[0] for y in (found, expected))
        assert (found - expected).abs().max() < 1e-10
        assert (found - layer.base_layer(x)).abs().max() > 1e-3


@torch.no_grad()
def test_st_adapter_leaves_the_class_token_out_and_the_convolution_does_not():
    layer = layers(adapt(zoo.build("timm_vit")).double())["blocks.0"]
    x = torch.randn(2 * zoo.FRAMES, 5, layer.anatomy.width, dtype=torch.float64)
    adapter = transcribed(layer, leading=1)
    adapter.block = nn.Identity()
    branch, expected = layer.over_time("default", zoo.FRAMES, x), adapter(x) - x
    assert (branch - expected)[:, 1:].abs().max() < 1e-10
    assert expected[:, 0].abs().max() < 1e-10 < branch[:, 0].abs().max()


def test_parameters_and_arithmetic_are_st_adapters():
    backbone = timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0)
    frozen = gmac(lambda: backbone(torch.randn(2, 3, 224, 224)))
    model = get_peft_model(backbone, AIMConfig(num_frames=2, **CONVOLUTION_ALONE))
    trained = model.get_nb_trainable_parameters()[0]
    assert trained == 12 * (768 * 384 + 384 + 3 * 384 + 384 + 384 * 768 + 768) == 7_110_144  # 7.1 M
    views = 3 * 8 / 2  # three views of 8 frames
    assert views * gmac(lambda: model(torch.randn(1, 2, 3, 224, 224))) == pytest.approx(455, abs=0.5)
    assert views * frozen == pytest.approx(421.4, abs=0.5)


def test_the_start_is_st_adapters():
    layer = next(iter(layers(adapt(zoo.build("timm_vit"), init_weights=True)).values()))
    down, conv, up = (getattr(layer, f"aim_temporal_{name}")["default"] for name in ("down", "conv", "up"))
    assert not any(tensor.any() for tensor in (conv.weight, conv.bias, down.bias, up.bias))
    assert down.weight.any() and up.weight.any()


# ---- laws ----


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_an_untrained_convolution_changes_nothing(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    before = zoo.frame_average(backbone, clips)
    assert torch.equal(zoo.scores(adapt(backbone, init_weights=True)(clips)), before)


@torch.no_grad()
@pytest.mark.parametrize("name", zoo.ZOO)
def test_saved_convolutions_score_the_same_and_distinguish_the_order_of_frames(name, tmp_path):
    backbone, clips = zoo.build(name), zoo.make_clips(batch=3)
    fresh = copy.deepcopy(backbone)
    model = adapt(backbone, drop_path=0.5)
    model.save_pretrained(tmp_path)
    before = zoo.scores(model(clips))
    assert torch.equal(zoo.scores(PeftModel.from_pretrained(fresh, tmp_path)(clips)), before)
    assert not torch.allclose(zoo.scores(model(clips.flip(1))), before, atol=1e-5)
    clips[1] = torch.randn_like(clips[1])
    after = zoo.scores(model(clips))
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.allclose(before[1], after[1])


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_frame_reaches_its_neighbors_at_its_own_spatial_position_only(kernel):
    layer = layers(adapt(zoo.build("timm_swin"), temporal_kernel=kernel))["layers.0.blocks.0"]
    tokens = torch.randn(2 * 8, 4, 4, layer.anatomy.width)
    changed = tokens.clone()
    changed[8 + 3, 1, 2] += 1  # clip 1, frame 3
    before, after = (layer.over_time("default", 8, x) for x in (tokens, changed))
    reached = (before != after).any(-1).nonzero().tolist()
    assert reached == [[8 + frame, 1, 2] for frame in range(3 - kernel // 2, 3 + kernel // 2 + 1)]


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("recompute", ["nothing", "pointwise", "mlp", "block"])
def test_clips_of_any_length_train_all_parameters(frames, recompute):
    model = adapt(zoo.build("timm_vit"), recompute=recompute, temporal_kernel=3).train()
    zoo.scores(model(zoo.make_clips(frames=frames))).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".aim_" in name), name


WITHOUT_TEMPORAL_ATTENTION = {
    ("timm", "coat_lite_mini"): "all",  # factorized attention with convolutions inside
    ("timm", "convformer_s18"): "all",  # no attention at all
    ("timm", "edgenext_xx_small"): "all",  # blocks that are built otherwise
    ("timm", "gcvit_xxtiny"): "some",  # queries of the whole image in every second block
    ("timm", "volo_d1_224"): "some",  # outlook attention in the first stage
    ("transformers", "mobilevitv2"): "all",  # a norm over all positions; patch groups
}


@pytest.mark.parametrize(("library", "name"), WITHOUT_TEMPORAL_ATTENTION)
def test_all_laws_hold_where_attention_cannot_run_over_time(library, name):
    backbone = catalogue.build(library, name)
    held = laws.check(lambda: copy.deepcopy(backbone), random_clips(backbone), "auto")
    assert set(held.values()) <= {"holds", "not offered"}
    found = {
        type(layer.aim_settings["default"].temporal) for layer in laws.layers(laws.adapt(backbone, temporal="auto"))
    }
    some = WITHOUT_TEMPORAL_ATTENTION[library, name] == "some"
    assert found == ({TemporalAttention, TemporalConvolution} if some else {TemporalConvolution})


@torch.no_grad()
def test_auto_is_attention_where_attention_runs_everywhere():
    clips, options = zoo.make_clips(), {"temporal_adapters": 2, "temporal_conv": True, "temporal_embedding": "blocks"}
    scores = []
    for temporal in ("attention", "auto", True):
        torch.manual_seed(0)
        scores.append(zoo.scores(adapt(zoo.build("timm_vit"), temporal=temporal, **options)(clips)))
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


# ---- which blocks ----


def test_the_map_shows_which_blocks_have_which_branch(capsys):
    model = laws.adapt(catalogue.build("timm", "volo_d1_224"), temporal="auto")
    model.print_adapted_blocks()
    text = capsys.readouterr().out
    assert "convolution over 3 frames" in text and "its own forward on a grid with one row" in text
    assert text.startswith("VOLO with the adapter 'default': 10 of 10 blocks with attention are adapted")
    assert "Skipped" not in text and "network.0.0.attn" not in text
    assert "Without temporal attention:\n  network.0.0, network.0.1: OutlookAttention cannot be used" in text
    model = adapt(timm.create_model("test_convnext"))
    model.print_adapted_blocks()
    assert "'default': 9 of 9 blocks without attention are adapted" in capsys.readouterr().out


def test_blocks_without_attention_have_a_convolution_if_asked():
    backbone = catalogue.build("timm", "coatnet_0_rw_224")
    of_attention = kinds(laws.adapt(copy.deepcopy(backbone), temporal="auto"))
    assert all(name.startswith(("stages.2", "stages.3")) for name in of_attention)
    model = laws.adapt(backbone, temporal="auto", target_modules=r"stages\.[0-3]\.blocks\.1")
    assert kinds(model)["stages.0.blocks.1"] == "convolution over 3 frames" != kinds(model)["stages.2.blocks.1"]
    stage = layers(model)["stages.0.blocks.1"]
    assert [name for name, layer in layers(model).items() if layer.aim_temporal_embedding] == ["stages.0.blocks.1"]
    assert (
        stage.has("default", "temporal") and not stage.has("default", "spatial") and not stage.has("default", "joint")
    )
    model = laws.adapt(catalogue.build("timm", "mobilevit_xs"), temporal="conv", target_modules=["stages.1.1"])
    assert kinds(model) == {"stages.1.1": "convolution over 3 frames"}
    assert layers(model)["stages.1.1"].aim_temporal_embedding
    clips = random_clips(model.base_model.model)
    assert laws.scores(model(**clips)).isfinite().all()


def test_a_convolution_is_rejected_where_it_makes_no_sense():
    backbone = catalogue.build("timm", "coatnet_0_rw_224")
    with pytest.raises(ValueError, match="which overlaps with it, is matched as well. Give one of the two"):
        laws.adapt(backbone, temporal="conv", target_modules=r"stages\.0\.blocks\.1(\.conv2_kxk)?")
    with pytest.raises(
        ValueError, match=r"(?s)matches stages.0.blocks.1, which .* With temporal='auto', a convolution"
    ):
        laws.adapt(backbone, target_modules=[r"stages.0.blocks.1"])
    with pytest.raises(ValueError, match=r"(?s)has no block that AIM can adapt.*along_time.$"):
        get_peft_model(timm.create_model("test_convnext"), AIMConfig(temporal=False))
    with pytest.warns(UserWarning, match=r"(?s)adapts 4 of 8 .*To give these a convolution .* pass temporal='auto'"):
        get_peft_model(catalogue.build("timm", "gcvit_xxtiny"), AIMConfig())


def test_adapters_whose_targets_overlap_are_rejected():
    """The names of weights inside another adapter's module would depend on which adapters are loaded."""
    names = {"inner": ["stages.0.blocks.1.conv2_kxk"], "outer": ["stages.0.blocks.1"]}
    for first, second in (("inner", "outer"), ("outer", "inner")):
        options = {"temporal": "conv", "temporal_embedding": False}
        backbone = catalogue.build("timm", "coatnet_0_rw_224")
        untouched = repr(backbone)
        model = get_peft_model(backbone, AIMConfig(target_modules=names[first], **options))
        with pytest.raises(ValueError, match="is adapted by another adapter. Give one of the two"):
            model.add_adapter("second", AIMConfig(target_modules=names[second], **options))
        model.add_adapter("same", AIMConfig(target_modules=names[first], **options))
        assert repr(model.unload()) == untouched


def test_positions_are_never_taken_for_channels():
    """A ResMLP first mixes positions, by a linear layer on transposed tokens; nothing tells where its channels are."""
    backbone = timm.create_model("resmlp_12_224", img_size=64)
    assert "blocks.0" not in inspect_backbone(backbone).modules
    message = (
        r"(?s)has no block that AIM can adapt by itself.*Give target_modules, names of modules .* 'stem.*for example"
    )
    with pytest.raises(ValueError, match=message.replace("'stem", "'")):
        adapt(backbone)
    with pytest.raises(ValueError, match="matches blocks.0, which AIM cannot adapt as a block"):
        adapt(backbone, target_modules=["blocks.0"])


class Latents(nn.Module):
    """A stream of learned tokens, which no image changes, beside that of the image."""

    def __init__(self):
        super().__init__()
        self.image_size = (32, 32)
        self.stem, self.latents = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        constant = self.block(self.latents.expand(len(x), -1, -1))
        return self.head(x.mean(1) + constant.mean(1))


def test_a_block_that_no_image_changes_has_no_convolution():
    for options in ({"temporal": "auto"}, {"temporal": "conv", "target_modules": ["block"]}):
        with pytest.raises(ValueError, match="do not depend on the image|matches block, which AIM cannot adapt"):
            adapt(Latents(), **options)


def test_skipped_blocks_of_convolutional_networks_are_reported(capsys):
    with pytest.warns(
        UserWarning, match=r"(?s)adapts 1 of 5 blocks without attention of ResNet and skips these:.*layer2"
    ):
        model = adapt(timm.create_model("resnet10t", num_classes=2))
    model.print_adapted_blocks()
    assert "'default': 1 of 5 blocks without attention are adapted" in capsys.readouterr().out
    assert zoo.scores(model(torch.randn(1, zoo.FRAMES, 3, 32, 32))).isfinite().all()


def test_nothing_is_guessed_on_the_meta_device():
    with torch.device("meta"):
        backbone = timm.create_model("test_convnext")
    with pytest.raises(ValueError, match="on the device 'meta' nothing can be checked"):
        get_peft_model(backbone, AIMConfig(temporal="auto"))


def test_the_temporal_branch_can_be_limited_to_some_blocks():
    for chosen, expected in {"even": [0, 2], "odd": [1], 1: [1], (2, 0): [0, 2]}.items():
        model = adapt(zoo.build("timm_vit"), temporal="attention", temporal_layers=chosen)
        found = list(layers(model).values())
        assert [i for i, layer in enumerate(found) if layer.has("default", "temporal")] == expected
        assert all(layer.has("default", "spatial") and layer.has("default", "joint") for layer in found)
    alone = {"spatial": False, "joint": False, "temporal_embedding": False}
    assert list(layers(adapt(zoo.build("timm_vit"), temporal_layers=[1], **alone))) == ["blocks.1"]
    with pytest.raises(
        ValueError, match="temporal_layers=3 selects block 3, but VisionTransformer has 3 blocks, 0 to 2"
    ):
        adapt(zoo.build("timm_vit"), temporal_layers=3)
    with pytest.raises(ValueError, match=r"layers_to_transform=\[1\] and temporal_layers='even' together exclude all"):
        adapt(zoo.build("timm_vit"), temporal_layers="even", layers_to_transform=[1], **alone)


def test_swin_as_in_the_paper_has_its_number_of_parameters():
    """9.17 M for Swin-B on Kinetics-400. The official Swin has no temporal embedding, but a frozen bias over time."""
    config = AIMConfig(
        num_frames=32, num_labels=400, temporal_layers="even", temporal_embedding=False, final_norm=True
    )
    model = get_peft_model(timm.create_model("swin_base_patch4_window7_224", num_classes=0), config)
    assert model.get_nb_trainable_parameters()[0] == 9_174_128


def test_modules_inside_convolved_blocks_cannot_be_trained_as_well():
    """PEFT would copy them, with the layer of AIM around or inside."""
    with pytest.raises(ValueError, match=r"matches stages.0.blocks.0.mlp, which overlaps with the modules that AIM"):
        adapt(timm.create_model("test_convnext"), modules_to_save=["mlp"])


# ---- saving and options ----


def test_adapters_of_different_kinds_share_a_backbone(tmp_path):
    backbone, clips = zoo.build("timm_vit"), zoo.make_clips()
    model = adapt(backbone)
    model.add_adapter("attention", AIMConfig(init_weights=False))
    with torch.no_grad():
        conv = zoo.scores(model(clips))
        model.set_adapter("attention")
        attention = zoo.scores(model(clips))
        model.set_adapter("default")
        assert torch.equal(zoo.scores(model(clips)), conv) and not torch.allclose(attention, conv)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)unexpected \(6\): blocks.0.aim_temporal_conv.bias.*A hot swap needs"):
        peft_aim.hotswap_adapter(model, tmp_path, adapter_name="attention")
    before = model.base_model.model.blocks[0].aim_temporal_conv["default"].weight.clone()
    with torch.no_grad():
        model.base_model.model.blocks[0].aim_temporal_conv["default"].weight.zero_()
    peft_aim.hotswap_adapter(model, tmp_path)
    assert torch.equal(model.base_model.model.blocks[0].aim_temporal_conv["default"].weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal": "both"}, "temporal='both' is not a setting. Use one of 'attention', 'conv', 'auto', or False"),
        ({"temporal": None}, "temporal=None is not a setting"),
        ({"temporal": "conv", "temporal_kernel": 4}, "temporal_kernel=4 is not a positive odd integer"),
        ({"temporal": "conv", "temporal_kernel": 0}, "temporal_kernel=0 is not a positive odd integer"),
        ({"temporal_kernel": 5}, "temporal_kernel=5 has no effect: there is no convolution over time"),
        ({"temporal_layers": "first"}, "temporal_layers='first' is not 'even', 'odd', an index of a block or a list"),
        ({"temporal_layers": []}, r"temporal_layers=\[\] is not 'even'"),
        ({"temporal_layers": "even", "temporal": False}, "temporal_layers='even' contradicts temporal=False"),
        ({"temporal": "conv", "temporal_adapters": 2}, "temporal_adapters=2 contradicts temporal='conv'"),
    ],
)
def test_wrong_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        AIMConfig(**options)
