"""What is known of a block: its parts and the layouts of their tokens, or why it is none."""

from __future__ import annotations

from dataclasses import dataclass

from peft_aim.attention import Causal, Kind
from peft_aim.tracing import Layout

BATCH_FIRST = Layout()


@dataclass(frozen=True)
class PartNames:
    """Names of parts inside a block, given by the user where they cannot be found by structure."""

    norm1: str | None = None
    attention: str | None = None
    norm2: str | None = None
    mlp: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """The parts of a block, or of the attention or MLP half of one; otherwise only the layout of its tokens.

    Attributes:
        norm1: Name, inside the block, of the norm of the attention branch, None if there is none.
        attention: Name of the attention, "" for the module itself, None if there is none or if parts are not known.
        norm2: Name of the norm of the MLP branch, None if there is none.
        mlp: Name of the MLP, "" for the module itself, or of its first part if several are called one after the other;
            None if the block has no MLP.
        mlp_end: Name of the last part, otherwise the same as ``mlp``.
        width: Token width D.
        attend: The kind of temporal attention, None if the attention cannot run over time.
        output: Name, inside the attention, of the linear layer at its end, None if there is none.
        causal: How it attends to earlier frames only, None if it cannot, or as long as no adapter needs that.
        norm_first: Whether the branches are pre-norm rather than post-norm.
        tokens: Layout of the tokens that the block is called on.
        norm_tokens: The same for the norm of the attention branch.
        attention_tokens: The same for the attention.
        mlp_tokens: The same for the MLP.
        others: Names of other parts that mix or normalize features.
        skip_outside: Whether it is a half block without a skip connection: its caller adds its output to its input.
        norm_outside: Then, the name, in the model, of the norm that its caller calls on that input first, if it does.
        end_outside: And of the last module between the half and the sum, such as a dropout, if there is one.
    """

    norm1: str | None
    attention: str | None
    norm2: str | None
    mlp: str | None
    mlp_end: str | None
    width: int
    attend: Kind | None
    output: str | None = None
    causal: Causal | None = None
    norm_first: bool = True
    tokens: Layout = BATCH_FIRST
    norm_tokens: Layout = BATCH_FIRST
    attention_tokens: Layout = BATCH_FIRST
    mlp_tokens: Layout = BATCH_FIRST
    others: tuple[str, ...] = ()
    skip_outside: bool = False
    norm_outside: str | None = None
    end_outside: str | None = None

    @property
    def is_mlp_half(self) -> bool:
        """Whether it is the MLP half of a block, which gets the joint adapter alone."""
        return self.attention is None and self.mlp is not None

    @property
    def has_norm_inside_mlp(self) -> bool:
        """Whether the MLP itself calls its norm, whose output is the input of the joint adapter."""
        return (
            self.norm2 is not None and self.mlp is not None and f"{self.norm2}.".startswith(f"{self.mlp}.".lstrip("."))
        )


class NotABlock(ValueError):  # noqa: N818 (a result rather than an error)
    """Raised for modules that AIM cannot adapt as a block with temporal attention.

    Args:
        reason: What was observed.
        understood: Whether it is safe to skip the module, because the reason explains what it is (class attention).
        known: Its parts, if all that is missing is a way to run its attention over time.
    """

    def __init__(self, reason: str, understood: bool = False, known: Anatomy | None = None) -> None:
        super().__init__(reason)
        self.understood = understood
        self.known = known

    @property
    def attends(self) -> bool:
        """Whether its attention could run over time."""
        return self.known is not None and self.known.attend is not None
