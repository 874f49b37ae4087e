"""What a prediction knows: a mixture over posterior samples of p(y | f)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisynat.likelihoods.base import ObservationModel
from noisynat.random import RandomStream

_QUANTILE_STEPS = 80


class Predictive:
    """The posterior predictive p(y | x) = mean over samples s of p(y | f_s(x)), an equal-weight mixture.

    Args:
        samples: of the network's outputs f, (S, *replicas, N, K).
        observation: p(y | f).
        stream: of the random numbers of :meth:`sample`.
    """

    def __init__(self, samples: Tensor, observation: ObservationModel, stream: RandomStream) -> None:
        self.samples = samples
        self._observation = observation
        self._stream = stream

    @property
    def mean(self) -> Tensor:
        """E[y], (*replicas, N, K)."""
        return self.samples.mean(0)

    @property
    def epistemic_variance(self) -> Tensor:
        """Var[E[y | f]], the spread of the sampled functions, (*replicas, N, K)."""
        return self.samples.var(0, correction=0)

    @property
    def aleatoric_variance(self) -> Tensor:
        """E[Var[y | f]], the noise that no data would remove, (*replicas, N, K)."""
        return self._observation.variance(self.samples).mean(0)

    @property
    def variance(self) -> Tensor:
        """Var[y] of the mixture, the sum of the two, (*replicas, N, K)."""
        return self.epistemic_variance + self.aleatoric_variance

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of y, (*replicas, N, K)."""
        return self.variance.sqrt()

    @property
    def distribution(self) -> torch.distributions.MixtureSameFamily:
        """The mixture of every output as a ``torch.distributions`` object, batch shape (*replicas, N, K)."""
        f = self.samples.movedim(0, -1)
        weights = torch.distributions.Categorical(logits=torch.zeros_like(f))
        return torch.distributions.MixtureSameFamily(weights, self._observation.components(f))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of the mixture at y, jointly over the K outputs: (*replicas, N), nats.

        Args:
            y: (N, K) or (*replicas, N, K).

        Raises:
            ValueError: if y has another shape.
        """
        y = self._checked(y)
        return torch.logsumexp(self._observation.log_prob(self.samples, y), 0) - math.log(len(self.samples))

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y_k <= y_k) of every output alone, (*replicas, N, K)."""
        return self._cdf(self._checked(y))

    def quantile(self, q: float) -> Tensor:
        """The q-quantile of every output's mixture, by bisection, (*replicas, N, K).

        Raises:
            ValueError: unless 0 < q < 1.
        """
        if not 0 < q < 1:
            raise ValueError(f"a quantile level lies strictly between 0 and 1, got {q}")
        low, high = self._bracket(q)
        for _ in range(_QUANTILE_STEPS):
            middle = (low + high) / 2
            if bool(((middle == low) | (middle == high)).all()):
                break
            below = self._cdf(middle) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central prediction interval of y with probability ``level``: lower and upper ends, (*replicas, N, K)."""
        if not 0 < level < 1:
            raise ValueError(f"an interval's level lies strictly between 0 and 1, got {level}")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of y, (num_samples, *replicas, N, K); each uses the next of the S sampled functions in turn."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        stream = self._stream if generator is None else RandomStream.wrap(generator)
        chosen = torch.arange(num_samples, device=self.samples.device) % len(self.samples)
        return self._observation.sample(self.samples[chosen], stream)

    def replica(self, index: int) -> Predictive:
        """The prediction of one of R replicas, with samples (S, N, K).

        Raises:
            ValueError: if the network has no replicas.
        """
        if self.samples.dim() != 4:
            raise ValueError("this prediction has no replicas")
        return Predictive(self.samples[:, index], self._observation.replica(index), self._stream)

    def _cdf(self, y: Tensor) -> Tensor:
        return self._observation.cdf(self.samples, y).mean(0)

    def _bracket(self, q: float) -> tuple[Tensor, Tensor]:
        """Ends between which the quantile lies: widened from the samples until the mixture's CDF says so."""
        noise = self._observation.variance(self.samples[:1])[0]
        width = torch.where(torch.isfinite(noise), noise, self.samples.new_ones(())).sqrt()
        low, high = self.samples.amin(0) - width, self.samples.amax(0) + width
        while bool((self._cdf(low) > q).any()) or bool((self._cdf(high) < q).any()):
            width = 2 * width
            low, high = low - width, high + width
        return low, high

    def _checked(self, y: Tensor) -> Tensor:
        expected = self.samples.shape[1:]
        if y.shape not in (expected, expected[-2:]):
            raise ValueError(f"y has shape {tuple(y.shape)}, expected {tuple(expected[-2:])} or {tuple(expected)}")
        return y.to(self.samples.dtype)

    def __repr__(self) -> str:
        return f"Predictive(samples={tuple(self.samples.shape)})"
