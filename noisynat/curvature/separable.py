"""1 / (x_o y_i + gamma), for all o and i, as a short sum of products u(o) v(i) of positive numbers.

With s = y + gamma / x it is (1 / x) (1 / s), and 1 / s is the integral over all t of exp(t - s e^t), where exp(-s e^t)
is a product. The trapezoidal rule gives it to many digits with few nodes, the same for all s (Braess and Hackbusch
2005).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisynat.curvature.statistics import nothing

_STEP = 0.6  # of the trapezoidal rule; its relative error is 2 |Gamma(1 + 2 pi i / step)|, 1.2e-6
_ERROR = 1e-6  # of each end that is cut off, relative


def one(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a matrix (*batch, out, in) of ones: u (*batch, out, 1) and v (*batch, in, 1)."""
    *batch, outputs, inputs = shape
    return like.new_ones(*batch, outputs, 1), like.new_ones(*batch, inputs, 1)


def reciprocal(x: Tensor, y: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Factors u (*batch, out, K) and v (*batch, in, K) with u v^T equal to 1 / (x y^T + gamma).

    To a relative error of 1e-5 in every entry; K grows with the logarithm of max(x y) / gamma.

    Args:
        x: at least 0, (*batch, out).
        y: at least 0, (*batch, in).
        gamma: positive, (*batch, 1, 1).
    """
    gamma = gamma.squeeze(-1)
    top_x, top_y = (values.amax(-1, keepdim=True) for values in (x, y))
    least = _ERROR * gamma / top_y.clamp(min=torch.finfo(y.dtype).tiny)  # smaller x are as good as this
    x = torch.maximum(x, least.clamp(max=1.0))
    shortest = gamma / torch.maximum(top_x, least.clamp(max=1.0))
    longest = top_y + gamma / x.amin(-1, keepdim=True)
    first = math.log(_ERROR) - longest.log()
    last = math.log(-math.log(_ERROR)) - shortest.log()
    count = int(((last - first) / _STEP).max().ceil().item()) + 1
    steps = torch.arange(count, dtype=x.dtype, device=x.device)
    nodes = (first + _STEP * steps).exp().unsqueeze(-2)  # (*batch, 1, K)
    u = (-nodes * (gamma / x).unsqueeze(-1)).exp() / x.unsqueeze(-1)
    v = _STEP * nodes * (-nodes * y.unsqueeze(-1)).exp()
    least_normal = nothing(x.dtype)
    return torch.where(u < least_normal, 0, u), torch.where(v < least_normal, 0, v)
