"""The scale of a step in the trust region."""

from __future__ import annotations

import math

import pytest
import torch

from noisynat.optim.trust_region import step_scale


def test_a_long_step_is_cut_to_the_bound_over_all_blocks() -> None:
    first, second = torch.tensor(3.0), torch.tensor(0.7)
    change = 0.1**2 * 3.0 + 0.2**2 * 0.7
    assert float(step_scale([(0.1, first), (0.2, second)], 0.01)) == pytest.approx(math.sqrt(0.01 / change), rel=1e-5)


def test_a_short_step_is_left_alone() -> None:
    assert float(step_scale([(0.1, torch.tensor(1e-6))], 0.01)) == 1


def test_a_step_of_zero_is_left_alone() -> None:
    assert float(step_scale([(0.0, torch.tensor(0.0))], 0.01)) == 1


def test_every_replica_has_its_own_scale() -> None:
    scale = step_scale([(0.1, torch.tensor([4e-6, 400.0]))], 0.01)
    assert scale.shape == (2, 1, 1)
    assert scale.flatten().tolist() == pytest.approx([1, math.sqrt(0.01 / 4)])
