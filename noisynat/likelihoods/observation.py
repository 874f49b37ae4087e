"""Observation models that predictions carry: p(y | f) with the noise's parameters frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from noisynat.likelihoods.base import OrderedModel
from noisynat.random import RandomStream

_QUADRATURE_NODES = 48
_NORMAL_FROM = 30.0  # degrees of freedom
_CERTAIN = 1e4  # a squared normal score beyond which the CDF is 0 or 1 in any precision


@dataclass(frozen=True)
class NormalNoise(OrderedModel):
    """y = f + std * e, e ~ N(0, 1). ``std`` broadcasts against f (*sample, N, K)."""

    std: Tensor

    def mean(self, f: Tensor) -> Tensor:
        return f

    def scaled(self, factor: Tensor) -> NormalNoise:
        """Noise whose standard deviation is ``factor`` times this one's."""
        return NormalNoise(self.std * factor)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.distributions.Normal(f, self.std).log_prob(y).sum(-1)

    def variance(self, f: Tensor) -> Tensor:
        return self.std.square().expand(f.shape)

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return torch.special.ndtr((y - f) / self.std)

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return f + self.std * stream.normal(f.shape, f)

    def components(self, f: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Normal(f.movedim(0, -1), self.std.expand(f.shape).movedim(0, -1))

    def replica(self, at: tuple[slice | int, ...], samples: Tensor) -> NormalNoise:
        return NormalNoise(_replica(self.std, at, samples))

    def combined(self, samples: Tensor) -> NormalNoise:
        return NormalNoise(_combined(self.std, samples))

    def chosen(self, index: Tensor, samples: Tensor) -> NormalNoise:
        return NormalNoise(_chosen(self.std, index, samples))


@dataclass(frozen=True)
class StudentNoise(OrderedModel):
    """y = f + scale * t with ``df`` degrees of freedom: normal noise, its precision's gamma integrated out.

    Args:
        df: degrees of freedom, 2a.
        scale: sqrt(b / a), broadcasts against f (*sample, N, K).
        joint: whether one precision serves all outputs, which makes them jointly (multivariate) t.
    """

    df: float
    scale: Tensor
    joint: bool

    def mean(self, f: Tensor) -> Tensor:
        return f

    def scaled(self, factor: Tensor) -> StudentNoise:
        """Noise whose scale is ``factor`` times this one's."""
        return replace(self, scale=self.scale * factor)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        if not self.joint:
            return torch.distributions.StudentT(self.df, f, self.scale).log_prob(y).sum(-1)
        outputs, df = f.shape[-1], self.df
        distance = ((y - f) / self.scale).square().sum(-1)
        constant = math.lgamma((df + outputs) / 2) - math.lgamma(df / 2) - outputs / 2 * math.log(df * math.pi)
        log_scale = self.scale.expand(f.shape).log().sum(-1)
        return constant - log_scale - (df + outputs) / 2 * torch.log1p(distance / df)

    def variance(self, f: Tensor) -> Tensor:
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return (self.scale.square() * factor).expand(f.shape)

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        return student_t_cdf((y - f) / self.scale, self.df)

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        shape = (*f.shape[:-1], 1) if self.joint else f.shape
        concentration = torch.full(shape, self.df / 2, dtype=f.dtype, device=f.device)
        gamma = torch._standard_gamma(concentration, generator=stream.generator(f.device))
        return f + self.scale * (gamma / (self.df / 2)).rsqrt() * stream.normal(f.shape, f)

    def components(self, f: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.StudentT(self.df, f.movedim(0, -1), self.scale.expand(f.shape).movedim(0, -1))

    def replica(self, at: tuple[slice | int, ...], samples: Tensor) -> StudentNoise:
        return replace(self, scale=_replica(self.scale, at, samples))

    def combined(self, samples: Tensor) -> StudentNoise:
        return replace(self, scale=_combined(self.scale, samples))

    def chosen(self, index: Tensor, samples: Tensor) -> StudentNoise:
        return replace(self, scale=_chosen(self.scale, index, samples))


@dataclass(frozen=True)
class HeteroscedasticNoise(OrderedModel):
    """Noise whose standard deviation the network gives: f = (m, s), each of K columns; see :func:`log_noise_scale`.

    Args:
        base: the noise of s = 0.
        limit: of the scale's logarithm.
        strength: that the logarithm of the scale is multiplied by.
    """

    base: NormalNoise | StudentNoise
    limit: float
    strength: float = 1.0

    def _split(self, f: Tensor) -> tuple[Tensor, NormalNoise | StudentNoise]:
        mean, s = f.chunk(2, dim=-1)
        return mean, self.base.scaled((self.strength * log_noise_scale(s, self.limit)).exp())

    def mean(self, f: Tensor) -> Tensor:
        return f.chunk(2, dim=-1)[0]

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        mean, noise = self._split(f)
        return noise.log_prob(mean, y)

    def variance(self, f: Tensor) -> Tensor:
        mean, noise = self._split(f)
        return noise.variance(mean)

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        mean, noise = self._split(f)
        return noise.cdf(mean, y)

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        mean, noise = self._split(f)
        return noise.sample(mean, stream)

    def components(self, f: Tensor) -> torch.distributions.Distribution:
        mean, noise = self._split(f)
        return noise.components(mean)

    def replica(self, at: tuple[slice | int, ...], samples: Tensor) -> HeteroscedasticNoise:
        return replace(self, base=self.base.replica(at, self.mean(samples)))

    def combined(self, samples: Tensor) -> HeteroscedasticNoise:
        return replace(self, base=self.base.combined(self.mean(samples)))

    def chosen(self, index: Tensor, samples: Tensor) -> HeteroscedasticNoise:
        return replace(self, base=self.base.chosen(index, self.mean(samples)))


def log_noise_scale(s: Tensor, limit: float) -> Tensor:
    """log c(s) = L tanh(asinh(s / 2) / L) for the limit L, elementwise: the noise's scale over the common one.

    Near 0 it is s / 2, as if s were the log variance. Far out it approaches its limits so slowly that the network can
    come back: asinh makes of an exponential a "squareplus" (Barron 2021), and of tanh's tails powers of s.
    """
    return limit * torch.tanh(torch.asinh(s / 2) / limit)


def noise_scale_slope(s: Tensor, limit: float) -> Tensor:
    """The derivative of :func:`log_noise_scale`, elementwise."""
    return (1 - (log_noise_scale(s, limit) / limit).square()) * (s.square() + 4).rsqrt()


def _of_every_sample(parameter: Tensor, samples: Tensor) -> Tensor:
    """A parameter that broadcasts against samples (S, *replicas, N, K), as (S, *replicas, 1 or N, 1 or K)."""
    return parameter.expand(*samples.shape[:-2], *parameter.shape[-2:])


def _replica(parameter: Tensor, at: tuple[slice | int, ...], samples: Tensor) -> Tensor:
    return _of_every_sample(parameter, samples)[at]


def _combined(parameter: Tensor, samples: Tensor) -> Tensor:
    return _of_every_sample(parameter, samples).movedim(-3, 1).flatten(0, 1)


def _chosen(parameter: Tensor, index: Tensor, samples: Tensor) -> Tensor:
    full = _of_every_sample(parameter, samples)
    return full.gather(0, index[..., None, None].expand(*index.shape, *full.shape[-2:]))


def student_t_cdf(t: Tensor, df: float) -> Tensor:
    """P(T <= t) of Student's t, elementwise; torch has no such function.

    Agrees with scipy.special.stdtr to 1e-10 in float64 from 1 to 100,000 degrees of freedom.
    """
    return torch.special.ndtr(_normal_score(t, df)) if df >= _NORMAL_FROM else _student_t_cdf_by_quadrature(t, df)


def _normal_score(t: Tensor, df: float) -> Tensor:
    """The z with Phi(z) = P(T <= t), by the expansion of Hill (1970, Algorithm 395); from 30 on to 2e-12 in Phi."""
    a = df - 0.5
    b = 48 * a**2
    square = (a * torch.log1p(t.square() / df)).clamp(max=_CERTAIN)
    third = (((0.4 * square + 3.3) * square + 24) * square + 85.5) / (0.8 * square.square() + 100 + b)
    return torch.sign(t) * square.sqrt() * (1 + (square + 3 - third) / b)


def _student_t_cdf_by_quadrature(t: Tensor, df: float) -> Tensor:
    """With t = sqrt(df) tan(theta) the density is proportional to cos(theta)^(df - 1), which Gauss-Legendre integrates.

    The interval is cut where the density has fallen by exp(-40).
    """
    theta = torch.atan(t.abs() / math.sqrt(df))
    if df > 1:
        theta = theta.clamp(max=math.acos(math.exp(-min(40 / (df - 1), 700.0))))
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    half, mass = theta / 2, torch.zeros_like(theta)
    for node, weight in zip(*np.polynomial.legendre.leggauss(_QUADRATURE_NODES), strict=True):
        mass += float(weight) * torch.exp((df - 1) * torch.log(torch.cos(half * (float(node) + 1))))
    return (0.5 + torch.sign(t) * half * math.exp(log_constant) * mass).clamp(0, 1)
