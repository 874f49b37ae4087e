"""Poisson likelihood: counts."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat import marginals
from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.distribution import DistributionLikelihood, DistributionModel


class PoissonLikelihood(DistributionLikelihood):
    """Counts with rate exp(f), every output by itself.

    Its Gauss-Newton matrix in f, which is its Fisher information too, is diag(exp(f)).

    Shapes: outputs and targets (*replicas, B, K); targets are whole numbers from 0 on.
    """

    def distribution(self, f: Tensor) -> torch.distributions.Poisson:
        return torch.distributions.Poisson(f.exp(), validate_args=False)

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        y = super().check_targets(f, y)
        if not bool(((y >= 0) & (y == y.floor())).all()):
            raise ValueError("targets of a Poisson likelihood are counts, whole numbers from 0 on")
        return y

    def hessian_root(self, f: Tensor) -> Tensor:
        outputs = f.shape[-1]
        eye = torch.eye(outputs, dtype=f.dtype, device=f.device)
        return eye.reshape(outputs, *(1,) * (f.dim() - 1), outputs) * (f / 2).exp()

    def observation_model(self) -> ObservationModel:
        return Counts(self.distribution)


class Counts(DistributionModel):
    """Whole numbers from 0 on, with rate exp(f)."""

    integers = True

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """Q(floor(y) + 1, exp(f)), the regularized upper incomplete gamma function."""
        count = y.floor()
        below = torch.special.gammaincc((count + 1).clamp(min=1), f.exp())
        return torch.where(count < 0, torch.zeros_like(below), below)

    def entropy(self, f: Tensor) -> Tensor:
        """By adding up over the counts within 12 standard deviations and 25 of the rate."""
        rate = f.exp()
        reach = 12 * rate.sqrt() + 25
        low, high = (rate - reach).clamp(min=0).floor(), (rate + reach).ceil()
        return marginals.entropy_of_integers(self.distribution(f).log_prob, low, high)
