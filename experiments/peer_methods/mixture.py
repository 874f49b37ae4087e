"""A prediction as a mixture of normal distributions, and its figures in raw units."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, special

_LEVEL = 0.95


@dataclass(frozen=True)
class Mixture:
    """An equal-weight mixture of S normal distributions for every test target, in standardized units.

    Args:
        mean: of the components, (S, n).
        std: of the components, whatever broadcasts to (S, n).
    """

    mean: Tensor
    std: Tensor

    def log_prob(self, y: Tensor) -> Tensor:
        """log p(y) of targets (n,), in nats, (n,)."""
        error = (y - self.mean) / self.std
        components = -0.5 * error.square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return components.logsumexp(0) - math.log(len(self.mean))

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y) of targets (n,), (n,)."""
        return special.ndtr((y - self.mean) / self.std).mean(0)

    def figures(self, y: Tensor, scale: Tensor) -> dict[str, float]:
        """RMSE, mean test log-likelihood and coverage of the central 95% intervals, in raw units.

        Args:
            y: standardized targets (n,).
            scale: raw units per standardized unit, a scalar.
        """
        y, scale = y.double(), scale.double()
        inside = (self.cdf(y) - 0.5).abs() <= _LEVEL / 2
        return {
            "rmse": float((self.mean.mean(0) - y).square().mean().sqrt() * scale),
            "log_likelihood": float(self.log_prob(y).mean() - scale.log()),
            "coverage": float(inside.double().mean()),
        }
