"""Causal adapters: laws over the zoo, and streams that give what the model gives for the whole clip."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterator

import pytest
import torch
import transformers as tf
import zoo
from peft import PeftModel, get_peft_model
from timm.layers import Attention
from torch import Tensor, nn

from benchmarks.measuring.counting import gmac
from peft_aim import AIMConfig, hotswap_adapter
from peft_aim.__main__ import main
from peft_aim.attention import USERS_KINDS, along_time, find_causal, find_kind
from peft_aim.layers import AIMLayer
from peft_aim.streaming import Stream
from peft_aim.tracing import Layout, first_tensor

WIDTH, LONG = 3, 7  # frames that a frame attends to, and frames of a clip


def causal(name: str, **options: object) -> PeftModel:
    """Adapt a backbone causally, by default with all parts of the temporal adapter, randomly initialized."""
    inner = name.startswith("timm")  # the others have the embedding in the input
    parts = {"temporal_conv": True, "temporal_embedding": "blocks" if inner else "input"}
    options = {"num_frames": WIDTH, "causal": True, "init_weights": False, **parts, **options}
    return get_peft_model(zoo.build(name), AIMConfig(**options)).eval()


def pushed(stream: Stream, clips: Tensor, chunks: int | list[int] = 1) -> list[Tensor]:
    return [stream.push(chunk) for chunk in clips.split(chunks, dim=1)]


def prefixes(model: nn.Module, clips: Tensor) -> list[Tensor]:
    return [zoo.scores(model(clips[:, : t + 1])) for t in range(clips.shape[1])]


def close(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(some, others, strict=True))


def last_tokens(model: nn.Module, clips: Tensor) -> Tensor:
    """Return the output of the last block by frame, ``(B, T, ...)``."""
    layer = [module for module in model.modules() if isinstance(module, AIMLayer)][-1]
    found = []
    handle = layer.register_forward_hook(lambda block, args, output: found.append(first_tensor(output)))
    model(clips)
    handle.remove()
    return layer.anatomy.tokens.batch_first(found[0]).unflatten(0, (*clips.shape[:2], -1))


# Over the zoo.


@pytest.mark.parametrize("name", zoo.ZOO)
@torch.no_grad()
def test_a_frame_changes_no_output_of_an_earlier_one(name):
    model, clips = causal(name), zoo.make_clips(frames=LONG)
    changed = clips.clone()
    changed[0, 4] = torch.randn_like(changed[0, 4])
    differs = (last_tokens(model, clips) != last_tokens(model, changed)).flatten(2).any(-1)
    assert differs.tolist() == [[False] * 4 + [True] * 3, [False] * LONG]


@pytest.mark.parametrize("name", zoo.ZOO)
@torch.no_grad()
def test_a_stream_gives_what_the_model_gives_for_every_prefix(name):
    model, clips = causal(name), zoo.make_clips(frames=LONG)
    expected, stream = prefixes(model, clips), Stream(model)
    assert close(pushed(stream, clips), expected)
    stream.reset()
    assert close(pushed(stream, clips, [2, 4, 1]), [expected[i] for i in (1, 5, 6)])


# The method.


@torch.no_grad()
def test_a_block_sees_no_more_than_num_frames():
    """Without convolution: frame t has no influence on frame t + num_frames within one block."""
    model = causal("timm_vit", temporal_conv=False)
    layer = model.base_model.model.blocks[0]
    tokens = torch.randn(LONG, 16, 32)
    changed = tokens.clone()
    changed[1] = torch.randn_like(changed[1])
    before, after = (layer.over_time("default", LONG, x) for x in (tokens, changed))
    assert (before != after).flatten(1).any(1).tolist() == [False, True, True, True, False, False, False]


@pytest.mark.parametrize("embedding", ["input", "blocks"])
@torch.no_grad()
def test_the_embedding_of_later_frames_is_the_last(embedding):
    model = causal("timm_vit", temporal_embedding=embedding, temporal_conv=False)
    weights = [p for name, p in model.named_parameters() if "embedding" in name and ".aim_" in name]
    clips = zoo.make_clips(frames=5)
    before = last_tokens(model, clips)
    for weight in weights:
        weight[:, 1] += 1.0
    changed = (before != last_tokens(model, clips)).flatten(2).any(-1)
    assert changed[0].tolist() == [False] + [True] * 4  # those after frame 1 attend to it
    before = last_tokens(model, clips[:, :2])
    for weight in weights:
        weight[:, 2] += 1.0
    assert torch.equal(last_tokens(model, clips[:, :2]), before)  # not interpolated


@torch.no_grad()
def test_scores_are_averaged_over_the_last_frames():
    model, clips = causal("timm_vit"), zoo.make_clips(frames=LONG)
    by_frame = []
    handle = model.base_model.model.head.register_forward_hook(lambda head, args, output: by_frame.append(output))
    scores = model(clips)
    handle.remove()
    assert torch.equal(scores, by_frame[0].unflatten(0, (2, LONG))[:, -WIDTH:].mean(1))


@torch.no_grad()
def test_causal_attention_is_softmax_over_the_band_by_hand():
    attention, x = Attention(8, 2), torch.randn(3, 5, 8)
    found = find_causal(find_kind(attention, (1, 4, 8), {}), attention, 8)
    q, k, v = attention.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / 2
    for i in range(5):
        for j in range(5):
            if not i - WIDTH < j <= i:
                scores[..., i, j] = float("-inf")
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(found(attention, x, WIDTH), expected, atol=1e-6)


def test_gradients_reach_all_causal_adapters_also_with_recomputation():
    clips, found = zoo.make_clips(), []
    for setting in ("nothing", "block"):
        model = causal("timm_vit", recompute=setting).train()
        zoo.scores(model(clips)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert all(gradient is not None and gradient.any() for gradient in found[-1].values())
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@torch.no_grad()
def test_a_causal_adapter_is_saved_and_loaded_as_one(tmp_path):
    model, clips = causal("hf_vit"), zoo.make_clips(frames=LONG)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(zoo.build("hf_vit"), tmp_path).eval()
    assert loaded.peft_config["default"].causal
    assert "from peft_aim.streaming import Stream" in (tmp_path / "README.md").read_text()
    assert torch.equal(zoo.scores(loaded(clips)), zoo.scores(model(clips)))
    with pytest.raises(ValueError, match=r"has causal=True, but the adapter 'default' has causal=False\. Load it"):
        hotswap_adapter(causal("hf_vit", causal=False), tmp_path)


def test_the_summary_says_which_attention_is_causal(capsys):
    assert main(["inspect", "vit_tiny_patch16_224", "--causal"]) == 0
    assert "softmax attention with its own projections, without its spatial terms, causal" in capsys.readouterr().out


# What cannot be causal.


def test_causal_needs_a_temporal_branch():
    with pytest.raises(ValueError, match="causal=True contradicts temporal=False"):
        AIMConfig(causal=True, temporal=False)


class Channels(nn.Module):
    """Attention between channels, which frames cannot be masked in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, **options: object) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(v @ (q.mT @ k / x.shape[1]).softmax(-1))


