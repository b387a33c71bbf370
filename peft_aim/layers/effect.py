"""Checks that every part of a new adapter runs, and has an effect on the output of the model.

One image passes the adapted model without arithmetic, while autograd records which of the adapter's layers the output
depends on; nothing is differentiated. Parts that are not reached so are tried with numbers: whether noise in their
place changes the output. If it does, they stay, but training cannot change them.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from peft_aim.backbone import Inspection, listed
from peft_aim.layers.base import AIMTunerLayer
from peft_aim.tracing import (
    Images,
    blank_images,
    drawn,
    run,
    running,
    tensors_in,
    unchanged,
    without_arithmetic,
    without_weights,
)

Part = tuple[str, str]  # the name of an adapted module, and what the adapter adds there
# Where autograd records nothing, parts are tried by a run each; more than this by kind, of which there are six. So the
# check costs at most seven images, however many blocks there are; parts that stay so are named in a warning.
MOST_RUNS = 6
WITHOUT = {"head": "num_labels=None", "norm": "final_norm=False"}  # others have an option of their name


def check_effect(model: nn.Module, inspection: Inspection, adapter: str, trainable: bool = True) -> None:
    """Check that every part of an adapter has an effect on the output of a model.

    Nothing is checked if the model is on the device "meta", or returns no tensors. The model is the same afterwards.

    Args:
        model: The adapted backbone.
        inspection: Its structure.
        adapter: Name of the adapter.
        trainable: Whether to warn if no gradient reaches a part.

    Raises:
        ValueError: If some have none, with what was observed.
    """
    tower = model.get_submodule(inspection.tower)
    images = _one_image(tower, inspection)
    if next(iter(images.values())).device.type == "meta":
        return
    with running(model, training=False), unchanged(model):  # the former clears what a module caches in evaluation
        _activate(model, adapter)
        marked = _Marked(model, adapter)
        suspects = untrained = marked.unreached(tower, images)
        without = marked.without_effect(tower, drawn(images), suspects) if suspects else []
        if suspects and not without:  # in evaluation alone, a model may well record no gradients
            with running(model, training=True):
                again = marked.unreached(tower, images)
            untrained = [part for part in suspects if part in again and marked.recorded]
    if without:
        raise ValueError(_message(model, adapter, without, marked.called))
    if untrained and trainable:
        warnings.warn(_warning(model, adapter, untrained), stacklevel=2)


def _one_image(tower: nn.Module, inspection: Inspection) -> Images:
    """Return the arguments for one blank image of the shape that the model was inspected on."""
    for images in blank_images(tower):
        if tuple(next(iter(images.values())).shape[1:]) == inspection.image:
            return {name: argument[:1] for name, argument in images.items()}
    raise AssertionError(f"no blank image has the shape {inspection.image}")


def _activate(model: nn.Module, adapter: str) -> None:
    """Activate an adapter without PEFT's changes of ``requires_grad``, and switch gradient checkpointing off."""
    for module in model.modules():
        if isinstance(module, AIMTunerLayer):
            module._active_adapter, module._disable_adapters = adapter, False
        if getattr(module, "grad_checkpointing", False) is True:  # timm; `running` knows that of transformers
            module.grad_checkpointing = False


