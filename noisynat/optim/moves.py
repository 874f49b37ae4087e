"""How parameters move in a step: everything in here can be compiled, and looks at no number that changes.

Means move by natural gradient, point estimates by Adam (Kingma and Ba 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noisynat.optim.trust_region import step_scale
from noisynat.posteriors.natural import NaturalPosterior

_ADAM_EPS = 1e-8


class Pace(NamedTuple):
    """How the parameters of a group move in a step. What changes between steps may be a tensor ()."""

    lr: float | Tensor
    unbiased: float | Tensor
    """1 / (1 - beta1^k)."""
    unbiased_square: float | Tensor
    """1 / (1 - beta2^k)."""
    beta1: float | Tensor
    beta2: float | Tensor
    damping: float


class MeanMove(NamedTuple):
    """The means of a posterior's layers, and how they move."""

    posterior: NaturalPosterior
    momenta: Sequence[Tensor]
    """Of each layer, (*replicas, out, columns)."""
    precisions: Tensor
    """gamma of each layer, (layers, *replicas, 1, 1)."""
    paces: Sequence[Pace]
    decay: float | Tensor | None = None
    """What the batch's statistics leave of the curvature's averages, if they are blended in with the move."""


class PointMove(NamedTuple):
    """A point estimate, and how it moves."""

    parameter: nn.Parameter
    momentum: Tensor
    square: Tensor
    pace: Pace


def move_means(moves: Sequence[MeanMove], kl_clip: float | None) -> None:
    """Move means along their gradients by natural gradient, together not beyond the trust region."""
    taken, changes = [], []
    for posterior, momenta, precisions, paces, _ in moves:
        first = paces[0]
        for layer, momentum, precision in zip(posterior.layers, momenta, precisions, strict=True):
            momentum.lerp_(_gradient_of(layer.mean), 1 - first.beta1)
            momentum.addcmul_(layer.mean, (1 - first.beta1) * precision)
        step = posterior.precondition(momenta, first.damping)
        factors = [pace.lr * first.unbiased for pace in paces]
        taken.append((posterior, step, factors))
        changes.append((factors[0], posterior.inner(step)))
    scale = step_scale(changes, kl_clip) if changes and kl_clip is not None else torch.ones(1, 1)
    for posterior, step, factors in taken:
        posterior.move(step, [-factor * scale.to(posterior.layers[0].mean) for factor in factors])


def move_point_estimates(moves: Sequence[PointMove]) -> None:
    """Move point estimates along their gradients by Adam."""
    for parameter, momentum, square, (lr, unbiased, unbiased_square, beta1, beta2, _) in moves:
        gradient = _gradient_of(parameter)
        momentum.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient.square(), 1 - beta2)
        denominator = (square * unbiased_square).sqrt() + _ADAM_EPS
        parameter.sub_(momentum / denominator * (lr * unbiased))


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
