"""Image transformers as people write them by hand: their blocks are laid out in other ways than those of libraries."""

from __future__ import annotations

from collections.abc import Callable

import torch
import zoo
from torch import Tensor, nn

D, HEADS, DEPTH = 32, 2, 3
LAYOUTS: dict[str, Callable[[], nn.Module]] = {}
REFUSED: dict[str, Callable[[], nn.Module]] = {}


def layout(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    LAYOUTS[factory.__name__] = factory
    return factory


def refused(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    REFUSED[factory.__name__] = factory
    return factory


def build(name: str) -> nn.Module:
    """Build a model in evaluation mode, with random weights from a fixed seed."""
    torch.manual_seed(0)
    model = {**LAYOUTS, **REFUSED}[name]().eval()
    zoo.randomize(model)
    return model


class Net(nn.Module):
    """Patches, a class token, a trunk of tokens (B, N, D), and a head."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.image_size = (zoo.SIZE, zoo.SIZE)
        self.stem, self.token = nn.Conv2d(3, D, 8, 8), nn.Parameter(torch.zeros(1, 1, D))
        self.trunk, self.norm, self.head = trunk, nn.LayerNorm(D), nn.Linear(D, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.trunk(x))[:, 0])


class MSA(nn.Module):
    """Self-attention without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Foo(MSA):
    """The same under a name that says nothing, with its norm inside."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.n(x))


class Attention(Foo):
    """The same under the usual name."""


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))


def feed_forward() -> nn.Sequential:
    """An MLP with its norm inside."""
    return nn.Sequential(nn.LayerNorm(D), *mlp())


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = feed_forward()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Gated(nn.Module):
    """A gated MLP with its norm inside, whose layers are not called one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.gate, self.down = (
            nn.LayerNorm(D),
            *(nn.Linear(D, 2 * D) for _ in "ab"),
            nn.Linear(2 * D, D),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.down(self.up(h) * self.gate(h).sigmoid())


class PreNorm(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(D), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class PostNorm(PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fn(x))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class LayerScale(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.scale = fn, nn.Parameter(torch.full((D,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) * self.scale


class Pairs(nn.Module):
    """A trunk whose blocks are pairs: ``x = x + attention(x)``, ``x = x + mlp(x)``."""

    def __init__(self, attention: Callable[[], nn.Module], mlp: Callable[[], nn.Module], factor: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList([attention(), mlp()]) for _ in range(DEPTH))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        for attend, mix in self.layers:
            x = x + self.factor * attend(x) if self.factor != 1 else attend(x) + x
            x = mix(x) + x
        return x


@layout
def pairs_of_msa() -> nn.Module:
    return Net(Pairs(lambda: PreNorm(MSA()), lambda: PreNorm(mlp())))


@layout
def pairs_of_foo() -> nn.Module:
    return Net(Pairs(Foo, FeedForward))


@layout
def pairs_with_gated_mlps() -> nn.Module:
    return Net(Pairs(Attention, Gated))


@layout
def pairs_of_layer_scales() -> nn.Module:
    return Net(Pairs(lambda: LayerScale(Foo()), lambda: LayerScale(FeedForward())))


@layout
def pairs_with_norms_behind() -> nn.Module:
    return Net(Pairs(lambda: PostNorm(MSA()), lambda: PostNorm(mlp())))


@layout
def pairs_in_the_model_itself() -> nn.Module:
    class Flat(Net):
        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images).flatten(2).mT
            for attend, mix in self.trunk.layers:
                x = x + attend(x)
                x = x + mix(x)
            return self.head(x.mean(1))

    return Flat(Pairs(Foo, FeedForward))


@layout
def residual_wrappers() -> nn.Module:
    halves = [Residual(PreNorm(part())) for _ in range(DEPTH) for part in (MSA, mlp)]
    return Net(nn.Sequential(*halves))


@layout
def blocks_of_residual_wrappers() -> nn.Module:
    return Net(nn.Sequential(*[nn.Sequential(Residual(Foo()), Residual(feed_forward())) for _ in range(DEPTH)]))


class Flat(nn.Module):
    """A trunk that calls everything itself: ``x = x + attention(norm(x))``, ``x = x + mlp(norm(x))``."""

    def __init__(self, attention: Callable[[], nn.Module] = MSA) -> None:
        super().__init__()
        quadruples = [nn.ModuleList([nn.LayerNorm(D), attention(), nn.LayerNorm(D), mlp()]) for _ in range(DEPTH)]
        self.layers, self.drop = nn.ModuleList(quadruples), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, attend, norm2, mix in self.layers:
            x = x + attend(norm1(x))
            x = x + mix(norm2(x))
        return x


@layout
def quadruples() -> nn.Module:
    return Net(Flat())


@layout
def four_lists() -> nn.Module:
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = (lambda: nn.LayerNorm(D), MSA, lambda: nn.LayerNorm(D), mlp)
            self.parts = nn.ModuleDict({f"{i}": nn.ModuleList(p() for _ in range(DEPTH)) for i, p in enumerate(parts)})

        def forward(self, x: Tensor) -> Tensor:
            for norm1, attend, norm2, mix in zip(*self.parts.values(), strict=True):
                x = x + attend(norm1(x))
                x = x + mix(norm2(x))
            return x

    return Net(Lists())


def _block(x: Tensor, norm1: nn.Module, attend: nn.Module, norm2: nn.Module, mix: nn.Module) -> Tensor:
    h = norm1(x)
    x = attend(h, h, h, need_weights=False)[0] + x
    return mix(norm2(x)) + x


@layout
def a_function_on_torch_s_attention() -> nn.Module:
    class Functional(Flat):
        def forward(self, x: Tensor) -> Tensor:
            for parts in self.layers:
                x = _block(x, *parts)
            return x

    return Net(Functional(lambda: nn.MultiheadAttention(D, HEADS, batch_first=True)))


@layout
def torch_s_attention_with_norms_on_sums() -> nn.Module:
    class OnSums(Flat):
        def forward(self, x: Tensor) -> Tensor:
            for norm1, attend, norm2, mix in self.layers:
                x = norm1(x + attend(x, x, x)[0])
                x = norm2(x + mix(x))
            return x

    return Net(OnSums(lambda: nn.MultiheadAttention(D, HEADS, batch_first=True)))


@layout
def quadruples_with_one_dropout() -> nn.Module:
    class Dropped(Flat):
        def forward(self, x: Tensor) -> Tensor:
            for norm1, attend, norm2, mix in self.layers:
                x = x + self.drop(attend(norm1(x)))
                x = x + self.drop(mix(norm2(x)))
            return x

    return Net(Dropped())


@layout
def pairs_with_the_mlp_first() -> nn.Module:
    class First(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            for attend, mix in self.layers:
                x = x + mix(x)
                x = x + attend(x)
            return x

    return Net(First(Foo, FeedForward))


class MLPFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mlp, self.norm2, self.attn = nn.LayerNorm(D), mlp(), nn.LayerNorm(D), MSA()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.norm1(x))
        return x + self.attn(self.norm2(x))


@layout
def pairs_in_blocks_with_the_mlp_first() -> nn.Module:
    return Net(nn.Sequential(*[MLPFirst() for _ in range(DEPTH)]))


@refused
def blocks_with_the_mlp_first_and_a_factor() -> nn.Module:
    class Halved(MLPFirst):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mlp(self.norm1(x))
            return x + 0.5 * self.attn(self.norm2(x))

    return Net(nn.Sequential(*[Halved() for _ in range(DEPTH)]))


class Gamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((D,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@layout
def dictionaries_with_layer_scales() -> nn.Module:
    class Dictionaries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {"norm1": lambda: nn.LayerNorm(D), "attn": MSA, "scale1": Gamma, "drop": lambda: nn.Dropout(0.1)}
            parts |= {"norm2": lambda: nn.LayerNorm(D), "mlp": mlp, "scale2": Gamma}
            self.layers = nn.ModuleList(nn.ModuleDict({n: p() for n, p in parts.items()}) for _ in range(DEPTH))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.layers:
                x = x + part["drop"](part["scale1"](part["attn"](part["norm1"](x))))
                x = x + part["scale2"](part["mlp"](part["norm2"](x)))
            return x

    return Net(Dictionaries())


class ResidualAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(D), nn.MultiheadAttention(D, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.attn(h, h, h, need_weights=False)[0]


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


@layout
def residual_modules() -> nn.Module:
    return Net(nn.Sequential(*[part() for _ in range(DEPTH) for part in (ResidualAttention, ResidualMLP)]))


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, HEADS, 2 * D, 0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)


@layout
def torch_encoder_norms_first() -> nn.Module:
    return Net(_encoder(norm_first=True))


@layout
def torch_encoder_norms_last() -> nn.Module:
    return Net(_encoder(norm_first=False))


@layout
def torch_encoder_layers() -> nn.Module:
    return Net(nn.Sequential(*_encoder(norm_first=True).layers))


class Inline(nn.Module):
    """A block whose attention is called by a name that says nothing, with an MLP in several calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LayerNorm(D), nn.LayerNorm(D)
        self.mixer, self.up, self.gate, self.down = MSA(), *(nn.Linear(D, 2 * D) for _ in "ab"), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.a(x))
        h = self.b(x)
        return x + self.down(self.up(h) * self.gate(h).sigmoid())


@layout
def mlp_in_several_calls() -> nn.Module:
    return Net(nn.Sequential(*[Inline() for _ in range(DEPTH)]))


class WithoutClassToken(Pairs):
    """Pairs whose MLPs get the tokens without the class token."""

    def forward(self, x: Tensor) -> Tensor:
        for attend, mix in self.layers:
            x = x + attend(x)
            token, x = x[:, :1], x[:, 1:]
            x = torch.cat([token, mix(x) + x], 1)
        return x


@layout
def pairs_with_registers_that_skip_the_mlp() -> nn.Module:
    """The class token is a register, and the last tokens are laid out as an image."""

    class Mean(Net):
        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images).flatten(2).mT
            x = self.trunk(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
            return self.head(x[:, 1:].mT.unflatten(-1, (2, -1)).mean((2, 3)))

    return Mean(WithoutClassToken(Attention, FeedForward))


@layout
def several_blocks_that_run_twice() -> nn.Module:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.looped = Inline(), nn.ModuleList([Inline() for _ in range(DEPTH - 1)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            for block in (*self.looped, *self.looped):
                x = block(x)
            return x

    return Net(Looped())


@refused
def pairs_with_a_factor() -> nn.Module:
    return Net(Pairs(Foo, FeedForward, factor=0.5))


@refused
def one_branch_of_several_with_a_factor() -> nn.Module:
    class First(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            for index, (attend, mix) in enumerate(self.layers):
                x = x + (0.5 if index == 0 else 1) * attend(x)
                x = x + mix(x)
            return x

    return Net(First(Attention, FeedForward))


@layout
def parallel_attentions() -> nn.Module:
    class Sum(nn.Module):
        def __init__(self, part: Callable[[], nn.Module]) -> None:
            super().__init__()
            self.fns = nn.ModuleList([part(), part()])

        def forward(self, x: Tensor) -> Tensor:
            return sum(fn(x) for fn in self.fns)

    return Net(Pairs(lambda: Sum(Attention), lambda: Sum(FeedForward)))


@refused
def parallel_branches() -> nn.Module:
    class Parallel(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            for attend, mix in self.layers:
                x = x + attend(x) + mix(x)
            return x

    return Net(Parallel(Foo, FeedForward))


class TokenMLP(nn.Module):
    """An MLP over the 17 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(17, 17)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(x.mT).mT


@refused
def another_token_mixer() -> nn.Module:
    return Net(nn.Sequential(*zoo.build("timm_vit").blocks, TokenMLP()))


@refused
def a_token_mixer_in_a_block() -> nn.Module:
    class Mixing(Inline):
        def __init__(self) -> None:
            super().__init__()
            self.extra = TokenMLP()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.extra(x))

    return Net(nn.Sequential(*[Mixing() for _ in range(DEPTH)]))


@refused
def an_attention_beside_blocks() -> nn.Module:
    class Without(nn.Module):
        """A module that replaces the tokens by attention to them, without a skip connection."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = MSA()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    return Net(nn.Sequential(*zoo.build("timm_vit").blocks, Without()))
