"""What a likelihood answers: the only place where the library meets p(y | f)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from noisynat.random import RandomStream


class ObservationModel(Protocol):
    """p(y | f) with its parameters frozen, as a prediction carries it.

    Shapes: y is (*sample, N, K), and so is f where an output is a target's mean. Parameters broadcast against the
    samples (S, *replicas, N, K); one with as many dimensions as they have is every sample's own.
    """

    def mean(self, f: Tensor) -> Tensor:
        """E[y | f], (*sample, N, K)."""

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p(y | f), summed over the K outputs: (*sample, N)."""

    def variance(self, f: Tensor) -> Tensor:
        """Var[y | f], (*sample, N, K)."""

    def cdf(self, f: Tensor, y: Tensor) -> Tensor:
        """P(Y_k <= y_k | f) of every output alone, (*sample, N, K)."""

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        """One y per f, (*sample, N, K)."""

    def components(self, f: Tensor) -> torch.distributions.Distribution:
        """The distributions of every output alone, samples moved last: batch shape (*replicas, N, K, S)."""

    def replica(self, at: tuple[slice | int, ...], samples: Tensor) -> ObservationModel:
        """The model of ``samples[at]``, one replica of samples (S, *replicas, N, K)."""

    def combined(self, samples: Tensor) -> ObservationModel:
        """The model of samples whose last replica dimension, M, is merged into the first: (S M, ..., N, K)."""

    def chosen(self, index: Tensor, samples: Tensor) -> ObservationModel:
        """The model of the samples with numbers ``index`` (count, *replicas)."""


class Likelihood(nn.Module, ABC):
    """A likelihood p(y | f), possibly with nuisance parameters that have a posterior of their own.

    Shapes: outputs f are (*replicas, B, K), targets y have the same shape unless :meth:`target_shape` says otherwise.
    """

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
