"""Bayesian optimization with Gaussian processes of the package botorch (Balandat et al. 2020).

The process is botorch's default: squared-exponential kernel with a length scale per input and a noise variance, all
with log-normal priors (Hvarfner et al. 2024), fitted to the maximum a posteriori, for all repeats at once.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from experiments.optimization_agents import lowest
from experiments.peer_methods.registry import EXTRA, PeerNotInstalledError


def require_botorch() -> None:
    """Raise unless the package is there.

    Raises:
        PeerNotInstalledError: that names the package and the extra.
    """
    if find_spec("botorch") is None:
        raise PeerNotInstalledError(
            f"agents with Gaussian processes need the package botorch: pip install 'noisynat[{EXTRA}]'"
        )


def gp_thompson(x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
    """The lowest point of a function drawn from the posterior, by pathwise conditioning (Wilson et al. 2020), (R, d).

    Args:
        x: points, (R, n, d), float64.
        y: standardized values, (R, n).
        candidates: (R, C, d).
        seed: of the draws.
    """
    from botorch.sampling.pathwise import draw_matheron_paths

    torch.manual_seed(seed)
    function = draw_matheron_paths(_fitted(x, y), torch.Size())
    return lowest(function, candidates)


def gp_improvement(x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
    """The point of highest expected improvement on the lowest mean so far (Jones et al. 1998), (R, d)."""
    model = _fitted(x, y)
    with torch.no_grad():
        best = model.posterior(x).mean.squeeze(-1).amin(1, keepdim=True)

    def score(points: Tensor) -> Tensor:
        posterior = model.posterior(points)
        return -log_improvement(posterior.mean.squeeze(-1), posterior.variance.squeeze(-1).sqrt(), best)

    return lowest(score, candidates)


def log_improvement(mean: Tensor, std: Tensor, best: Tensor) -> Tensor:
    """log E[max(best - f, 0)] of normal f, whose slope guides a search also where there is next to nothing to gain."""
    z = ((best - mean) / std).clamp(max=30.0)  # beyond, the scaled error function overflows
    ratio = math.sqrt(math.pi / 2) * torch.special.erfcx(-z / math.sqrt(2))  # of distribution function and density
    return std.log() - z.square() / 2 - math.log(2 * math.pi) / 2 + torch.log1p(z * ratio)


def _fitted(x: Tensor, y: Tensor) -> Any:
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = SingleTaskGP(x, y.unsqueeze(-1), outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model
