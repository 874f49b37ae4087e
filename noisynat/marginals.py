"""Quantiles, modes and entropies of one-dimensional distributions, elementwise, from their CDF or density alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

_MAX_STEPS = 120
_UNITS = 64
_GOLDEN_STEPS = 60
_GOLDEN = (math.sqrt(5) - 1) / 2
_NODES = 8  # of a panel's quadrature
_MIN_PANELS, _MAX_PANELS = 32, 4096


def quantile(cdf: Function, q: float, low: Tensor, high: Tensor) -> Tensor:
    """The q-quantile between ends that bracket it, up to some units in the last place.

    By inverse quadratic interpolation where the last three points allow it, by bisection elsewhere (Chandrupatla 1997).
    """
    near, far = high, low
    at_near, at_far = cdf(near) - q, cdf(far) - q
    tolerance = _UNITS * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    fraction = torch.full_like(low, 0.5)
    for _ in range(_MAX_STEPS):
        new = near + fraction * (far - near)
        at_new = cdf(new) - q
        same_side = (at_new < 0) == (at_near < 0)
        third, at_third = torch.where(same_side, near, far), torch.where(same_side, at_near, at_far)
        far, at_far = torch.where(same_side, far, near), torch.where(same_side, at_far, at_near)
        near, at_near = new, at_new
        width = (far - near).abs()
        if bool((width <= tolerance).all()):
            break
        x, y = (near - far) / (third - far), (at_near - at_far) / (at_third - at_far)
        smooth = (y.square() < x) & ((1 - y).square() < 1 - x)
        by_far = at_near / (at_far - at_near) * at_third / (at_far - at_third)
        by_third = at_near / (at_third - at_near) * at_far / (at_third - at_far) * (third - near) / (far - near)
        least = (tolerance / 2 / width).clamp(max=0.5)
        fraction = torch.where(smooth, by_far + by_third, 0.5).clamp(least, 1 - least)
    return torch.where(at_near.abs() < at_far.abs(), near, far)


def bracket(cdf: Function, q: float, low: Tensor, high: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Ends between which the q-quantile lies: moved apart, from ``width`` on, until the CDF says so."""
    low, high = low - width, high + width
    while bool((cdf(low) > q).any()) or bool((cdf(high) < q).any()):
        width = 2 * width
        low, high = low - width, high + width
    return low, high


def mode(log_density: Function, low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
    """Where the density is highest between ``low`` and ``high``.

    Args:
        log_density: of one number per element.
        low: lower ends.
        high: upper ends.
        scale: the narrowest that a peak may be, such as the smallest standard deviation of a mixture's components.
    """
    cells = _panels(low, high, scale)
    step = (high - low) / cells
    best, height = low, log_density(low)
    for i in range(1, cells + 1):
        at = low + i * step
        found = log_density(at)
        best, height = torch.where(found > height, at, best), torch.maximum(found, height)
    left, right = torch.maximum(best - step, low), torch.minimum(best + step, high)
    for _ in range(_GOLDEN_STEPS):  # golden-section search: one peak is left
        a, b = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        above = log_density(a) > log_density(b)
        left, right = torch.where(above, left, a), torch.where(above, b, right)
    return (left + right) / 2


def mode_of_integers(log_mass: Function, low: Tensor, high: Tensor) -> Tensor:
    """The most probable integer from ``low`` to ``high``; the lowest, where several are."""
    best, height = low, log_mass(low)
    for i in range(1, int((high - low).max()) + 1):
        at = torch.minimum(low + i, high)
        found = log_mass(at)
        best, height = torch.where(found > height, at, best), torch.maximum(found, height)
    return best


def entropy(log_density: Function, low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
    """Differential entropy -int p log p, nats, by Gauss-Legendre quadrature on panels no wider than ``scale``.

    Args:
        log_density: of one number per element.
        low: lower ends, below which there is next to no mass.
        high: upper ends.
        scale: the narrowest that a peak may be.
    """
    panels = _panels(low, high, scale)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    half, total = (high - low) / (2 * panels), torch.zeros_like(low)
    for panel in range(panels):
        middle = low + (2 * panel + 1) * half
        for node, weight in zip(nodes, weights, strict=True):
            log_p = log_density(middle + float(node) * half)
            total = total - float(weight) * log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min / 2)
    return half * total


def entropy_of_integers(log_mass: Function, low: Tensor, high: Tensor) -> Tensor:
    """-sum p log p, nats, over the integers from ``low`` to ``high``."""
    total = torch.zeros_like(low)
    for i in range(int((high - low).max()) + 1):
        log_p = torch.where(low + i <= high, log_mass(low + i), -torch.inf)
        total = total + torch.special.entr(log_p.exp())
    return total


def _panels(low: Tensor, high: Tensor, scale: Tensor) -> int:
    widest = float(((high - low) / scale).max())
    return min(max(math.ceil(widest), _MIN_PANELS), _MAX_PANELS)
