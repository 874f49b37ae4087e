"""The schedules of the learning rate and of the KL's weight."""

from __future__ import annotations

import math

import pytest
import torch

from noisynat import GaussianLikelihood, NoisyKFAC, VariationalNetwork, cosine_schedule
from noisynat.optim.schedule import CosineSchedule, warmed_up_kl_weight


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


def test_warm_up_rises_geometrically_from_its_start() -> None:
    weights = [warmed_up_kl_weight(0.8, epoch, 2, start=0.25) for epoch in range(4)]
    assert weights == pytest.approx([0.2, 0.4, 0.8, 0.8])


def test_without_warm_up_the_weight_is_full_at_once() -> None:
    assert warmed_up_kl_weight(0.8, 0, 0) == 0.8


def noisy_optimizer() -> NoisyKFAC:
    """Of a network of one layer."""
    network = VariationalNetwork(torch.nn.Linear(2, 1), GaussianLikelihood(0.1), num_data=10)
    return NoisyKFAC(network, lr=0.5, betas=(0.9, 0.98))


def advance(optimizer: NoisyKFAC, schedule: CosineSchedule) -> None:
    """One training step and one of the schedule."""
    optimizer.zero_grad()
    optimizer.network.loss(torch.ones(4, 2), torch.ones(4, 1)).backward()
    optimizer.step()
    schedule.step()


def test_the_curvatures_step_falls_with_the_cosine_down_to_its_floor() -> None:
    optimizer = noisy_optimizer()
    schedule = cosine_schedule(optimizer, 10, curvature_final=0.25)
    steps = []
    for _ in range(12):
        steps.append(1 - optimizer.param_groups[0]["betas"][1])
        advance(optimizer, schedule)
    expected = [0.02 * max(0.5 * (1 + math.cos(math.pi * min(t / 10, 1))), 0.25) for t in range(12)]
    assert steps == pytest.approx(expected)
    assert optimizer.param_groups[0]["betas"][0] == 0.9


def test_a_resumed_schedule_continues_the_curvatures_step() -> None:
    whole, resumed = noisy_optimizer(), noisy_optimizer()
    first, second = (cosine_schedule(optimizer, 10, curvature_final=0.1) for optimizer in (whole, resumed))
    for _ in range(4):
        advance(whole, first)
    resumed.load_state_dict(whole.state_dict())
    second.load_state_dict(first.state_dict())
    advance(whole, first)
    advance(resumed, second)
    assert whole.param_groups[0]["betas"] == resumed.param_groups[0]["betas"]
    assert whole.param_groups[0]["lr"] == resumed.param_groups[0]["lr"]


def test_without_a_floor_the_curvatures_step_stays() -> None:
    optimizer = noisy_optimizer()
    advance(optimizer, cosine_schedule(optimizer, 10))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.98)


def test_a_plain_optimizer_has_no_curvature_to_schedule() -> None:
    with pytest.raises(TypeError, match="not SGD"):
        cosine_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 10, curvature_final=0.5)
