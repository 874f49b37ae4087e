"""Student-t likelihood: regression that outliers do not upset."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.likelihoods.observation import StudentNoise
from noisynat.random import RandomStream


class StudentTLikelihood(GaussianLikelihood):
    r"""y = f + scale * t, every output with noise of its own: t has ``df`` degrees of freedom.

    The Hessian of log p is not definite where residuals are large, so the curvature is the Fisher information,
    (df + 1) / ((df + 3) scale^2) (Lange et al. 1989, section 3). A learned scale takes their EM step: the mean of w r^2
    with residuals r and weights w = (df + 1) / (df + r^2 / scale^2), averaged with step size rho.

    Args:
        noise: the fixed SCALE in the targets' units, which is less than the standard deviation, or ``"learned"``.
        df: degrees of freedom, positive; small ones for many outliers.
        num_outputs: 1 shares one scale among all outputs; K gives each its own.
        initial_std: scale that ``"learned"`` starts from (1 suits standardized targets).
        step_size: rho, 0 < rho <= 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        noise: float | Literal["learned"] = "learned",
        *,
        df: float = 4.0,
        num_outputs: int = 1,
        initial_std: float = 1.0,
        step_size: float = 0.01,
    ) -> None:
        if isinstance(noise, str) and noise != "learned":
            raise ValueError(f"noise is a scale or 'learned', got {noise!r}")
        if not 0 < df < float("inf"):
            raise ValueError(f"df must be positive and finite, got {df}")
        super().__init__(noise, num_outputs=num_outputs, initial_std=initial_std, step_size=step_size)
        self.df = float(df)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.distributions.StudentT(self.df, f, self._scale).log_prob(y).sum(-1)

    def hessian_root(self, f: Tensor) -> Tensor:
        """Columns of the root of the Fisher information, (K, *replicas, B, K)."""
        return super().hessian_root(f) * ((self.df + 1) / (self.df + 3)) ** 0.5

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return self.observation_model().sample(f, stream)

    def observation_model(self) -> ObservationModel:
        return StudentNoise(self.df, self._scale, joint=False)

    def observe(self, f: Tensor, y: Tensor) -> None:
        residual = y.detach() - f.detach()
        weight = (self.df + 1) / (self.df + (residual / self._scale).square())
        super().observe(torch.zeros_like(residual), weight.sqrt() * residual)

    @property
    def _scale(self) -> Tensor:
        return self._per_example(self.noise_std)
