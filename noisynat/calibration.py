"""Whether predictions are as sure as they should be: coverage of central intervals, and reliability of probabilities.

What :mod:`noisynat.metrics` adds up and :mod:`noisynat.plotting` draws; needs PyTorch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisynat.likelihoods.base import ClassModel
from noisynat.predictive import Predictive

__all__ = ["LEVELS", "Reliability", "central_level", "confidence", "interval_coverage", "reliability"]

LEVELS = tuple(i / 20 for i in range(1, 20))
"""Levels of central intervals from 0.05 to 0.95."""


def central_level(prediction: Predictive, y: Tensor) -> Tensor:
    """Level of the smallest central interval with y in it, of every output alone, (*replicas, N, K).

    |2 F(y) - 1| with the predictive's distribution function F. Uniform on (0, 1) where predictions are calibrated
    (Gneiting et al. 2007); for whole numbers, whose F jumps, it lies lower.

    Args:
        prediction: of numbers.
        y: (N, K) or (*replicas, N, K).

    Raises:
        TypeError: if the targets are classes.
        ValueError: if y has another shape.
    """
    up_to = prediction.cdf(y)
    below = prediction.cdf(y - 1) if prediction._ordered("a central interval").integers else up_to
    return torch.maximum(1 - 2 * up_to, 2 * below - 1).clamp(min=0)


def interval_coverage(prediction: Predictive, y: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Share of targets, over rows and outputs, inside their central intervals of several levels.

    Args:
        prediction: of numbers.
        y: (N, K) or (*replicas, N, K).
        levels: L probabilities.

    Returns:
        (L, *replicas), float64; equal to the levels, but for chance, where predictions are calibrated.

    Raises:
        TypeError: if the targets are classes.
        ValueError: if y has another shape, or a level is not strictly between 0 and 1.
    """
    for level in levels:
        checked_level(level)
    needed = central_level(prediction, y).flatten(-2)
    return torch.stack([(needed <= level).double().mean(-1) for level in levels])


def confidence(prediction: Predictive, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities that the prediction stakes on events, and whether these happened.

    Of classes, the event is that the most probable one is right; of binary targets, that y is 1.

    Args:
        prediction: of classes.
        y: class numbers (N,) or (*replicas, N); binary targets (N, K) or (*replicas, N, K).

    Returns:
        Two tensors (*replicas, N) or (*replicas, N, K), the second of zeros and ones.

    Raises:
        TypeError: if the targets are numbers.
        ValueError: if y has another shape.
    """
    probs, y = prediction.probs.clamp(0, 1), prediction._checked(y)
    if prediction.mode.shape == probs.shape:
        return probs, y.to(probs.dtype).expand(probs.shape)
    return probs.amax(-1), (prediction.mode == y).to(probs.dtype)


@dataclass(frozen=True)
class Reliability:
    """Binned probabilities of events, as a reliability diagram shows them (Niculescu-Mizil and Caruana 2005).

    Args:
        confidence: mean probability of each bin, (*replicas, bins), NaN where it is empty.
        frequency: how often the events happened, likewise.
        count: of events in each bin, likewise.
    """

    confidence: Tensor
    frequency: Tensor
    count: Tensor


def reliability(prediction: Predictive, y: Tensor, bins: int = 10) -> Reliability:
    """Probabilities of events and how often they happened, in bins of equal width from 0 to 1.

    Args:
        prediction: of classes; for the events see :func:`confidence`.
        y: class numbers (N,) or (*replicas, N); binary targets (N, K) or (*replicas, N, K).
        bins: number of bins.

    Raises:
        TypeError: if the targets are numbers.
        ValueError: if y has another shape, or bins is less than 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probs, happened = confidence(prediction, y)
    rows = probs.dim() - len(prediction.samples.shape[1:-2])
    probs, happened = probs.flatten(-rows).double(), happened.flatten(-rows).double()
    index = (probs * bins).long().clamp(max=bins - 1)
    sums = [
        probs.new_zeros(*probs.shape[:-1], bins).scatter_add(-1, index, values)
        for values in (probs, happened, torch.ones_like(probs))
    ]
    return Reliability(sums[0] / sums[2], sums[1] / sums[2], sums[2])


def is_of_classes(prediction: Predictive) -> bool:
    """Whether targets are classes, not numbers."""
    return isinstance(prediction._observation, ClassModel)


def checked_level(level: float) -> float:
    """An interval's level; raises ValueError unless it is strictly between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"an interval's level lies strictly between 0 and 1, got {level}")
    return float(level)
