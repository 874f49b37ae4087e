"""Gaussian likelihood whose noise varies with the inputs: the network gives its variance too."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.likelihoods.observation import (
    HeteroscedasticNoise,
    NormalNoise,
    StudentNoise,
    log_noise_scale,
    noise_scale_slope,
)
from noisynat.random import RandomStream


class HeteroscedasticGaussianLikelihood(GaussianLikelihood):
    r"""y = m + c(s) noise, where the network's 2K outputs are K means m and K scales s before their link c.

    c is positive, 1 at s = 0, exp(s / 2) around it, as if s were the log variance, and bounded: between the quietest
    and the noisiest inputs the noise differs by ``max_ratio`` at most. The noise's own precision tau is as in
    :class:`~noisynat.GaussianLikelihood`, so that s only has to say where there is more noise and where less:
    p(y | f, tau) = N(m, c(s)^2 / tau). Curvature: the Fisher information of (m, s), diag(tau / c^2, 2 (d log c / ds)^2)
    (Nix and Weigend 1994 for the model).

    Without a bound, a region that fits a little worse gets more noise, so less weight, so fits worse: on targets
    without noise that runs away until the mean there is nonsense.
    Trained freely from the start, the noise often explains what the mean has not learned yet, and the mean then never
    learns it (Seitzer et al. 2022). ``fit(..., noise_warmup=(0.3, 0.6))`` holds the noise constant at first and sets it
    free little by little, by way of :attr:`strength`.

    Shapes: outputs (*replicas, B, 2K), targets (*replicas, B, K).

    Args:
        noise: as for :class:`~noisynat.GaussianLikelihood`, and so are all arguments but the next; a number is the
            standard deviation where s = 0.
        max_ratio: of the noise's standard deviations at any two inputs, above 1.
        a0: shape of the prior of the precision.
        b0: rate of that prior.
        num_outputs: 1 shares one precision among all targets; K gives each its own.
        initial_std: standard deviation that the noise starts from.
        step_size: rho, 0 < rho <= 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.HeteroscedasticGaussianLikelihood(), num_data=100)
        >>> bnn.predict(torch.zeros(3, 2), num_samples=10).aleatoric_variance.shape
        torch.Size([3, 1])
    """

    strength: Tensor  # () from 0, the same noise everywhere, to 1, as the network says; log c(s) is multiplied by it

    def __init__(
        self,
        noise: float | Literal["learned", "gamma"] = "gamma",
        *,
        max_ratio: float = 20.0,
        a0: float = 6.0,
        b0: float = 6.0,
        num_outputs: int = 1,
        initial_std: float = 1.0,
        step_size: float = 0.01,
    ) -> None:
        super().__init__(noise, a0=a0, b0=b0, num_outputs=num_outputs, initial_std=initial_std, step_size=step_size)
        if not max_ratio > 1:
            raise ValueError(f"max_ratio must be above 1, got {max_ratio}")
        self.max_ratio = max_ratio

    @property
    def _limit(self) -> float:
        """Of log c."""
        return math.log(self.max_ratio) / 2

    def bind(self, num_data: int, replicas: torch.Size, dtype: torch.dtype) -> None:
        super().bind(num_data, replicas, dtype)
        self.register_buffer("strength", torch.ones((), dtype=torch.float64))

    def target_shape(self, outputs: torch.Size) -> torch.Size:
        return torch.Size((*outputs[:-1], outputs[-1] // 2))

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        if f.shape[-1] % 2:
            raise ValueError(
                f"the network has {f.shape[-1]} outputs, but a heteroscedastic likelihood needs an even number: K means"
                " and K scales"
            )
        return super().check_targets(f[..., : f.shape[-1] // 2], y)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        mean, log_scale, weight = self._split(f)
        return super().log_prob(weight * mean, weight * y) - log_scale.sum(-1)

    def hessian_root(self, f: Tensor) -> Tensor:
        """Columns of the root of the Fisher information of (m, s), (2K, *replicas, B, 2K)."""
        mean, _, weight = self._split(f)
        root = super().hessian_root(mean) * weight
        zero = torch.zeros_like(root)
        outputs = mean.shape[-1]
        slope = self.strength.to(f.dtype) * noise_scale_slope(f[..., outputs:], self._limit)
        eye = torch.eye(outputs, dtype=f.dtype, device=f.device).reshape(outputs, *(1,) * (f.dim() - 1), outputs)
        return torch.cat([torch.cat([root, zero], dim=-1), torch.cat([zero, 2**0.5 * eye * slope], dim=-1)])

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        mean, _, weight = self._split(f)
        return mean + super().sample(torch.zeros_like(mean), stream) / weight

    def observation_model(self) -> ObservationModel:
        base = super().observation_model()
        assert isinstance(base, (NormalNoise, StudentNoise))
        return HeteroscedasticNoise(base, self._limit, float(self.strength))

    def observe(self, f: Tensor, y: Tensor) -> None:
        mean, _, weight = self._split(f)
        super().observe(weight * mean, weight * y)

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, effective log scales, and one over the scales, each (*replicas, B, K)."""
        mean, s = f.chunk(2, dim=-1)
        log_scale = self.strength.to(s.dtype) * log_noise_scale(s, self._limit)
        return mean, log_scale, (-log_scale).exp()
