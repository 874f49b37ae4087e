"""Mixtures of methods with weights fitted on a held-out part of the training data.

Stacking of predictive distributions (Yao et al. 2018): the weights maximize the mixture's log-likelihood on data that
its components have not seen. A Dirichlet prior keeps them from following a few dozen points too closely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

_STEPS = 1000


def stacking_weights(log_prob: np.ndarray, prior_count: float = 10.0) -> np.ndarray:
    """Weights w that maximize sum_i log sum_k w_k p_k(y_i) + prior_count sum_k log w_k, by expectation maximization.

    Args:
        log_prob: log densities of held-out points, (*batch, n, K).
        prior_count: observations that each component is credited with beforehand; larger draws the weights together.

    Returns:
        (*batch, K), on the simplex.
    """
    count = log_prob.shape[-1]
    weights = np.full((*log_prob.shape[:-2], count), 1 / count)
    for _ in range(_STEPS):
        joint = np.log(weights)[..., None, :] + log_prob
        responsibility = np.exp(joint - logsumexp(joint, axis=-1, keepdims=True))
        total = responsibility.sum(-2) + prior_count
        updated = total / total.sum(-1, keepdims=True)
        if np.abs(updated - weights).max() < 1e-9:
            return updated
        weights = updated
    return weights


def best_weights(log_prob: np.ndarray) -> np.ndarray:
    """All weight on the component with the highest held-out log-likelihood; shapes as for :func:`stacking_weights`."""
    total = log_prob.sum(-2)
    weights: np.ndarray = (total == total.max(-1, keepdims=True)).astype(float)
    return weights / weights.sum(-1, keepdims=True)


def mixed(pointwise: Sequence[dict[str, np.ndarray]], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Log density, mean and CDF of the mixture at every test point.

    Args:
        pointwise: per method, arrays (R, n) as :class:`experiments.runs.Evaluation` has them.
        weights: (R, K), on the simplex.

    Returns:
        Arrays (R, n).
    """
    share = weights.T[..., None]
    stacked = {key: np.stack([arrays[key] for arrays in pointwise]) for key in ("log_prob", "mean", "cdf")}
    with np.errstate(divide="ignore"):  # log 0 of a component without weight
        log_share = np.log(share)
    return {
        "log_prob": logsumexp(log_share + stacked["log_prob"], axis=0),
        "mean": (share * stacked["mean"]).sum(0),
        "cdf": (share * stacked["cdf"]).sum(0),
    }