class _Marked:
    """The parts of an adapter, to the results of whose layers something can be added.

    Args:
        model: The adapted backbone.
        adapter: Name of the adapter.
    """

    def __init__(self, model: nn.Module, adapter: str) -> None:
        self.model = model
        self.called: set[Part] = set()
        self.parts: dict[Part, list[nn.Module]] = defaultdict(list)
        for name, layer in model.named_modules():
            if isinstance(layer, AIMTunerLayer):
                for kind in layer.adapter_layer_names:
                    if adapter in getattr(layer, kind):
                        part = name.replace("base_layer.", ""), _branch(kind)
                        self.parts[part].append(getattr(layer, kind)[adapter])

    def unreached(self, tower: nn.Module, images: Images) -> list[Part]:
        """Return the parts with a layer that the output does not depend on, as autograd records it; all if it cannot.

        ``recorded`` tells whether it can.
        """
        markers: dict[Part, list[Tensor]] = defaultdict(list)

        def add_marker(part: Part, result: Tensor) -> Tensor:
            markers[part].append(torch.zeros((), requires_grad=True))
            return result + markers[part][-1]

        reached: set[int] = set()
        self.recorded = False
        with suppress(Exception), torch.inference_mode(False), torch.enable_grad(), without_arithmetic(self.model):
            with self._adding(self.parts, add_marker):
                output = list(tensors_in(run(tower, images)))
            self.recorded = True
            if not any(tensor.is_floating_point() for tensor in output):
                return []
            reached = _leaves(output)
        found = {part: sum(id(marker) in reached for marker in markers[part]) for part in self.parts}
        return [part for part, layers in self.parts.items() if found[part] < len(layers)]

    @torch.enable_grad()  # as in training, where a model may take another way
    def without_effect(self, tower: nn.Module, images: Images, parts: list[Part]) -> list[Part]:
        """Return those of some parts in whose place noise does not change the output; none if the model cannot run."""

        def output(noisy: Iterable[Part]) -> list[Tensor]:
            def add_noise(part: Part, result: Tensor) -> Tensor:
                noise = torch.randn(result.shape, generator=torch.Generator().manual_seed(0))
                return result + 1000 * noise.to(result) if part in noisy else result

            with self._adding(self.parts, add_noise):  # everywhere: layers with hooks may be computed in another way
                return list(tensors_in(run(tower, images)))

        own = [layer for layers in self.parts.values() for layer in layers]
        effective: set[Part] = set()
        try:
            with without_weights(own):  # those of a file that is not read yet
                before = output([])
                for group in _groups([part for part in parts if part in self.called]):
                    if not _all_equal(before, output(group)):
                        effective.update(group)
        except Exception:  # nothing is known then
            return []
        return [part for part in parts if part not in effective]

    @contextmanager
    def _adding(self, parts: Iterable[Part], add: Callable[[Part, Tensor], Tensor]) -> Iterator[None]:
        """Add something to the results of the layers of some parts."""

        def after(part: Part, layer: nn.Module, args: tuple, result: Tensor) -> Tensor:
            self.called.add(part)
            return add(part, result)

        with ExitStack() as stack:
            for part in parts:
                for layer in self.parts[part]:
                    stack.callback(layer.register_forward_hook(partial(after, part)).remove)
            yield


def _branch(container: str) -> str:
    """Return what the weights of a container belong to.

    Example:
        >>> [_branch(name) for name in ("aim_temporal_conv", "aim_joint_up", "aim_temporal_embedding", "aim_head")]
        ['temporal', 'joint', 'temporal_embedding', 'head']
    """
    name = container.removeprefix("aim_")
    return name if name == "temporal_embedding" else name.partition("_")[0]


def _leaves(output: Iterable[Tensor]) -> set[int]:
    """Return the ids of the leaves of autograd's graph that tensors depend on."""
    nodes, found = [tensor.grad_fn for tensor in output], set()
    seen = {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            nodes += [following for following, _ in node.next_functions]
    return found


def _groups(parts: list[Part]) -> list[list[Part]]:
    """Return the parts that are tried in one run: each alone, or all of a kind.

    Example:
        >>> _groups([("blocks.0", "spatial"), ("blocks.1", "spatial")])
        [[('blocks.0', 'spatial')], [('blocks.1', 'spatial')]]
        >>> [len(group) for group in _groups([(f"blocks.{n}", k) for n in range(9) for k in ("spatial", "joint")])]
        [9, 9]
    """
    by_kind: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_kind[part[1]].append(part)
    return [[part] for part in parts] if len(parts) <= MOST_RUNS else list(by_kind.values())


def _all_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(_equal, some, others))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)


def _message(model: nn.Module, adapter: str, parts: list[Part], called: set[Part]) -> str:
    observed: dict[str, list[str]] = defaultdict(list)
    for name, branch in parts:
        what = "runs, but the output does not depend on it" if (name, branch) in called else "is never run"
        observed[name].append(f"{branch} {what}")
    names = list(dict.fromkeys(name for name, _ in parts))
    options = ", ".join(dict.fromkeys(WITHOUT.get(branch, f"{branch}=False") for _, branch in parts))
    return (
        f"Parts of the adapter {adapter!r} have no effect on the output of {type(model).__name__} for an image, so it "
        f"was removed again:{listed({name: '; '.join(reasons) for name, reasons in observed.items()})}\n"
        f"To leave out these modules, pass exclude_modules={names}; to leave out these parts everywhere, pass "
        f"{options}."
    )


def _warning(model: nn.Module, adapter: str, parts: list[Part]) -> str:
    branches: dict[str, list[str]] = defaultdict(list)
    for name, branch in parts:
        branches[name].append(branch)
    return (
        f"No gradient reaches these parts of the adapter {adapter!r} from the output of {type(model).__name__}, so "
        f"training will not change them:{listed({name: ', '.join(found) for name, found in branches.items()})}\n"
        "The model runs them under torch.no_grad(), or detaches what they return, or checkpoints their blocks with "
        "use_reentrant=True. Change that for training; for inference alone, pass inference_mode=True."
    )
