"""The scale of a step in the trust region."""

from __future__ import annotations

import math

import pytest
import torch

from noisynat.optim.trust_region import step_scale


def test_a_long_step_is_cut_to_the_bound_over_all_blocks() -> None:
    d, m = torch.rand(2, 3, 4)
    e, n = torch.rand(2, 5, 1)
    change = 0.1**2 * (d * m).sum() + 0.2**2 * (e * n).sum()
    assert float(step_scale([(0.1, d, m), (0.2, e, n)], 0.01)) == pytest.approx(math.sqrt(0.01 / change), rel=1e-5)


def test_a_short_step_is_left_alone() -> None:
    d = torch.full((1, 1), 1e-3)
    assert float(step_scale([(0.1, d, d)], 0.01)) == 1


def test_a_step_of_zero_is_left_alone() -> None:
    assert float(step_scale([(0.0, torch.zeros(2, 2), torch.zeros(2, 2))], 0.01)) == 1


def test_every_replica_has_its_own_scale() -> None:
    d = torch.stack([torch.full((2, 2), 1e-3), torch.full((2, 2), 10.0)])
    scale = step_scale([(0.1, d, d)], 0.01)
    assert scale.shape == (2, 1, 1)
    assert scale.flatten().tolist() == pytest.approx([1, math.sqrt(0.01 / 4)])
