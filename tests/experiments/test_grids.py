"""Grids of settings: which replica is which candidate, and what the inputs' relevance is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import grids, relevance, runs
from experiments.grids import BASE, GRIDS, Candidate, Grid, run_grid
from experiments.protocol import Splits, rescaled, side_by_side

CONFIG = runs.Configuration(epochs=8, batch_size=10, hidden=5, test_samples=20, elbo_samples=10)


@pytest.fixture
def splits() -> Splits:
    """Two splits of a plane that depends on the first of three inputs, 40 rows to train on and 12 to test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 52, 3, generator=generator)
    y = 2 * x[..., :1] + 0.1 * torch.randn(2, 52, 1, generator=generator)
    scale = torch.tensor([2.0, 3.0])
    return Splits("plane", x[:, :40], y[:, :40], x[:, 40:], y[:, 40:], torch.zeros(2), scale)


def test_parts_side_by_side_come_one_after_the_other(splits: Splits) -> None:
    other = rescaled(splits, torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 1.0]], dtype=torch.float64))
    both = side_by_side([splits, other])
    assert both.count == 4
    assert torch.equal(both.x_test[:2], splits.x_test)
    assert torch.equal(both.x_train[2, :, 0], 2 * splits.x_train[0, :, 0])
    assert torch.equal(both.x_test[3, :, 0], 3 * splits.x_test[1, :, 0])
    assert not both.x_train[2, :, 2].any()
    assert both.y_scale.tolist() == [2, 3, 2, 3]


def test_every_replica_has_its_candidate_s_prior_and_inputs(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[Splits, Any]] = []
    original = runs.build

    def build(method: Any, data: Splits, config: Any) -> Any:
        network = original(method, data, config)
        built.append((data, torch.cat([posterior.prior_variance for posterior in network.posteriors])))
        return network

    monkeypatch.setattr(runs, "build", build)
    monkeypatch.setattr(
        grids, "input_relevance", lambda data, *_: torch.tensor([[4.0, 1.0, 1.0]] * data.count, dtype=torch.float64)
    )
    candidates = (Candidate("a", variances=(0.5, 2.0)), Candidate("b", relevance=0.5))
    outcome = run_grid(Grid("two", "two", candidates), splits, CONFIG, tmp_path, "tests", progress=False)
    whole, inner = built
    for data, variances in (whole, inner):
        assert variances.tolist() == [[0.5, 0.5, 1, 1], [2, 2, 1, 1]]
        assert torch.equal(data.x_train[2:, :, 0], 2 * data.x_train[:2, :, 0])
        assert torch.equal(data.x_train[2:, :, 1], data.x_train[:2, :, 1])
    assert whole[0].num_train, inner[0].num_train == (40, 36)
    assert outcome.test["mean"].shape == (2, 2, 12)
    assert outcome.held_out.shape == (2, 2, 4)
    assert outcome.elbo.shape == (2, 2)


def test_candidates_of_several_methods_keep_their_order(splits: Splits, tmp_path: Path) -> None:
    cold = Candidate("cold", replace(BASE, name="cold", configuration={"kl_weight": 0.1}))
    there, back = (
        run_grid(Grid("two", "two", pair), splits, CONFIG, tmp_path / pair[0].label, "tests", progress=False)
        for pair in ((Candidate("usual"), cold), (cold, Candidate("usual")))
    )
    assert (there.elbo[0] != there.elbo[1]).all()
    np.testing.assert_array_equal(there.elbo, back.elbo[::-1])
    np.testing.assert_array_equal(there.held_out, back.held_out[::-1])
    np.testing.assert_array_equal(there.test["cdf"], back.test["cdf"][::-1])


def test_finished_programs_are_kept(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid("two", "two", (Candidate("a"), Candidate("b", relevance=1.0)))
    first = run_grid(grid, splits, CONFIG, tmp_path, "tests", progress=False)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", fail)
    monkeypatch.setattr(relevance, "train", fail)
    again = run_grid(grid, splits, CONFIG, tmp_path, "tests", progress=False)
    np.testing.assert_array_equal(again.elbo, first.elbo)
    with pytest.raises(AssertionError, match="trained again"):
        run_grid(grid, splits, replace(CONFIG, epochs=9), tmp_path, "tests", progress=False)


def test_relevance_finds_the_input_that_matters_and_ignores_the_test_part(splits: Splits, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=600)
    found = relevance.input_relevance(splits, config, tmp_path / "one")
    assert found.shape == (2, 3)
    torch.testing.assert_close(found.square().mean(1), torch.ones(2, dtype=torch.float64))
    assert (found[:, :1] > 2 * found[:, 1:]).all()
    other = replace(splits, x_test=splits.x_test + 5, y_test=splits.y_test - 7)
    assert torch.equal(relevance.input_relevance(other, config, tmp_path / "other"), found)


def test_scaled_inputs_are_another_prior(splits: Splits) -> None:
    """Functions drawn from N(0, 1) on scaled inputs and from N(0, scale^2) on the given ones are the same."""
    scale = torch.tensor([[3.0, 1.0, 0.1]] * 2, dtype=torch.float64)
    weights = torch.randn(2, 3, 5)
    scaled_weights = scale.float().unsqueeze(-1) * weights
    torch.testing.assert_close(rescaled(splits, scale).x_train @ weights, splits.x_train @ scaled_weights)


def test_the_grids_begin_with_the_base() -> None:
    for grid in GRIDS.values():
        first = grid.candidates[0]
        assert (first.method, first.variances, first.relevance) == (BASE, (1, 1), 0)
        labels = [candidate.label for candidate in grid.candidates]
        assert len(set(labels)) == len(labels)
