"""Run by test_training with torchrun: models with sharded blocks (FSDP 2) have the same scores and gradients."""

from __future__ import annotations

import torch
import zoo
from peft import PeftModel, get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from peft_aim import AIMConfig
from peft_aim.layers.block import AIMLayer


def adapt(name: str, embedding: str) -> PeftModel:
    torch.manual_seed(0)
    parts = {"final_norm": True, "temporal_conv": True, "temporal_embedding": embedding}
    return get_peft_model(zoo.build(name), AIMConfig(num_frames=zoo.FRAMES, init_weights=False, **parts)).eval()


def check(name: str, embedding: str) -> None:
    whole, sharded, clips = adapt(name, embedding), adapt(name, embedding), zoo.make_clips()
    mesh = init_device_mesh("cpu", (2,))
    for module in [*filter(lambda module: isinstance(module, AIMLayer), sharded.modules()), sharded]:
        fully_shard(module, mesh=mesh)
    scores = [zoo.scores(model(clips)) for model in (whole, sharded)]
    assert torch.allclose(*scores), name
    for score in scores:
        score.square().sum().backward()
    expected = dict(whole.named_parameters())
    learned = [(key, parameter) for key, parameter in sharded.named_parameters() if parameter.grad is not None]
    assert learned
    for key, parameter in learned:
        assert torch.allclose(parameter.grad.full_tensor(), expected[key].grad, atol=1e-5), (name, key)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    for name in ("timm_vit", "timm_clip", "timm_swin", "hf_vit", "open_clip_vit"):
        for embedding in ("input", "blocks"):
            check(name, embedding)
        print(f"{name} holds", flush=True)
    distributed.barrier()  # no process may leave while another still communicates
    distributed.destroy_process_group()
