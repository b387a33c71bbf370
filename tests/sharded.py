"""Run by test_training with torchrun: sharded models have the same scores, gradients and saved adapters.

The blocks are sharded by hand (FSDP 2), and by the policies that accelerate (FSDP 1 and 2) and PEFT (FSDP 1) choose by
themselves: nothing names the classes to shard.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import zoo
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import fsdp_auto_wrap_policy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

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


def accelerates(version: int, model: nn.Module) -> FullyShardedDataParallelPlugin:
    """Return what accelerate and Trainer shard with, if the user names no class."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    plugin.set_auto_wrap_policy(model)
    return plugin


def shard_1(model: nn.Module, policy: Callable, whole_names: bool) -> tuple[nn.Module, int]:
    device = torch.device("cpu")
    sharded = FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=whole_names, device_id=device)
    return sharded, sum(isinstance(module, FullyShardedDataParallel) for module in sharded.modules())


def by_accelerate_1(model: nn.Module) -> tuple[nn.Module, int]:
    return shard_1(model, accelerates(1, model).auto_wrap_policy, True)


def by_peft(model: nn.Module) -> tuple[nn.Module, int]:
    return shard_1(model, fsdp_auto_wrap_policy(model), False)


def by_accelerate_2(model: nn.Module) -> tuple[nn.Module, int]:
    policy, mesh = fsdp2_prepare_auto_wrap_policy(accelerates(2, model), model), init_device_mesh("cpu", (2,))
    chosen = [module for module in reversed([*model.modules()]) if module is model or policy(module)]
    for module in chosen:
        fully_shard(module, mesh=mesh)
    return model, len(chosen)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state dict, as ``accelerator.get_state_dict`` does."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
            return model.state_dict()
    found = model.state_dict()
    return {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in found.items()}


def check_policy(name: str, embedding: str, shard: Callable[[nn.Module], tuple[nn.Module, int]]) -> None:
    whole, clips = adapt(name, embedding), zoo.make_clips()
    sharded, units = shard(adapt(name, embedding))
    assert units > 2, f"{units} units: only the whole model is sharded"
    optimizers = [torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=0.1) for m in (whole, sharded)]
    scores = [zoo.scores(model(clips)) for model in (whole, sharded)]
    assert torch.allclose(*scores), name
    for score, optimizer in zip(scores, optimizers, strict=True):
        score.square().sum().backward()
        optimizer.step()
    state = state_of(sharded)
    if distributed.get_rank() == 0:  # no collective may be left in saving
        found = get_peft_model_state_dict(getattr(sharded, "module", sharded), state_dict=state)
        expected = get_peft_model_state_dict(whole)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.allclose(found[key], tensor, atol=1e-5), (name, key)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    for name, embedding in (("hf_vit", "blocks"), ("timm_clip", "input")):
        for shard in (by_accelerate_1, by_peft, by_accelerate_2):
            check_policy(name, embedding, shard)
        print(f"{name} holds with policies", flush=True)
    for name in ("timm_vit", "timm_clip", "timm_swin", "hf_vit", "open_clip_vit"):
        for embedding in ("input", "blocks"):
            check(name, embedding)
        print(f"{name} holds", flush=True)
    distributed.barrier()  # no process may leave while another still communicates
    distributed.destroy_process_group()
