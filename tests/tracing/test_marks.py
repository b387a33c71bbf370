"""Products that only pass NaN on: the same entries are NaN as in the products themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from peft_aim.tracing.hollow import passing_marks

SHAPES = {"a": (5, 6), "b": (6, 4), "c": (5, 4)}
PRODUCTS = {
    "mm": lambda a, b, c: a[0] @ b[0],
    "addmm": lambda a, b, c: F.linear(a, b[0].mT, c[0, 0]),
    "bmm": lambda a, b, c: a @ b,
    "baddbmm": lambda a, b, c: torch.baddbmm(c, a, b),
    "einsum": lambda a, b, c: torch.einsum("bij,bjk->bik", a, b),
    "attention": lambda a, b, c: F.scaled_dot_product_attention(a[None], b.mT[None], b.mT[None]),
    "masked attention": lambda a, b, c: F.scaled_dot_product_attention(
        a[None], b.mT[None], b.mT[None], attn_mask=torch.arange(4).expand(5, 4) < 3
    ),
    "causal attention": lambda a, b, c: F.scaled_dot_product_attention(
        a[None], b.mT[None], b.mT[None], is_causal=True
    ),
}


@pytest.mark.parametrize("where", ["nowhere", "a", "b", "c"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_marks_are_those_of_the_product(name, where):
    generator = torch.Generator().manual_seed(0)
    factors = {key: torch.randn(2, *shape, generator=generator) for key, shape in SHAPES.items()}
    if where in factors:
        factors[where][1, 2, 1] = factors[where][0, 0, 0] = torch.nan
    expected = PRODUCTS[name](*factors.values())
    with FlopCounterMode(display=False) as counter, passing_marks():
        found = PRODUCTS[name](*factors.values())
    assert found.shape == expected.shape and torch.equal(found.isnan(), expected.isnan())
    assert name == "causal attention" or (counter.get_total_flops() == 0 and (found.nan_to_num(1) == 1).all())
