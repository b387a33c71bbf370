"""Training with the tools of the ecosystem: torch, accelerate, FSDP and transformers' Trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import two_processes
import zoo
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from peft_aim import AIMConfig

LABELS = torch.tensor([0, 2])
CHECKPOINTING = "activation_checkpointing"  # gradient_checkpointing before transformers 5.22
if CHECKPOINTING not in TrainingArguments.__dataclass_fields__:
    CHECKPOINTING = "gradient_checkpointing"


def adapt(name: str, **options: object) -> PeftModel:
    return get_peft_model(zoo.build(name), AIMConfig(**{"num_frames": zoo.FRAMES, "num_labels": 3, **options}))


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}


def test_training_fits_two_clips():
    model, clips = adapt("timm_vit"), zoo.make_clips()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(100):
        loss = F.cross_entropy(model(clips), LABELS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize("name", ["timm_vit", "hf_vit", "timm_swin"])
def test_bf16_autocast(name):
    model, clips = adapt(name, init_weights=False).eval(), zoo.make_clips()
    with torch.autocast("cpu", torch.bfloat16):
        scores = zoo.scores(model(clips))
        loss = F.cross_entropy(scores, LABELS)
    loss.backward()
    assert scores.dtype == torch.bfloat16
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert torch.allclose(scores.float(), zoo.scores(model(clips)), atol=0.1)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_half_precision_backbone_with_full_precision_adapters(name):
    backbone, clips = zoo.build(name), zoo.make_clips()
    full = get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, init_weights=False)).eval()
    model = get_peft_model(backbone.bfloat16(), AIMConfig(num_frames=zoo.FRAMES)).eval()
    set_peft_model_state_dict(model, get_peft_model_state_dict(full))
    expected = zoo.scores(full(clips))
    with full.disable_adapter():
        effect = zoo.scores(full(clips)) - expected
    scores = zoo.scores(model(clips.bfloat16()))
    scores.float().square().sum().backward()
    assert scores.dtype == torch.bfloat16
    assert (scores.float() - expected).abs().max() < 0.3 * effect.abs().max()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, key
            assert parameter.grad.isfinite().all(), key


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch cannot trace the context managers of PeftModel yet")
@pytest.mark.parametrize(
    ("name", "backend"),
    [("timm_vit", "aot_eager"), ("timm_swin", "eager")],  # the second is traced only, which is faster
)
def test_compiled_as_one_graph(name, backend):
    torch._dynamo.reset()
    model = get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, init_weights=False)).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for shape in ((2, 4), (1, 3)):
        clips = zoo.make_clips(*shape)
        expected = zoo.scores(model(clips))
        expected.sum().backward()
        gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        scores = zoo.scores(compiled(clips))
        scores.sum().backward()
        assert torch.allclose(scores, expected, atol=1e-5)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(parameter.grad, gradients[key], rtol=1e-3, atol=1e-5), key
        model.zero_grad()


def test_drop_path_grows_over_depth_and_skips_the_spatial_branch():
    model = adapt("timm_vit", drop_path=0.4, init_weights=False)
    blocks = model.base_model.model.blocks
    assert [block.aim_settings["default"].drop_path for block in blocks] == [0.0, 0.2, 0.4]
    clips = zoo.make_clips()
    model.train()
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))
    tokens = torch.randn(400, 5, 32)
    blocks[2].train()
    dropped = blocks[2].over_time("default", 4, tokens)
    blocks[2].eval()
    kept = blocks[2].over_time("default", 4, tokens) / 0.6
    zero = (dropped == 0).flatten(1).all(1)
    assert 0.3 < zero.float().mean() < 0.5
    assert torch.allclose(dropped[~zero], kept[~zero])
    spatial_only = adapt("timm_vit", temporal=False, joint=False, init_weights=False).train()
    assert torch.equal(spatial_only(clips), spatial_only(clips))


def test_two_processes_train_the_same_adapter_as_one(tmp_path):
    script = str(Path(__file__).with_name("two_processes.py"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *launch, script, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    two_processes.train(str(tmp_path))
    AcceleratorState._reset_state(reset_partial_state=True)
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for key, tensor in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key], tensor, atol=1e-4), key
    fresh = get_peft_model(zoo.build("timm_vit"), AIMConfig(num_frames=zoo.FRAMES, num_labels=3))
    assert not torch.allclose(
        alone["base_model.model.head.aim_head.weight"], fresh.base_model.model.head.aim_head["default"].weight
    )


def test_sharded_blocks_have_the_same_scores_and_gradients():
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("sharded.py"))
    result = subprocess.run([sys.executable, *launch, script], capture_output=True, text=True, timeout=300)
    assert result.stdout.count("holds") == 2 * (2 + 5), (
        result.stderr
    )  # not the exit code: gloo may abort at the very end


class Clips(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"labels": index % 3, "pixel_values": zoo.make_clips(batch=1, seed=index)[0]}


def arguments(folder: Path, checkpointing: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        save_steps=2,
        optim="adamw_torch",
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **{CHECKPOINTING: checkpointing},
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains_evaluates_and_resumes(tmp_path, checkpointing):
    torch.manual_seed(0)
    model = adapt("hf_vit")
    before = trained(model)
    trainer = Trainer(
        model,
        arguments(tmp_path, checkpointing),
        train_dataset=Clips(),
        eval_dataset=Clips(),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    after = trained(model)
    assert any(not torch.equal(after[key], before[key]) for key in after)
    assert trainer.predict(Clips()).predictions.shape == (8, 3)
    assert "eval_accuracy" in trainer.evaluate()
    checkpoint = tmp_path / "checkpoint-2"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {path.name for path in checkpoint.iterdir()}
    assert not any(path.name == "model.safetensors" for path in checkpoint.iterdir())

    resumed = adapt("hf_vit")
    Trainer(resumed, arguments(tmp_path, checkpointing), train_dataset=Clips()).train(
        resume_from_checkpoint=str(checkpoint)
    )
    for key, tensor in trained(resumed).items():
        assert torch.equal(tensor, after[key]), key


def test_running_statistics_stay_frozen(tmp_path):
    def build():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.BatchNorm2d(3), zoo.build("timm_vit"))
        backbone.image_size = (32, 32)
        return backbone

    model, clips = (
        get_peft_model(build(), AIMConfig(num_frames=zoo.FRAMES, init_weights=False)).train(),
        zoo.make_clips(),
    )
    for _ in range(3):
        model(clips).sum().backward()
    assert torch.equal(model.base_model.model[0].running_mean, torch.zeros(3))
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(build(), tmp_path)(clips), model.eval()(clips))
    model.train()(clips)
    assert all(module.training for module in model.unload().modules())


@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_graph_is_recorded_if_nothing_is_trainable(name, tmp_path):
    model = get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, init_weights=False))
    model.requires_grad_(False)
    assert not zoo.scores(model.eval()(zoo.make_clips())).requires_grad
