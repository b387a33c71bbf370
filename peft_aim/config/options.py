"""AIMConfig: all options of the method, validated when the config is created."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig

from peft_aim.card import write_card
from peft_aim.config.checks import check
from peft_aim.config.hub import SavedAdapter
from peft_aim.peft_type import add_peft_type


@dataclass
class AIMConfig(PeftConfig):
    r"""Configuration of AIM, "Adapting Image Models for Efficient Video Action Recognition" (arXiv 2302.03024).

    Each block of a frozen image transformer gets three adapters,
    :math:`\mathrm{Adapter}(x) = W_{up}\,\mathrm{GELU}(W_{down}\,x)` (section 3 of the paper): the *temporal* adapter
    after temporal attention, which is the block's own attention run over the frames of each spatial position; the
    *spatial* adapter after the block's attention; and the *joint* adapter in parallel to its MLP.

    The defaults are the paper's settings for Kinetics-400, except that ``drop_path``, ``head_dropout`` and
    ``final_norm`` are off. Pass all options by keyword; those of :class:`~peft.PeftConfig`, such as
    ``inference_mode`` and ``revision``, are inherited.

    Args:
        num_frames: Number of frames T per clip that the temporal embedding is created for; the paper uses 8, 16 and
            32. Set it to the number of frames you train with. Clips of any other length can be run as well: the
            temporal embedding is interpolated.
        bottleneck_ratio: Width of the bottlenecks as a fraction of the token width D. The default is the paper's:
            on Kinetics-400, ratios of 0.0625, 0.125, 0.25 and 0.5 reach 83.3%, 83.4%, 83.9% and 83.8% top-1.
            Lower it for smaller adapters.
        spatial: Whether blocks get the spatial adapter.
        temporal: How information passes between frames. "attention" (default; True means the same) is the paper's:
            the block's own frozen attention runs over the frames, followed by the temporal adapter. "conv" is
            ST-Adapter's (arXiv 2206.13559), and needs no attention: a depthwise convolution over the frames, inside
            a linear bottleneck that is added to the block's input; it starts at zero. "auto" uses attention in blocks
            where it can run over frames, and the convolution in all others. If False, blocks process each frame
            independently.
        temporal_kernel: Number of frames that a convolution over time covers, an odd number; ST-Adapter uses 3.
        temporal_layers: Blocks that have a temporal branch, counted in the order in which blocks run: "even" (the
            first, the third, ...), as in the paper's Swin, "odd", or indices. The other blocks get the other adapters
            only. None means all blocks.
        causal: Whether a frame gets information from itself and earlier frames only, so that videos can be classified
            while they last (:mod:`peft_aim.streaming`). In temporal attention, it attends to ``num_frames`` frames at
            most, the last of them itself; a convolution covers it and the frames before it. The temporal embedding of
            frame t is that of index min(t, num_frames - 1), for clips of any length. Scores and pooled features are
            averaged over the last ``num_frames`` frames. Attention then leaves out its own dropout. The default is
            the paper's: all frames of a clip attend to each other.
        joint: Whether blocks get the joint adapter.
        temporal_adapters: Number of temporal adapters per block, 1 or 2. 2 adds a bottleneck with a skip connection
            before temporal attention. The paper uses 1, and 2 for Something-Something v2.
        scale: Factor s on the joint adapter. The paper uses 0.5, and 1.0 for Something-Something v2.
        drop_path: Stochastic depth rate of the last block, on the temporal and the joint branch. The rate grows
            linearly over the blocks, from 0 at the first. The default turns it off; the paper trains with 0.2.
        head_dropout: Dropout rate before the adapter's own head; the same features are dropped in all frames of a
            clip. Needs ``num_labels`` or ``id2label``. The default turns it off; the paper trains with 0.5.
        final_norm: Whether to train the norms after the last block, if there are any, and save them with the adapter.
            Set it to True to train as in the paper.
        recompute: Activation checkpointing: which activations of a block are recomputed in backward instead of being
            saved in forward. Change it if training runs out of memory; scores and gradients stay the same. The
            settings, from most activation memory to least:

            - "nothing" (default) saves all activations.
            - "pointwise" recomputes norms and activation functions, which reduces memory by a few percent, or not at
              all where attention has windows.
            - "mlp" also recomputes the hidden layer of the MLP, attention over few tokens, and the temporal adapter's
              second layer.
            - "block" saves only the input of each block, and recomputes everything else.

            With "pointwise" and "mlp", backward can run only once per graph (no ``retain_graph``). It fails with "has
            been mutated" if a block changes the result of a layer in place; use "block" then.
        temporal_embedding: Where to add a learned embedding of the frames. "input" (default), as in the paper: to the
            tokens before the first block, (1, T, D), initialized to zero. "blocks": inside the adapter of every block
            with temporal attention, before its GELU, (1, T, r D), initialized to waves; the order of frames is then
            learned in a fraction of the steps. False adds none, and True means "input".
        temporal_conv: Whether the temporal adapter also gets the tokens before temporal attention, through a depthwise
            convolution over ``temporal_kernel`` frames in its bottleneck. Frozen attention along time blurs what
            changes from frame to frame; this keeps it. The paper has none.
        num_labels: Number of classes of the adapter's own classification head, which is trained from scratch and
            saved with the adapter. None keeps the model's head.
        id2label: Class names by index, saved with the adapter. Implies ``num_labels``.
        problem_type: What the labels passed to a transformers model with the adapter's own head mean, and which loss
            follows. "single_label_classification": class indices (B,), cross-entropy.
            "multi_label_classification": floats (B, num_labels), 0.0 or 1.0 each, binary cross-entropy. "regression":
            numbers (B, num_labels), for a single output also (B,), mean squared error. None takes
            ``model.config.problem_type``, and saves it with the adapter after training; if that is None as well, it is
            inferred as in transformers: regression for a single output, else a single label for integers and several
            labels for floats. An adapter that has its own ignores that of the model. Labels of another shape or dtype
            raise an error.
        target_modules: The blocks to adapt: a list of names or name suffixes, or a regular expression for the whole
            name. None finds all blocks by their structure; the option is then set to what was found.
        exclude_modules: Blocks not to adapt, in the same form.
        layers_to_transform: Index or indices of the blocks to adapt, in the order in which the blocks run.
        norm1_module: Name, inside a block, of the norm of the attention branch. Give this and the next three only if
            the parts of a block are not found by structure.
        attention_module: Name, inside a block, of the attention.
        norm2_module: Name, inside a block, of the norm of the MLP branch.
        mlp_module: Name, inside a block, of the MLP.
        modules_to_save: Names of other modules to train and save with the adapter.
        save_dtype: "float16" or "bfloat16" rounds the adapter to half precision when it is saved, which halves the
            file; None saves it unrounded. It is loaded in the precision that it was trained in. Checkpoints of a
            Trainer are rounded as well; to resume from unrounded ones, leave this at None during training and set it
            in ``model.peft_config`` afterwards.
        init_weights: If False, the up-projections and the input's temporal embedding are drawn at random instead of
            initialized to zero, so that a new adapter is not an identity. For tests.
        backbone_fingerprint: Fingerprint of the frozen weights that the adapter was trained on. Set when the adapter
            is saved; a warning is shown when it is loaded onto other weights.
        video: Metadata that :mod:`peft_aim.video` saves with the adapters it trains: how clips are made from a video
            file, the training recipe and the results.

    Raises:
        ValueError: If an option is unknown, has the wrong type or is out of range, or if options contradict each
            other.

    Example:
        >>> AIMConfig(num_frames=8, id2label={0: "push", 1: "pull"}).num_labels
        2
        >>> AIMConfig(num_frames=0)
        Traceback (most recent call last):
        ...
        ValueError: num_frames=0 is not a positive integer. Give the number of frames per clip, 8 for example.
    """

    num_frames: int = 8
    bottleneck_ratio: float = 0.25
    spatial: bool = True
    temporal: bool | str = "attention"
    temporal_kernel: int = 3
    temporal_layers: str | list[int] | None = None
    causal: bool = False
    joint: bool = True
    temporal_adapters: int = 1
    scale: float = 0.5
    drop_path: float = 0.0
    head_dropout: float = 0.0
    final_norm: bool = False
    recompute: str = "nothing"
    temporal_embedding: bool | str = "input"
    temporal_conv: bool = False
    num_labels: int | None = None
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    target_modules: str | list[str] | set[str] | None = None
    exclude_modules: str | list[str] | set[str] | None = None
    layers_to_transform: int | list[int] | None = None
    norm1_module: str | None = None
    attention_module: str | None = None
    norm2_module: str | None = None
    mlp_module: str | None = None
    modules_to_save: list[str] | None = None
    save_dtype: str | None = None
    init_weights: bool = True
    backbone_fingerprint: str | None = None
    video: dict[str, Any] | None = None

    # Not options, so neither compared nor saved.
    folder: ClassVar[str | None] = None  # the folder that the config was loaded from
    saved: ClassVar[SavedAdapter | None] = None  # where its weights are still to be fetched from
    branches: ClassVar[dict[str, list[str]]] = {}  # by module of the current model, what it gets
    found_targets: ClassVar[str | None] = None  # the blocks found in the current model, if none were given
    of_model: ClassVar[dict[str, Any]] = {}  # options whose saved value depends on the model that is being saved

    def __new__(cls, *args: Any, **kwargs: Any) -> AIMConfig:
        """Reject unknown options here: PEFT would catch a TypeError of ``__init__`` and ignore them."""
        unknown = sorted(set(kwargs) - {option.name for option in fields(cls)})
        if unknown:
            raise ValueError(
                f"AIMConfig has no option {', '.join(unknown)}. If it is from a saved adapter, the adapter was saved "
                "with a newer version: pip install -U peft-aim peft. Otherwise, see help(AIMConfig) for the options."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type()
        check(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Load a saved config, and remember where from, so that the weights are checked before they are loaded.

        To start a new adapter from saved options instead, pass ``dataclasses.replace(config,
        backbone_fingerprint=None)``.

        Raises:
            ValueError: If there is none, it cannot be downloaded from the Hub, or it is broken, with the reason.
        """
        saved = SavedAdapter(os.fspath(pretrained_model_name_or_path), subfolder, cls._split_kwargs(kwargs)[0])
        folder = saved.folder_with_config()
        config = super().from_pretrained(folder, **kwargs)
        if not isinstance(config, AIMConfig):
            raise ValueError(
                f"{saved.name} is an adapter of {config.peft_type.value}, not of AIM. Give a saved AIM adapter."
            )
        config.folder, config.saved = folder, saved
        return config

    def fetch_weights(self) -> None:
        """Download the weights that belong to a loaded config, if they are on the Hub, before anything is changed.

        Raises:
            ValueError: If they cannot be downloaded, with the reason.
        """
        if self.saved is not None:
            self.folder, self.saved = self.saved.folder_with_weights(), None

    def to_dict(self) -> dict[str, Any]:
        """Return the options as they are saved, with the values of the model that the adapter is being saved from.

        Options of AIM that are None are left out, and ``causal`` if it is False, which means the same: versions that
        do not know an option then read the adapters that do not use it.
        """
        inherited = {option.name for option in fields(PeftConfig)}  # transformers reads them, also if they are None
        found = {**super().to_dict(), **self.of_model}
        if not self.causal:
            del found["causal"]
        return {name: value for name, value in found.items() if value is not None or name in inherited}

    @property
    def has_found_targets(self) -> bool:
        """Whether ``target_modules`` was not given, but set to the blocks found in a model."""
        return self.found_targets is not None and self.target_modules == self.found_targets

    def search_anew(self) -> AIMConfig:
        """Reset targets that were found in a model, before the config is used for another one."""
        if self.has_found_targets:
            self.target_modules = None
        return self

    def note_targets(self, found: str) -> None:
        """Set ``target_modules`` to the blocks found in a model, unless it was given."""
        if self.target_modules is None:
            self.target_modules = self.found_targets = found

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, and a model card unless the folder has a hand-written one."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(self.to_dict(), Path(save_directory))

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Write the card again when the config is pushed: transformers has put an empty one over it."""
        write_card(self.to_dict(), Path(working_dir), repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @property
    def may_convolve(self) -> bool:
        """Whether blocks may have a convolution over time in place of temporal attention."""
        return self.temporal in ("conv", "auto")

    @property
    def has_block_adapters(self) -> bool:
        """Whether blocks get adapters; otherwise only the temporal embedding or a head is trained."""
        return self.spatial or self.temporal or self.joint
