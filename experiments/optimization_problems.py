"""Test functions of global optimization, to be minimized on the unit cube, to which their usual domains are scaled.

Branin and Hartmann-6 are those of Dixon and Szego (1978), with the constants and minima in Picheny, Wagner and
Ginsbourger (2013); Ackley's (1987) is on [-5, 10]^d as in Eriksson et al. (2019), so that its minimum is not in the
centre.
"""

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
        minimizers: all the points that have it.
    """

    name: str
    dim: int
    function: Callable[[Tensor], Tensor]
    minimum: float
    minimizers: tuple[tuple[float, ...], ...]


def branin(x: Tensor) -> Tensor:
    """Three equal minima in two dimensions; from [-5, 10] x [0, 15]."""
    a, b = 15 * x[..., 0] - 5, 15 * x[..., 1]
    curved = b - 5.1 / (4 * math.pi**2) * a.square() + 5 / math.pi * a - 6
    return curved.square() + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10


_WIDTHS = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_CENTRES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)
_HEIGHTS = (1.0, 1.2, 3.0, 3.2)


def hartmann6(x: Tensor) -> Tensor:
    """Four wells, of different depths and widths, in six dimensions."""
    widths, centres, heights = (x.new_tensor(values) for values in (_WIDTHS, _CENTRES, _HEIGHTS))
    distances = (widths * (x.unsqueeze(-2) - centres).square()).sum(-1)
    return -(heights * torch.exp(-distances)).sum(-1)


def ackley(x: Tensor) -> Tensor:
    """A narrow funnel in a rippled plain; from [-5, 10]^d."""
    z = 15 * x - 5
    distance, ripples = z.square().mean(-1).sqrt(), (2 * math.pi * z).cos().mean(-1)
    return 20 * (1 - torch.exp(-0.2 * distance)) + math.e - ripples.exp()


_BRANIN = tuple(((a + 5) / 15, b / 15) for a, b in ((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)))
_HARTMANN = ((0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),)
_PROBLEMS = (
    Problem("branin", 2, branin, 0.397887, _BRANIN),
    Problem("ackley4", 4, ackley, 0.0, ((1 / 3,) * 4,)),
    Problem("hartmann6", 6, hartmann6, -3.32237, _HARTMANN),
)
PROBLEMS = {problem.name: problem for problem in _PROBLEMS}
