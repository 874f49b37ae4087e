"""Bayesian optimization with exact Gaussian processes of the package gpytorch (Gardner et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments.peer_methods.gaussian_process import fit


def gp_thompson(x: Tensor, y: Tensor, candidates: Tensor, protocol: Any, seed: int) -> Tensor:
    """The candidate at which a function drawn from the posterior is lowest, (R, d).

    Args:
        x: points, (R, n, d).
        y: values, (R, n).
        candidates: (R, C, d).
        protocol: not used.
        seed: of the draws.
    """
    torch.manual_seed(seed)
    return _chosen(x, y, candidates, lambda posterior, best: -posterior.sample())


def gp_expected_improvement(x: Tensor, y: Tensor, candidates: Tensor, protocol: Any, seed: int) -> Tensor:
    """The candidate of highest expected improvement, in closed form (Jones et al. 1998), (R, d)."""
    return _chosen(x, y, candidates, _improvement)


def _improvement(posterior: Any, best: Tensor) -> Tensor:
    std = posterior.stddev
    z = (best - posterior.mean) / std
    normal = torch.distributions.Normal(torch.zeros_like(z), torch.ones_like(z))
    return std * (z * normal.cdf(z) + normal.log_prob(z).exp())


def _chosen(x: Tensor, y: Tensor, candidates: Tensor, score: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """The best candidate of every repeat by the posterior of a Matern 5/2 process."""
    import gpytorch

    found = []
    for points, values, places in zip(x, y, candidates, strict=True):
        values = (values - values.mean()) / values.std()
        model, _ = fit(points, values, "matern52", 0.5, 60)
        model.eval()
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            found.append(places[score(model(places), values.min()).argmax()])
    return torch.stack(found)
