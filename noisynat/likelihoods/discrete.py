"""Observation models of classes and of binary targets: p(y | f) has no nuisance parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.likelihoods.base import ClassModel, with_shape
from noisynat.random import RandomStream


class Classes(ClassModel):
    """One of K classes with probabilities softmax(f); y holds class numbers, (*sample, N)."""

    def checked_targets(self, y: Tensor, means: Tensor) -> Tensor:
        return with_shape(y, means.shape[1:-1], means.shape[-2:-1]).long()

    def probs(self, f: Tensor) -> Tensor:
        return f.softmax(-1)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return class_log_prob(f, y)

    def entropy(self, probs: Tensor) -> Tensor:
        """(*, N)."""
        return torch.special.entr(probs).sum(-1)

    def mode(self, probs: Tensor) -> Tensor:
        """Class numbers, (*, N)."""
        return probs.argmax(-1)

    def distribution(self, probs: Tensor) -> torch.distributions.Categorical:
        return torch.distributions.Categorical(probs)

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return sampled_classes(f, stream)


class Binary(ClassModel):
    """K independent targets, 0 or 1, with probabilities sigmoid(f) of 1; y is (*sample, N, K)."""

    def probs(self, f: Tensor) -> Tensor:
        return f.sigmoid()

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return binary_log_prob(f, y).sum(-1)

    def entropy(self, probs: Tensor) -> Tensor:
        """Of every target alone, (*, N, K)."""
        return torch.special.entr(probs) + torch.special.entr(1 - probs)

    def mode(self, probs: Tensor) -> Tensor:
        """0 or 1, (*, N, K)."""
        return (probs > 0.5).to(probs.dtype)

    def distribution(self, probs: Tensor) -> torch.distributions.Bernoulli:
        return torch.distributions.Bernoulli(probs)

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return sampled_binary(f, stream)


def class_log_prob(f: Tensor, y: Tensor) -> Tensor:
    """log softmax(f)_y for outputs f (*batch, N, K) and class numbers y, (*batch, N) or fewer leading dimensions."""
    chosen = y.expand(f.shape[:-1]).unsqueeze(-1)
    return f.gather(-1, chosen).squeeze(-1) - f.logsumexp(-1)


def sampled_classes(f: Tensor, stream: RandomStream) -> Tensor:
    """One class number per row of outputs f (*batch, N, K), by the inverse of the distribution function."""
    levels = f.softmax(-1).cumsum(-1)
    uniform = stream.uniform((*f.shape[:-1], 1), f) * levels[..., -1:]
    return torch.searchsorted(levels, uniform, right=True).squeeze(-1).clamp(max=f.shape[-1] - 1)


def binary_log_prob(f: Tensor, y: Tensor) -> Tensor:
    """log of sigmoid(f) where y is 1, of 1 - sigmoid(f) where it is 0, elementwise."""
    return y * f - torch.nn.functional.softplus(f)


def sampled_binary(f: Tensor, stream: RandomStream) -> Tensor:
    """0 or 1 with probability sigmoid(f), elementwise, of f's dtype."""
    return (stream.uniform(f.shape, f) < f.sigmoid()).to(f.dtype)