def with_attention_between_channels() -> nn.Module:
    backbone = zoo.build("timm_vit")
    for block in backbone.blocks:
        block.attn = Channels(32)
    return backbone


@torch.no_grad()
def test_attention_that_cannot_be_masked_is_refused_or_replaced_by_a_convolution():
    options = {"num_frames": WIDTH, "causal": True, "init_weights": False, "temporal_embedding": "input"}
    reason = (
        r"causal=True is not possible in 3 blocks:\n  blocks.0, blocks.1, blocks.2: Channels cannot be limited to "
        r"earlier frames: over time, it is run by its own forward on the tokens alone, and \d ways to use its "
        r"projections do not reproduce that\nTo give these a causal convolution over time instead of temporal "
        r"attention, pass temporal='auto'; to leave them out, exclude_modules\."
    )
    with pytest.raises(ValueError, match=reason):
        get_peft_model(with_attention_between_channels(), AIMConfig(**options))
    model = get_peft_model(with_attention_between_channels(), AIMConfig(temporal="auto", **options)).eval()
    assert (
        str(model.base_model.model.blocks[0].aim_settings["default"].temporal) == "convolution over 3 frames, causal"
    )
    clips = zoo.make_clips(frames=LONG)
    assert close(pushed(Stream(model), clips), prefixes(model, clips))


