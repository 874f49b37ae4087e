"""Likelihoods that are written as a torch distribution: the short way to a likelihood of one's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from noisynat.likelihoods.base import Likelihood, ObservationModel, OrderedModel
from noisynat.random import RandomStream


class DistributionLikelihood(Likelihood):
    """p(y_k | f_k) of every output alone, as a ``torch.distributions`` object.

    A subclass needs :meth:`distribution` and nothing else. Its curvature is then the Fisher information by sampled
    targets (``fisher="mc"``); one that overrides :meth:`hessian_root` gets the exact one.

    Shapes: outputs and targets (*replicas, B, K).

    Example:
        >>> import torch, noisynat
        >>> class LaplaceLikelihood(noisynat.DistributionLikelihood):
        ...     def distribution(self, f):
        ...         return torch.distributions.Laplace(f, 0.1)
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(2, 1), LaplaceLikelihood(), num_data=100)
        >>> loss = bnn.loss(torch.randn(8, 2), torch.randn(8, 1))
    """

    has_hessian_root = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_hessian_root = cls.hessian_root is not DistributionLikelihood.hessian_root

    @abstractmethod
    def distribution(self, f: Tensor) -> Distribution:
        """Of targets given outputs f (*, K): batch shape f.shape, no event dimensions."""

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        if y.shape != f.shape:
            hint = "; use y.unsqueeze(-1)" if y.shape == f.shape[:-1] else ""
            raise ValueError(
                f"targets have shape {tuple(y.shape)}, expected that of the outputs {tuple(f.shape)}{hint}"
            )
        return y.to(f.dtype)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        log_prob: Tensor = self.distribution(f).log_prob(y)
        return log_prob.sum(-1)

    def hessian_root(self, f: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no hessian_root; use fisher='mc'")

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return drawn(self.distribution(f), stream, f.device)

    def observation_model(self) -> ObservationModel:
        return DistributionModel(self.distribution)


@dataclass(frozen=True)
class DistributionModel(OrderedModel):
    """The observation model of a :class:`DistributionLikelihood`.

    Args:
        distribution: from outputs f (*, K) to the distribution of the targets, batch shape f.shape.
    """

    distribution: Callable[[Tensor], Distribution]

    def mean(self, f: Tensor) -> Tensor:
        return self.distribution(f).mean

    def variance(self, f: Tensor) -> Tensor:
        return self.distribution(f).variance

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        log_prob: Tensor = self.distribution(f).log_prob(y)
        return log_prob.sum(-1)

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """0 below the support and 1 above, where torch's own raises and a search for quantiles may look."""
        law = self.distribution(f)
        inside: Tensor = law.support.check(y)  # type: ignore[union-attr]
        cdf: Tensor = law.cdf(torch.where(inside, y, law.mean))
        return torch.where(inside, cdf, (y > law.mean).to(cdf.dtype))

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return drawn(self.distribution(f), stream, f.device)

    def components(self, f: Tensor) -> Distribution:
        return self.distribution(f.movedim(0, -1))


def drawn(distribution: Distribution, stream: RandomStream, device: torch.device) -> Tensor:
    """A sample by the stream's numbers; torch's distributions take theirs from the global generator, which is lent."""
    seed = int(torch.randint(2**63 - 1, (), generator=stream.generator(device), device=device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        sample: Tensor = distribution.sample()
        return sample
