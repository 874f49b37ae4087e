"""Weight sharing: the only file that knows the number of locations T.

A linear layer may see one example at T locations (positions of a sequence). By the "expand" rule of
Grosse and Martens (2016), with activations a_t and back-propagated gradients g_t at location t,

    A = E[sum_t a_t a_t^T],    S = (1/T) E[sum_t g_t g_t^T],

so that S (x) A equals the exact Fisher for T = 1 and keeps the scale of one example for T > 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def activation_rows(a: Tensor) -> tuple[Tensor, float]:
    """Rows (*batch, B T, in) of activations (*batch, B, T, in), and the divisor B of their Gram matrix."""
    return a.flatten(-3, -2), float(a.shape[-3])


def gradient_rows(g: Tensor) -> tuple[Tensor, float]:
    """Rows (*batch, K B T, out) of gradients (K, *batch, B, T, out), and the divisor B T of their Gram matrix."""
    examples, locations = g.shape[-3], g.shape[-2]
    return g.movedim(0, -4).flatten(-4, -2), float(examples * locations)


def example_gradients(a: Tensor, g: Tensor) -> Tensor:
    """Weight gradients of single examples, summed over locations.

    Args:
        a: activations (*batch, B, T, in).
        g: gradients (K, *batch, B, T, out).

    Returns:
        (K, *batch, B, out, in).
    """
    return torch.einsum("k...to,...ti->k...oi", g, a)


def has_locations(a: Tensor) -> bool:
    """Whether activations (*batch, B, T, in) have more than one location."""
    return a.shape[-2] > 1
