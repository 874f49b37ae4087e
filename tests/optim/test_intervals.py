"""When statistics and factorizations are due."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import noisynat
from noisynat.optim.intervals import Interval


def make(width: int, **settings: Any) -> noisynat.NoisyKFAC:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.5), num_data=50, seed=1)
    return noisynat.NoisyKFAC(bnn, **settings)


def train(optimizer: noisynat.NoisyKFAC, steps: int) -> tuple[list[int], list[int]]:
    """Train, and give the steps (from 0) that took statistics and those after which the inverse was another one."""
    network = optimizer.network
    inputs = network.layers[0].in_features
    took, refreshed = [], []
    for step in range(steps):
        before = network.posteriors[0].curvature.inverse
        if network.statistics_due:
            took.append(step)
        optimizer.zero_grad()
        network.loss(torch.randn(6, inputs), torch.randn(6, 1)).backward()
        optimizer.step()
        if network.posteriors[0].curvature.inverse is not before:
            refreshed.append(step)
    return took, refreshed


def test_a_fixed_interval() -> None:
    assert [step for step in range(10) if Interval(3).is_due(step)] == [0, 3, 6, 9]


def test_a_growing_interval_is_every_step_at_first_and_at_least_every_five_until_it_has_settled() -> None:
    interval = Interval(4, grows=True)
    assert [step for step in range(40) if interval.is_due(step)] == [*range(10), 10, 12, 14, 15, 18, 20, 24, 28, 32, 36]
    assert [interval.at(step) for step in (0, 9, 10, 14, 15, 20, 1000)] == [1, 1, 2, 2, 3, 4, 4]


@given(steps=st.integers(1, 200))
def test_intervals_settle(steps: int) -> None:
    interval = Interval(steps, grows=True)
    due = [step for step in range(1500) if interval.is_due(step)]
    early = [step for step in due if step <= interval.settles_at]
    assert all(after - before <= 5 for before, after in pairwise(early))
    assert all(after - before == steps for before, after in pairwise([step for step in due if step >= early[-1]]))


@pytest.mark.parametrize(("width", "stats_every", "refresh_every"), [(255, 5, 50), (256, 10, 20)])  # and the bias
def test_both_are_rare_once_they_have_settled(width: int, stats_every: int, refresh_every: int) -> None:
    optimizer = make(width)
    assert (optimizer.stats_every, optimizer.refresh_every) == (stats_every, refresh_every)
    took, refreshed = train(optimizer, 700)
    assert took[:10] == [*range(10)]
    settled = optimizer.statistics_interval.settles_at
    assert settled <= 50
    assert [step for step in took if step >= settled] == [*range(settled, 700, stats_every)]
    assert refreshed[:9] == [*range(9)]
    settled = optimizer.refresh_interval.settles_at
    assert settled <= 500
    assert [step + 1 for step in refreshed if step + 1 >= settled] == [*range(settled, 701, refresh_every)]


def test_given_intervals_are_kept() -> None:
    took, refreshed = train(make(300, stats_every=4, refresh_every=3), 13)
    assert took == [0, 4, 8, 12]
    assert refreshed == [2, 5, 8, 11]


@pytest.mark.parametrize(("stats_every", "power"), [(None, 10), (10, 1)])
def test_a_batch_of_an_interval_of_ones_own_choice_counts_once(stats_every: int | None, power: int) -> None:
    """The average forgets its past by beta2 to the power of the steps that a batch stands for."""
    optimizer = make(300, stats_every=stats_every, betas=(0.9, 0.99))
    train(optimizer, 90)
    average = optimizer.network.posteriors[0].curvature.averages["A"]
    before = average.value.clone()
    assert optimizer.network.statistics_due
    seen: list[Tensor] = []
    optimizer.network.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    train(optimizer, 1)
    a = torch.cat([seen[0], torch.ones(6, 1)], dim=-1)
    decay = 0.99**power
    torch.testing.assert_close(average.value, decay * before + (1 - decay) * a.T @ a / 6)


def test_intervals_of_a_resumed_optimizer_go_on_where_they_stood() -> None:
    whole = make(300)
    expected = train(whole, 60)
    first, second = make(300), make(300)
    head = train(first, 33)
    second.network.load_state_dict(first.network.state_dict())
    second.load_state_dict(first.state_dict())
    tail = train(second, 27)
    for all_steps, before, after in zip(expected, head, tail, strict=True):
        assert all_steps == [*before, *(33 + step for step in after)]


def test_wide_networks_sample_targets_where_there_are_several_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = noisynat.curvature.fisher.output_gradients

    def watch(likelihood: Any, f: Tensor, y: Tensor, kind: str, stream: Any) -> Tensor:
        asked.append(kind)
        return original(likelihood, f, y, kind, stream)

    monkeypatch.setattr(noisynat.curvature.fisher, "output_gradients", watch)
    for width, classes in ((8, 3), (300, 3), (300, 2)):
        bnn = noisynat.VariationalNetwork(nn.Linear(width, classes), noisynat.CategoricalLikelihood(), num_data=9)
        noisynat.NoisyKFAC(bnn)
        bnn.loss(torch.randn(5, width), torch.randint(classes, (5,)))
    assert asked == ["ggn", "mc", "ggn"]
