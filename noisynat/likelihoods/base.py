"""What a likelihood answers: the only place where the library meets p(y | f)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from noisynat.random import RandomStream

if TYPE_CHECKING:
    from typing_extensions import Self


class ObservationModel(ABC):
    """p(y | f) with its parameters frozen, as a prediction carries it.

    Shapes: f is (*sample, N, K), and so is y where an output is a target's mean. Parameters, where there are any,
    broadcast against the samples (S, *replicas, N, K); one with as many dimensions as they have is every sample's own,
    and the model overrides :meth:`replica`, :meth:`combined` and :meth:`chosen` to take along what belongs to them.
    """

    def checked_targets(self, y: Tensor, means: Tensor) -> Tensor:
        """Targets ready for :meth:`log_prob`.

        Args:
            y: (N, K) or (*replicas, N, K).
            means: of y given f, (S, *replicas, N, K).

        Raises:
            ValueError: if y has another shape.
        """
        return with_shape(y, means.shape[1:], means.shape[-2:]).to(means.dtype)

    @abstractmethod
    def mean(self, f: Tensor) -> Tensor:
        """E[y | f], (*sample, N, K)."""

    @abstractmethod
    def variance(self, f: Tensor) -> Tensor:
        """Var[y | f], (*sample, N, K)."""

    @abstractmethod
    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p(y | f), summed over the K outputs: (*sample, N)."""

    @abstractmethod
    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        """One y per f."""

    def replica(self, at: tuple[slice | int, ...], samples: Tensor) -> Self:
        """The model of ``samples[at]``, one replica of samples (S, *replicas, N, K)."""
        return self

    def combined(self, samples: Tensor) -> Self:
        """The model of samples whose last replica dimension, M, is merged into the first: (S M, ..., N, K)."""
        return self

    def chosen(self, index: Tensor, samples: Tensor) -> Self:
        """The model of the samples with numbers ``index`` (count, *replicas)."""
        return self


class OrderedModel(ObservationModel):
    """Targets that are numbers: they have a distribution function, so quantiles and intervals."""

    integers: ClassVar[bool] = False
    """Whether targets are whole numbers."""

    @abstractmethod
    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """P(Y_k <= y_k | f) of every output alone, (*sample, N, K)."""

    @abstractmethod
    def components(self, f: Tensor) -> torch.distributions.Distribution:
        """The distributions of every output alone, samples moved last: batch shape (*replicas, N, K, S)."""

    def entropy(self, f: Tensor) -> Tensor:
        """Of y given f, every output alone, nats, (S, *replicas, N, K)."""
        entropy: Tensor = self.components(f).entropy()
        return entropy.movedim(-1, 0)


class ClassModel(ObservationModel):
    """Targets that are classes: they have probabilities, which average over posterior samples."""

    @abstractmethod
    def probs(self, f: Tensor) -> Tensor:
        """Probabilities, (*sample, N, K)."""

    @abstractmethod
    def entropy(self, probs: Tensor) -> Tensor:
        """Of targets with probabilities (*, N, K), nats."""

    @abstractmethod
    def mode(self, probs: Tensor) -> Tensor:
        """The most probable target."""

    @abstractmethod
    def distribution(self, probs: Tensor) -> torch.distributions.Distribution:
        """Of targets with probabilities (*, N, K)."""

    def mean(self, f: Tensor) -> Tensor:
        """Of y as zeros and ones, (*sample, N, K): the probabilities."""
        return self.probs(f)

    def variance(self, f: Tensor) -> Tensor:
        """Of y as zeros and ones, (*sample, N, K)."""
        probs = self.probs(f)
        return probs * (1 - probs)


def with_shape(y: Tensor, of_all: torch.Size, of_one: torch.Size) -> Tensor:
    """``y``, if it has one of these shapes."""
    if y.shape not in (of_all, of_one):
        raise ValueError(f"y has shape {tuple(y.shape)}, expected {tuple(of_one)} or {tuple(of_all)}")
    return y


class Likelihood(nn.Module, ABC):
    """A likelihood p(y | f), possibly with nuisance parameters that have a posterior of their own.

    Shapes: outputs f are (*replicas, B, K), targets y have the same shape unless :meth:`target_shape` says otherwise.
    """

    has_hessian_root: ClassVar[bool] = True
    """Whether :meth:`hessian_root` is there; without it the curvature is fed by sampled targets."""

    def target_shape(self, outputs: torch.Size) -> torch.Size:
        """The shape of targets that go with outputs of shape (*replicas, B, K)."""
        return outputs

    def bind(self, num_data: int, replicas: torch.Size, dtype: torch.dtype) -> None:
        """Called once by the network: N, the replica dimensions and the dtype of the outputs."""

    @abstractmethod
    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets ready for :meth:`log_prob`; raises ValueError or TypeError that says what was expected."""

    @abstractmethod
    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p(y | f), expected over nuisance parameters, (*replicas, B)."""

    @abstractmethod
    def hessian_root(self, f: Tensor) -> Tensor:
        """Columns h_k with sum_k h_k h_k^T = -Hessian of log p in f: (columns, *replicas, B, K)."""

    @abstractmethod
    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        """One target per output, (*replicas, B, K)."""

    @abstractmethod
    def observation_model(self) -> ObservationModel:
        """The predictive p(y | f), nuisance parameters integrated out, frozen as it is now."""

    def observe(self, f: Tensor, y: Tensor) -> None:
        """Note what a training batch says of the nuisance parameters, for :meth:`natural_step`."""

    def forget(self) -> None:
        """Drop what was observed since the last step."""

    def natural_step(self) -> None:
        """Move the nuisance parameters' posterior by one natural-gradient step."""

    def kl(self, replicas: torch.Size) -> Tensor:
        """KL of the nuisance parameters' posterior from their prior, (*replicas,), nats."""
        return torch.zeros(replicas, dtype=torch.float64)
