"""The traced calls of a model, and copies that need not run."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import eval_frame

from peft_aim.tracing.calls import Call, Handle, trace
from peft_aim.tracing.copies import traits
from peft_aim.tracing.restored import running
from peft_aim.tracing.stand_ins import standing_in

X = {"x": torch.ones(2, 4)}


class Scaled(nn.Module):
    """Counts how often it runs."""

    def __init__(self, factor: float = 1.0, activation=F.relu) -> None:
        super().__init__()
        self.factor, self.activation, self.runs = factor, activation, [0]
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, None]:
        self.runs[0] += 1
        return self.activation(self.linear(x)) * self.factor, None


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


def is_scaled(call: Call) -> bool:
    return isinstance(call.module, Scaled)


def runs(*blocks: Scaled) -> list[int]:
    trace(Chain(*blocks), X, once=is_scaled)
    return [block.runs[0] for block in blocks]


def test_of_copies_one_runs():
    assert runs(Scaled(), Scaled(), Scaled()) == [1, 0, 0]


@pytest.mark.parametrize("other", [lambda: Scaled(2.0), lambda: Scaled(activation=F.gelu), lambda: with_buffer(1, 0)])
def test_modules_that_differ_in_anything_but_weights_run(other):
    assert runs(Scaled(), other(), Scaled()) == [1, 1, 0]
    assert runs(with_buffer(0, 1), with_buffer(1, 0), with_buffer(0, 1)) == [1, 1, 0]


def with_buffer(*order: int) -> Scaled:
    block = Scaled()
    block.register_buffer("order", torch.tensor(order))
    return block


def test_attributes_without_a_value_equal_themselves_alone():
    one, other = (Scaled(activation=lambda x: x) for _ in range(2))
    before = traits(one)
    assert before == traits(one) != traits(other)
    one.activation = lambda x: x  # perhaps at the address of the one before
    assert before != traits(one)


def test_modules_that_share_a_part_run():
    one, other = Scaled(), Scaled()
    other.linear = one.linear
    assert runs(one, other) == [1, 1]


def test_copies_may_call_modules_outside_of_themselves():
    class WithRotation(nn.Module):
        def __init__(self, shared: list[nn.Module]) -> None:
            super().__init__()
            self.shared, self.inner, self.runs = shared, Scaled(), [0]

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            self.runs[0] += 1
            return self.shared[0](self.inner(x)[0]), None

    shared = [nn.Linear(4, 4)]
    blocks = [WithRotation(shared) for _ in range(3)]
    model = Chain(*blocks)
    model.rotation = shared[0]
    root, _ = trace(model, X, once=lambda call: isinstance(call.module, WithRotation | Scaled))
    assert [block.runs[0] for block in blocks] == [1, 0, 0]
    assert [call.name for call in root.children[1].walk()] == [
        *("blocks.1", "blocks.1.inner", "blocks.1.inner.linear", "rotation")
    ]
    assert [call.original for call in root.children[2].walk()] == [*root.children[0].walk()]


def test_copies_that_are_called_in_another_way_run():
    class Uneven(Chain):
        def forward(self, x: Tensor) -> Tensor:
            for block, given in zip(self.blocks, (None, None, torch.ones(4), x, torch.ones(4)), strict=True):
                x, _ = block(x, bias=given)
            return x

    blocks = [Scaled() for _ in range(5)]
    trace(Uneven(*blocks), X, once=is_scaled)
    assert [block.runs[0] for block in blocks] == [1, 0, 1, 1, 0]


def test_a_copy_returns_its_input_and_has_the_calls_of_the_original():
    model = Chain(Scaled(), Scaled())
    root, output = trace(model, X, once=is_scaled)
    first, second = root.children
    assert second.copy_of is first and second.original is first and first.original is first
    assert [call.name for call in second.walk()] == ["blocks.1", "blocks.1.linear"]
    assert second.children[0].module is model.blocks[1].linear
    assert torch.equal(output, model.blocks[0](X["x"])[0])
    assert second.returned != second.given  # not the very tensor, which somebody may change in place


def test_the_calls_below_a_copy_take_its_own_tokens():
    class Around(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.attention = Scaled(), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            x = self.inner(x)[0]
            return self.attention(x, x, key_padding_mask=None, value=x)[0], None

    first, second, third = trace(Chain(Around(), Around(), Around()), X, once=is_scaled)[0].children
    assert third.copy_of is second.copy_of is first
    for call in (first, second, third):
        inner, attention = call.children
        assert inner.given == inner.children[0].given == call.given
        assert attention.given == inner.returned == Handle.of(attention.arguments["key"])
        assert attention.returned == call.returned
    assert len({call.given for call in (first, second, third)}) == 3


def test_forwards_are_restored_and_hooks_run(monkeypatch):
    model, seen = Chain(Scaled(), Scaled()), []
    model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    model.blocks[0].register_forward_hook(lambda *_: None)  # as many hooks
    own = model.blocks[1].forward = lambda x: (x, None)
    trace(model, X, once=is_scaled)
    assert seen == [1] and model.blocks[1].forward is own and "forward" not in vars(model.blocks[0])
    with pytest.raises(ZeroDivisionError), standing_in({model.blocks[0]: lambda x: 1 / 0}):
        model.blocks[0](X["x"])
    assert "forward" not in vars(model.blocks[0])


def test_a_call_can_be_made_again_on_other_tokens():
    class Named(nn.Module):
        def forward(self, pair: tuple[Tensor, str], *, shift: Tensor) -> tuple[Tensor, str]:
            return pair[0] + shift, pair[1]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Named()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(pair=(x, "text"), shift=torch.tensor(3.0))[0]

    root, _ = trace(Outer(), X)
    (call,) = root.children
    assert call.given.shape == (2, 4) and call.kwargs["pair"] == (None, "text")
    tokens, text = call.again(torch.zeros(1))
    assert tokens == 3 and text == "text"


def test_arguments_and_outputs_without_tensors_are_kept():
    class Grid(nn.Module):
        def forward(self, shape: torch.Size) -> torch.Size:
            return shape[:1]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = Grid()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.grid(x.shape)[0]

    root, output = trace(Outer(), X)
    (call,) = root.children
    assert call.given is call.returned is None and call.args == (torch.Size([2, 4]),)
    assert torch.equal(output, X["x"] + 2)


def test_drop_rates_are_no_traits_unless_they_are_zero():
    assert traits(nn.Dropout(0.1)) == traits(nn.Dropout(0.2)) != traits(nn.Dropout(0.0))


def test_running_freezes_and_restores():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()).train()
    model[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    with running(model, training=True):
        assert not any(p.requires_grad for p in model.parameters()) and not model[1].training
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == before


def test_overlapping_runs_in_threads_restore_the_switches_of_the_process():
    def now() -> tuple[bool, str]:
        return torch.backends.mha.get_fastpath_enabled(), eval_frame._stance.stance

    def in_thread(function, *arguments):
        thread = Thread(target=function, args=arguments)
        thread.start()
        thread.join()

    before, first, second = now(), ExitStack(), ExitStack()
    assert before == (True, "default")
    in_thread(first.enter_context, running(nn.Linear(1, 1), training=False))
    in_thread(second.enter_context, running(nn.Linear(1, 1), training=False))
    in_thread(first.close)
    assert now() == (False, "force_eager")
    in_thread(second.close)
    assert now() == before
