import pytest
import torch
from torch import nn

from benchmarks.training.loop import groups, minimize
from benchmarks.training.metrics import measured, partner


def test_new_parameters_get_a_higher_rate_and_only_matrices_decay():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    found = groups([*old.parameters(), *new.parameters()], new.parameters(), lr=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in found] == [
        (0.1, 0.05),
        (0.1, 0.0),
        (1.0, 0.05),
        (1.0, 0.0),
    ]


def test_a_loss_is_minimized_and_no_example_repeats_before_all_are_drawn():
    point, seen = nn.Linear(1, 1), []

    def loss(indices):
        seen.append(indices)
        return (point(torch.ones(1)) - 3).square().sum()

    assert minimize(point, loss, count=6, steps=100, batch=3, lr=0.2) < 0.1
    assert all(torch.cat(seen[i : i + 2]).sort()[0].tolist() == [*range(6)] for i in range(0, 100, 2))


def test_scores_blind_to_order_are_right_on_exactly_one_clip_of_each_pair():
    labels = torch.randint(10, (50,))
    scores = torch.randn(50, 10)
    found = measured(torch.cat([scores, scores]), torch.cat([labels, partner(labels)]))
    assert found["within_pair"] == 0.5
    assert found["top1"] == pytest.approx(((scores.argmax(1) // 2) == labels // 2).float().mean().item() / 2)
