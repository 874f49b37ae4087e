"""A preconditioned direction, in the form that costs least to measure and to add to the weights.

Matrices of a weight's size are few and stay where they are: on many machines, a new one takes longer to get from the
system than to fill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_SMALL = 2**16  # entries of all matrices


class Step(Protocol):
    """d = (C + gamma I)^-1 v for a direction v (*batch, out, in); to be used before v changes, and before the next."""

    @property
    def inner(self) -> Tensor:
        """<d, v> (*batch,)."""

    def add_to(self, target: Tensor, factor: Tensor) -> None:
        """``target += factor * d`` for a target (*batch, out, in) and a factor (*batch, 1, 1)."""


@dataclass(frozen=True)
class WholeStep:
    """d as it is."""

    v: Tensor
    d: Tensor

    @property
    def inner(self) -> Tensor:
        return inner_product(self.d, self.v)

    def add_to(self, target: Tensor, factor: Tensor) -> None:
        target.addcmul_(self.d, factor)


@dataclass(frozen=True)
class SumStep:
    """d = coefficient * v + tall @ wide.

    Args:
        v: (*batch, out, in).
        coefficient: (*batch, out or 1, in or 1).
        tall: (*batch, out, r).
        wide: (*batch, r, in).
        inner: as for :class:`Step`.
    """

    v: Tensor
    coefficient: Tensor
    tall: Tensor
    wide: Tensor
    inner: Tensor

    def add_to(self, target: Tensor, factor: Tensor) -> None:
        target.addcmul_(self.v, factor * self.coefficient)
        if target.dim() == 2:
            target.addmm_(factor * self.tall, self.wide)
        else:
            flat = target.view(-1, *target.shape[-2:])
            flat.baddbmm_((factor * self.tall).flatten(0, -3), self.wide.flatten(0, -3))


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> (*batch,) of (*batch, m, n)."""
    if left.dim() == 2:
        return torch.dot(left.reshape(-1), right.reshape(-1))
    if left.numel() <= _SMALL:  # there, batched products of rows and columns cost more than a second matrix
        return (left * right).sum((-2, -1))
    return (left.flatten(-2).unsqueeze(-2) @ right.flatten(-2).unsqueeze(-1)).squeeze(-1).squeeze(-1)
