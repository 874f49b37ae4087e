"""Weights of mixtures of methods, and the mixtures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from experiments.stacking import best_weights, mixed, stacking_weights


def held_out(points: int = 60) -> np.ndarray:
    """Log densities of points from 0.7 N(0, 1) + 0.3 N(4, 1) under both components and one that is far away."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(points) < 0.7, rng.normal(0, 1, points), rng.normal(4, 1, points))
    return np.stack([stats.norm(m, 1).logpdf(y) for m in (0, 4, 20)], axis=-1)


@pytest.mark.parametrize("prior_count", [0.5, 1.0, 5.0])
def test_weights_maximize_the_penalized_likelihood(prior_count: float) -> None:
    """Against scipy's optimizer in logits."""
    log_prob = held_out()

    def negative(logits: np.ndarray) -> float:
        w = np.exp(logits - logits.max())
        w /= w.sum()
        return -float(np.log(np.exp(log_prob) @ w).sum() + prior_count * np.log(w).sum())

    found = optimize.minimize(negative, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    expected = np.exp(found - found.max()) / np.exp(found - found.max()).sum()
    np.testing.assert_allclose(stacking_weights(log_prob, prior_count), expected, atol=1e-4)


def test_many_points_find_the_mixture_and_none_leave_the_weights_equal() -> None:
    np.testing.assert_allclose(stacking_weights(held_out(20_000)), [0.7, 0.3, 0.0], atol=0.02)
    np.testing.assert_allclose(stacking_weights(np.zeros((0, 3))), 1 / 3)


def test_splits_are_weighted_by_themselves() -> None:
    both = np.stack([held_out(), held_out()[:, ::-1]])
    weights = stacking_weights(both)
    np.testing.assert_allclose(weights[0], stacking_weights(both[0]), atol=1e-6)
    np.testing.assert_allclose(weights[1], weights[0][::-1], atol=1e-6)


def test_densities_that_underflow_do_no_harm() -> None:
    weights = stacking_weights(np.array([[-1e4, -2e4], [-3e4, -1e4]]))
    np.testing.assert_allclose(weights, [0.5, 0.5])


def test_the_best_takes_all() -> None:
    log_prob = np.array([[[-1.0, -2.0], [-1.0, -0.5]], [[-1.0, -1.0], [0.0, 0.0]]])
    np.testing.assert_allclose(best_weights(log_prob), [[1.0, 0.0], [0.5, 0.5]])


def test_a_mixtures_parts_are_weighted_sums() -> None:
    rng = np.random.default_rng(0)
    parts = [{key: rng.random((2, 5)) for key in ("log_prob", "mean", "cdf")} for _ in range(3)]
    weights = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    both = mixed(parts, weights)
    for r in range(2):
        density = sum(weights[r, k] * np.exp(parts[k]["log_prob"][r]) for k in range(3))
        np.testing.assert_allclose(both["log_prob"][r], np.log(density))
        for key in ("mean", "cdf"):
            np.testing.assert_allclose(both[key][r], sum(weights[r, k] * parts[k][key][r] for k in range(3)))