class GroupNormed(nn.Module):
    """Attention of diffusion models: convolutions after a norm over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.norm = 2, nn.GroupNorm(1, 8)
        self.qkv, self.proj = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, 2, 4)).mT.unbind(1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.mT.reshape(x.shape))


def test_attention_with_a_norm_over_all_frames_is_refused():
    attention = GroupNormed()
    kind = find_kind(attention, (1, 8, 4, 4), {}, Layout(channels=1))
    with pytest.raises(ValueError, match="columns are the frames, and its norms or projections mix frames as well"):
        find_causal(kind, attention, 8)


class Doubled(nn.MultiheadAttention):
    """An attention that a user runs over time in a way of their own."""


@pytest.fixture
def users_kinds() -> Iterator[None]:
    before = dict(USERS_KINDS)
    yield
    USERS_KINDS.clear()
    USERS_KINDS.update(before)


def test_a_users_kind_is_reproduced_or_refused(users_kinds):
    @along_time(Doubled)
    def by_hand(attention: nn.Module, x: Tensor) -> Tensor:
        return attention.forward(x, x, x, need_weights=False)[0]

    attention = Doubled(8, 2, batch_first=True)
    assert find_causal(by_hand, attention, 8).kind is not None
    with pytest.raises(ValueError, match="it is run by your function <lambda>, and 1 ways"):
        find_causal(lambda attention, x: 2 * by_hand(attention, x), attention, 8)


# Streams.


@torch.no_grad()
def test_streams_threads_and_ordinary_calls_do_not_mix():
    model = causal("timm_vit")
    videos = [zoo.make_clips(frames=LONG, seed=seed) for seed in range(3)]
    expected = [prefixes(model, video) for video in videos]
    found: dict[int, list[Tensor]] = {}

    def watch(i: int) -> None:
        stream, scores = Stream(model), []
        for frame in videos[i].unbind(1):
            scores.append(stream.push(frame))
            model(videos[i][:, :2])
        found[i] = scores

    threads = [threading.Thread(target=watch, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(found[i], expected[i]) for i in range(3))
    streams = [Stream(model) for _ in videos]
    for t in range(LONG):
        for stream, video, scores in zip(streams, videos, expected, strict=True):
            assert close([stream.push(video[:, t])], [scores[t]])


@torch.no_grad()
def test_a_stream_is_continued_elsewhere():
    model, clips = causal("timm_swin"), zoo.make_clips(frames=LONG)
    expected, first, second = prefixes(model, clips), Stream(model), Stream(model)
    second.load_state_dict(first.state_dict())  # nothing yet
    with torch.inference_mode():
        pushed(first, clips[:, :4])
    with torch.inference_mode():
        second.load_state_dict(first.state_dict())
    assert len(second) == 4
    for stream in (first, second):
        assert close(pushed(stream, clips[:, 4:]), expected[4:])
    with pytest.raises(ValueError, match=re.escape("Got frames (1, 1, 3, 32, 32), but those before were 2 videos")):
        second.push(clips[:1, 0])
    with pytest.raises(ValueError, match=r"it has time, shape, but not scores\. Pass the dictionary as it was"):
        second.load_state_dict({name: first.state_dict()[name] for name in ("time", "shape")})
    shorter = Stream(causal("timm_swin", num_frames=2))
    with pytest.raises(ValueError, match="with num_frames=3, but the active adapter 'default' has num_frames=2"):
        shorter.load_state_dict(first.state_dict())


def cost_of_frame(width: int) -> float:
    """Return the multiply-adds of a frame of a stream, after checking that they are the same for all frames."""
    model, clips = causal("timm_vit", num_frames=width), zoo.make_clips(frames=20)
    stream = Stream(model)
    stream.push(clips[:, 0])
    sizes = {name: tensor.shape for name, tensor in stream.state_dict().items()}
    counts = {gmac(lambda t=t: stream.push(clips[:, t])) for t in range(1, 20)}
    assert {name: tensor.shape for name, tensor in stream.state_dict().items()} == sizes
    rings = [tensor for name, tensor in stream.state_dict().items() if name.endswith((".key", ".value"))]
    assert sum(map(torch.numel, rings)) == 3 * 2 * 17 * 32 * 2 * width  # blocks, videos, N, D, keys and values, frames
    assert len(counts) == 1
    assert max(counts) <= gmac(lambda: model(clips[:, :width])) / width
    return counts.pop()


@torch.no_grad()
def test_nothing_grows_and_a_frame_costs_no_more_than_in_a_clip():
    assert cost_of_frame(8) < 1.03 * cost_of_frame(2)  # the scores of more frames


@torch.no_grad()
def test_a_compiled_model_is_not_compiled_again_as_time_goes_on():
    model, clips = causal("timm_vit"), zoo.make_clips(frames=LONG)
    expected, graphs = prefixes(model, clips), []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(2):  # streams
        assert close(pushed(Stream(compiled), clips), expected)
    assert len(graphs) == 1
    torch.compiler.reset()


@torch.no_grad()
def test_blocks_that_are_compiled_alone_share_their_code():
    model, clips, graphs = causal("timm_vit", temporal_conv=False, temporal_embedding=False), zoo.make_clips(), []
    expected = prefixes(model, clips)

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    for block in model.base_model.model.blocks:
        block.compile(backend=backend)
    assert close(pushed(Stream(model), clips), expected)
    assert len(graphs) < len(model.base_model.model.blocks)
    torch.compiler.reset()


@torch.no_grad()
def test_a_stream_belongs_to_one_adapter_with_its_weights():
    model, clips = causal("timm_vit"), zoo.make_clips()
    model.add_adapter("other", AIMConfig(num_frames=2, causal=True, num_labels=7))
    stream = Stream(model)
    stream.push(clips[:, 0])
    model.set_adapter("other")
    with pytest.raises(ValueError, match=r"The active adapter is 'other', but the stream began with 'default'.*reset"):
        stream.push(clips[:, 1])
    stream.reset()
    assert stream.push(clips[:, 1]).shape == (2, 7) and len(stream) == 1
    model.base_model.model.head.aim_head["other"].weight.add_(1)
    with pytest.raises(ValueError, match="The weights of 'other' have changed, but the stream began"):
        stream.push(clips[:, 1])
    stream.reset()
    stream.push(clips[:, 1])
    model.delete_adapter("default")
    model.add_adapter("default", AIMConfig(num_frames=2, causal=True, num_labels=7))
    model.set_adapter("default")
    model.delete_adapter("other")
    model.add_adapter("other", AIMConfig(num_frames=2, causal=True, num_labels=7))
    model.eval().set_adapter("other")
    with pytest.raises(ValueError, match="The weights of 'other' have changed, but the stream began"):
        stream.push(clips[:, 1])
    stream.reset()
    stream.push(clips[:, 1])
    model.double()
    with pytest.raises(ValueError, match="The weights of 'other' have changed, but the stream began"):
        stream.push(clips[:, 1].double())
    with model.disable_adapter(), pytest.raises(ValueError, match="No AIM adapter is active in this model"):
        stream.push(clips[:, 1])
    backbone = model.unload()
    with pytest.raises(ValueError, match="This PeftModel has no AIM adapters"):
        stream.push(clips[:, 1])
    with pytest.raises(ValueError, match="This VisionTransformer has no AIM adapters"):
        Stream(backbone)


@torch.no_grad()
def test_a_push_that_failed_midway_is_not_continued(monkeypatch):
    model, clips = causal("timm_vit"), zoo.make_clips()
    stream, block = Stream(model), model.base_model.model.blocks[2]
    stream.push(clips[:, 0])
    with pytest.raises(ValueError, match=r"Got clips of torch\.uint8"):
        stream.push(clips[:, 1].to(torch.uint8))
    stream.push(clips[:, 1])  # nothing had run
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"computes in torch\.bfloat16, but in"),
    ):
        stream.push(clips[:, 2])
    stream.reset()
    stream.push(clips[:, 0])
    with monkeypatch.context() as patch:
        patch.setattr(block.base_layer.mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.push(clips[:, 2])
    for continued in (lambda: stream.push(clips[:, 2]), stream.state_dict):
        with pytest.raises(ValueError, match=r"An earlier push failed midway.*Call reset\(\)"):
            continued()
    stream.reset()
    assert close([stream.push(clips[:, 0])], [zoo.scores(model(clips[:, :1]))])


@torch.no_grad()
def test_an_adapter_trained_on_whole_clips_is_streamed_only_on_request():
    model, clips = causal("timm_vit", causal=False, temporal_embedding=False), zoo.make_clips(frames=LONG)
    before = copy.deepcopy(model)(clips)
    with pytest.raises(ValueError, match=r"'default' is not causal: .*causal=True.*approximate=True.*--window"):
        Stream(model)
    stream = Stream(model, approximate=True)
    assert close([stream.push(clips[:, 0])], [model(clips[:, :1])])  # a clip of one frame has no later ones
    chunks = pushed(Stream(model, approximate=True), clips, [1, 4, 2])
    assert close([pushed(Stream(model, approximate=True), clips)[-1]], chunks[-1:])
    assert torch.equal(model(clips), before)
    settings = model.base_model.model.blocks[0].aim_settings["default"]
    Stream(model, approximate=True)
    assert model.base_model.model.blocks[0].aim_settings["default"] is settings  # backward may recompute by these
    refused = get_peft_model(with_attention_between_channels(), AIMConfig(num_labels=2)).eval()
    with pytest.raises(ValueError, match="'default' cannot be run as if it were causal:\n  blocks.0"):
        Stream(refused, approximate=True)


@torch.no_grad()
def test_of_a_model_of_images_and_text_the_image_tower_runs():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    towers = {
        "vision_config": {**sizes, "image_size": 32, "patch_size": 8},
        "text_config": {**sizes, "vocab_size": 99},
    }
    backbone, clips = tf.CLIPModel(tf.CLIPConfig(**towers)).eval(), zoo.make_clips(frames=LONG)
    model = get_peft_model(backbone, AIMConfig(num_frames=WIDTH, causal=True, init_weights=False)).eval()
    assert close(pushed(Stream(model), clips)[-1:], [backbone.vision_model(clips).pooler_output])


def test_a_stream_needs_scores_and_a_model_of_images_in_evaluation_mode():
    clips = zoo.make_clips()
    patches = tf.Siglip2VisionModel(tf.Siglip2VisionConfig(**zoo.SMALL, num_patches=4))
    with pytest.raises(ValueError, match="Siglip2VisionModel requires pixel_attention_mask, spatial_shapes as well"):
        Stream(get_peft_model(patches, AIMConfig(causal=True)).eval())
    model = causal("timm_vit").train()
    Stream(model).push(clips[:, 0])  # nothing drops
    for name, module in (("the adapter", causal("timm_vit", drop_path=0.1)), ("blocks.1.*proj_drop", model)):
        model.base_model.model.blocks[1].base_layer.attn.proj_drop.p = 0.1
        with pytest.raises(ValueError, match=rf"in training mode, in which {name}.* drops .* Call model\.eval\(\)"):
            Stream(module.train()).push(clips[:, 0])
    tokens = zoo.build("timm_vit")
    tokens.global_pool, tokens.attn_pool = "", None
    model = get_peft_model(tokens, AIMConfig(causal=True)).eval()
    with pytest.raises(ValueError, match="returns neither class scores nor pooled features"):
        Stream(model).push(clips[:, 0])
