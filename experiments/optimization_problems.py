"""Test functions of global optimization on the unit cube, to be minimized (Surjanovic and Bingham's collection)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A function to be minimized.

    Args:
        name: on the command line.
        dim: d.
        function: of points (*, d) in the unit cube, (*,).
        minimum: its lowest value there.
    """

    name: str
    dim: int
    function: Callable[[Tensor], Tensor]
    minimum: float


def branin(x: Tensor) -> Tensor:
    """Three equal minima in two dimensions, on [-5, 10] x [0, 15]."""
    a, b = 15 * x[..., 0] - 5, 15 * x[..., 1]
    curved = b - 5.1 / (4 * math.pi**2) * a.square() + 5 / math.pi * a - 6
    return curved.square() + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10


def hartmann6(x: Tensor) -> Tensor:
    """Six local minima in six dimensions, on the unit cube."""
    scale = torch.tensor(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ],
        dtype=x.dtype,
    )
    centre = torch.tensor(
        [
            [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
            [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
            [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
            [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
        ],
        dtype=x.dtype,
    )
    height = torch.tensor([1.0, 1.2, 3.0, 3.2], dtype=x.dtype)
    return -(height * torch.exp(-(scale * (x.unsqueeze(-2) - centre).square()).sum(-1))).sum(-1)


def steps(x: Tensor) -> Tensor:
    """A bowl that is cut into plateaus in four dimensions: no stationary kernel suits it."""
    bowl = (x - 0.7).square().sum(-1).sqrt()
    return (8 * bowl).round() / 8 + 0.05 * bowl


_PROBLEMS = (
    Problem("branin", 2, branin, 0.39788736),
    Problem("hartmann6", 6, hartmann6, -3.32237),
    Problem("steps", 4, steps, 0.0),
)
PROBLEMS = {problem.name: problem for problem in _PROBLEMS}
