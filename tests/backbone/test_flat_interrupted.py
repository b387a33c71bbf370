"""What a layer notes for the end that adds its temporal branch reaches no other call of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import zoo
from home_made import Flat, Net
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from peft_aim import AIMConfig

FRAMES = 4


class OneDropout(Flat):
    """A trunk that has one dropout everywhere, and checkpoints an attention with its norm."""

    wrap: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        for norm1, attend, norm2, mix in self.layers:
            half = nn.Sequential(norm1, attend)
            x = x + self.drop(half(x) if self.wrap is None else self.wrap(half, x))
            x = x + self.drop(mix(norm2(x)))
        return x


def adapt(**options: object) -> nn.Module:
    torch.manual_seed(0)
    backbone = Net(OneDropout())
    zoo.randomize(backbone)
    torch.manual_seed(1)
    return get_peft_model(backbone, AIMConfig(num_frames=FRAMES, init_weights=False, **options)).train()


def two_steps(model: nn.Module) -> list[Tensor]:
    """Return the gradients of two steps, each with its own clips."""
    found = []
    for step in range(2):
        torch.manual_seed(step)
        model.zero_grad()
        model(zoo.make_clips(2, FRAMES)).square().sum().backward()
        found += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return found


def test_a_failed_call_leaves_nothing_to_the_next():
    model, clips = adapt().eval(), zoo.make_clips(2, FRAMES)
    drop, calls = model.base_model.model.trunk.drop, []

    def fail(module: nn.Module, args: tuple) -> None:
        calls.append(module)
        if len(calls) == 4:  # after the second attention
            raise MemoryError

    with torch.no_grad():
        before, handle = model(clips), drop.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            model(clips)
        handle.remove()
        assert torch.equal(model(clips), before)


def test_recomputing_leaves_nothing_to_the_next_call():
    expected = two_steps(adapt())
    with set_checkpoint_early_stop(False):
        torch.testing.assert_close(two_steps(adapt(recompute="block")), expected)


def checkpointed(use_reentrant: bool) -> nn.Module:
    model = adapt()
    model.base_model.model.trunk.wrap = lambda half, x: checkpoint(half, x, use_reentrant=use_reentrant)
    return model


def test_a_caller_may_checkpoint_attention_and_norm():
    torch.testing.assert_close(two_steps(checkpointed(use_reentrant=False)), two_steps(adapt()))


def test_a_temporal_branch_without_gradients_is_an_error():
    model = checkpointed(use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"before trunk.drop was computed without gradients, but what it is added"):
        model(zoo.make_clips(2, FRAMES).requires_grad_())
