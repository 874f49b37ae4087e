"""Gaussian likelihood whose noise varies with the inputs: the network gives its variance too."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.likelihoods.observation import HeteroscedasticNoise, NormalNoise, StudentNoise
from noisynat.random import RandomStream

_LIMIT = 12.0  # of the log variance: beyond exp(+-12) a sampled weight, not the data, is speaking


class HeteroscedasticGaussianLikelihood(GaussianLikelihood):
    r"""y = m + exp(s / 2) noise, where the network's 2K outputs are K means m and K log variances s.

    The noise's own precision tau is as in :class:`~noisynat.GaussianLikelihood`, so that s only has to say where there
    is more noise and where less: p(y | f, tau) = N(m, exp(s) / tau). Curvature: the Fisher information of (m, s),
    diag(tau exp(-s), 1/2) (Nix and Weigend 1994 for the model).

    Trained freely from the start, the noise often explains what the mean has not learned yet, and the mean then never
    learns it (Seitzer et al. 2022). ``fit(..., noise_warmup=(0.3, 0.6))`` holds the noise constant at first and sets it
    free little by little, by way of :attr:`strength`.

    Shapes: outputs (*replicas, B, 2K), targets (*replicas, B, K).

    Args:
        args: as for :class:`~noisynat.GaussianLikelihood`.
        kwargs: likewise.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.HeteroscedasticGaussianLikelihood(), num_data=100)
        >>> bnn.predict(torch.zeros(3, 2), num_samples=10).aleatoric_variance.shape
        torch.Size([3, 1])
    """

    strength: Tensor  # () from 0, the same noise everywhere, to 1, as the network says; s is multiplied by it

    def bind(self, num_data: int, replicas: torch.Size, dtype: torch.dtype) -> None:
        super().bind(num_data, replicas, dtype)
        self.register_buffer("strength", torch.ones((), dtype=torch.float64))

    def target_shape(self, outputs: torch.Size) -> torch.Size:
        return torch.Size((*outputs[:-1], outputs[-1] // 2))

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        if f.shape[-1] % 2:
            raise ValueError(
                f"the network has {f.shape[-1]} outputs, but a heteroscedastic likelihood needs an even number: K means"
                " and K log variances"
            )
        return super().check_targets(f[..., : f.shape[-1] // 2], y)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        mean, log_variance, weight = self._split(f)
        return super().log_prob(weight * mean, weight * y) - log_variance.sum(-1) / 2

    def hessian_root(self, f: Tensor) -> Tensor:
        """Columns of the root of the Fisher information of (m, s), (2K, *replicas, B, 2K)."""
        mean, _, weight = self._split(f)
        root = super().hessian_root(mean) * weight
        zero = torch.zeros_like(root)
        outputs = mean.shape[-1]
        inside = f[..., outputs:].abs() <= _LIMIT
        eye = torch.eye(outputs, dtype=f.dtype, device=f.device).reshape(outputs, *(1,) * (f.dim() - 1), outputs)
        half = eye * (inside.to(f.dtype) * float(self.strength) * 0.5**0.5)
        return torch.cat([torch.cat([root, zero], dim=-1), torch.cat([zero, half], dim=-1)])

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        mean, _, weight = self._split(f)
        return mean + super().sample(torch.zeros_like(mean), stream) / weight

    def observation_model(self) -> ObservationModel:
        base = super().observation_model()
        assert isinstance(base, (NormalNoise, StudentNoise))
        return HeteroscedasticNoise(base, _LIMIT, float(self.strength))

    def observe(self, f: Tensor, y: Tensor) -> None:
        mean, _, weight = self._split(f)
        super().observe(weight * mean, weight * y)

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, effective log variances s, and exp(-s / 2), each (*replicas, B, K)."""
        mean, log_variance = f.chunk(2, dim=-1)
        log_variance = float(self.strength) * log_variance.clamp(-_LIMIT, _LIMIT)
        return mean, log_variance, (-log_variance / 2).exp()
