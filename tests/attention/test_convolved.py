"""Attentions by hand that take images: a norm on images inside, convolutions as projections, biases of coordinates."""

import pytest
import torch
from torch import Tensor, nn

from peft_aim.attention import find_kind, random_twin
from peft_aim.tracing import Layout

D, HEADS, SIZE = 8, 2, 4


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of images, with its scale in their form."""

    def __init__(self):
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(1, D, 1, 1)), nn.Parameter(torch.zeros(1, D, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(1, keepdim=True), x.std(1, correction=0, keepdim=True)
        return (x - mean) / (deviation + 1e-6) * self.g + self.b


class OnImages(nn.Module):
    """Attention on images, whose keys and values are made by cells of positions."""

    def __init__(self, cell: int = 1):
        super().__init__()
        self.heads, self.norm = HEADS, ChannelNorm()
        self.to_q = nn.Conv2d(D, D, 1, bias=False)
        self.to_kv = nn.Conv2d(D, 2 * D, cell, cell)
        self.to_out = nn.Sequential(nn.Conv2d(D, D, 1), nn.Dropout(0.1))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT * (D // HEADS) ** -0.5

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images)
        q, k, v = (part.unflatten(1, (HEADS, -1)).flatten(3).mT for part in (self.to_q(x), *self.to_kv(x).chunk(2, 1)))
        mixed = self.scores(q, k).softmax(-1) @ v  # (B, heads, N, D / heads)
        return self.to_out(mixed.mT.flatten(1, 2).unflatten(-1, images.shape[2:]))


class InWindows(OnImages):
    """The same within windows, with a bias that a small network computes of coordinates, which are float32."""

    def __init__(self, temperature: float | None = None):
        super().__init__()
        self.patch_size = 2
        self.bias = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
        self.temperature = temperature and nn.Parameter(torch.tensor(temperature))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        position = torch.arange(q.shape[-2])
        distance = (position[:, None] - position).abs().float()
        scores = super().scores(q, k) + self.bias(distance[..., None])[..., 0]
        return scores if self.temperature is None else scores * (1 + self.temperature)

    def forward(self, images: Tensor) -> Tensor:
        windows = images.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, D, h, w, 2, 2), which fails for a single row
        parts = super().forward(windows.movedim(1, 3).flatten(0, 2)).unflatten(0, (len(images), *windows.shape[2:4]))
        return parts.movedim(3, 1).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def found(attention: nn.Module):
    twin = random_twin(attention)
    return find_kind(attention, (2, D, SIZE, SIZE), {}, Layout(channels=1)), twin


def test_keys_of_cells_act_as_where_the_tokens_of_each_cell_are_equal():
    kind, twin = found(OnImages(cell=2))
    assert kind.cell(twin) == 2
    cells = torch.randn(3, D, 2, 3, dtype=torch.float64)
    x = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(kind(twin, x.flatten(2).mT), twin(x).flatten(2).mT, atol=1e-6)
    assert not torch.allclose(kind(twin, x.flatten(2).mT), kind(twin, x.flatten(2).mT.flip(2)), atol=1e-2)


def test_windows_act_over_time_without_their_bias():
    kind, twin = found(InWindows())
    x = torch.randn(3, D, 2, 2, dtype=torch.float64)
    for parameter in twin.bias.parameters():
        parameter.zero_()
    with torch.no_grad():
        own = OnImages.forward(twin.float(), x.float())  # coordinates are float32
    assert torch.allclose(kind(twin, x.float().flatten(2).mT), own.flatten(2).mT, atol=1e-5)


def test_a_factor_that_does_not_depend_on_positions_is_not_left_out():
    with pytest.raises(ValueError, match="they leave out temperature, which does not depend on positions"):
        found(InWindows(temperature=2.0))

    class Warm(OnImages):
        def __init__(self):
            super().__init__(cell=2)
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def scores(self, q: Tensor, k: Tensor) -> Tensor:
            return super().scores(q, k) * (1 + self.temperature)

    with pytest.raises(ValueError, match="they leave out temperature, which does not depend on positions"):
        found(Warm())


def test_the_bias_of_a_convolution_over_positions_is_left_out_with_it():
    class WithLocal(OnImages):
        def __init__(self):
            super().__init__()
            self.local = nn.Conv2d(D, D, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.local(images)

    kind, twin = found(WithLocal())
    nn.init.zeros_(twin.local.weight), nn.init.zeros_(twin.local.bias)
    x = torch.randn(2, D, 3, 3, dtype=torch.float64)
    assert torch.allclose(kind(twin, x.flatten(2).mT), twin(x).flatten(2).mT, atol=1e-6)


def test_a_grid_of_windows_is_tried_with_one_window():
    class OnWindows(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.to_qkv, self.to_out = HEADS, nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.bias = nn.Parameter(torch.zeros(HEADS, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            _, _, _, height, width, _ = x.shape  # (B, rows, columns, height, width, D)
            q, k, v = self.to_qkv(x.flatten(3, 4)).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-3, -2)
            mixed = ((q @ k.mT) * (D // HEADS) ** -0.5 + self.bias).softmax(-1) @ v
            return self.to_out(mixed.transpose(-3, -2).flatten(-2)).unflatten(-2, (height, width))

    twin = random_twin(OnWindows())
    kind = find_kind(twin, (2, 3, 2, 2, 2, D), {})
    x = torch.randn(5, 1, 1, 2, 2, D, dtype=torch.float64)
    nn.init.zeros_(twin.bias)
    assert torch.allclose(kind(twin, x.flatten(1, 4)), twin(x).flatten(1, 4), atol=1e-6)
