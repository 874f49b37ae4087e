"""The schedules of the learning rate and of the KL's weight."""

from __future__ import annotations

import math

import pytest
import torch

from noisynat import cosine_schedule
from noisynat.optim.schedule import warmed_up_kl_weight


def rates(total: int, steps: int, final: float = 0.0) -> list[float]:
    """The learning rates that a plain optimizer sees."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = cosine_schedule(optimizer, total, final)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return result


def test_cosine_follows_half_a_wave() -> None:
    assert rates(10, 10) == pytest.approx([0.25 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])


def test_cosine_ends_at_its_final_fraction_and_stays_there() -> None:
    assert rates(4, 7, final=0.1)[4:] == pytest.approx([0.05] * 3)


@pytest.mark.parametrize(("total", "final"), [(0, 0.0), (10, -0.1), (10, 1.1)])
def test_cosine_refuses_what_makes_no_sense(total: int, final: float) -> None:
    with pytest.raises(ValueError, match="total_steps >= 1 and 0 <= final <= 1"):
        cosine_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), total, final)


def test_warm_up_rises_linearly_and_is_complete_afterwards() -> None:
    weights = [warmed_up_kl_weight(0.8, epoch, 3) for epoch in range(6)]
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_without_warm_up_the_weight_is_full_at_once() -> None:
    assert warmed_up_kl_weight(0.8, 0, 0) == 0.8
