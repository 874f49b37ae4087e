"""Weight sharing: the only file that knows the number of locations T.

A layer may see one example at T locations: positions of a sequence, patches of an image. With activations a_t and
back-propagated gradients g_t at location t, the example's gradient is sum_t g_t a_t^T, and there are two ways to a
Kronecker product (named as in Eschenhagen et al. 2023):

* ``"expand"`` (Grosse and Martens 2016): A = E[sum_t a_t a_t^T] and S = (1/T) E[sum_t g_t g_t^T], as if gradients at
  different locations were uncorrelated; exact in a deep linear network where every location has a loss of its own;
* ``"reduce"``: A = E[m m^T] with m = (1/T) sum_t a_t, and S = E[s s^T] with s = sum_t g_t, as if activations did not
  depend on the location; exact in a deep linear network whose outputs are averages over locations.

Both are the exact Fisher for T = 1 and keep the scale of one example for T > 1.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Sharing = Literal["expand", "reduce"]
SHARINGS: tuple[str, ...] = get_args(Sharing)


def checked(value: Sharing) -> Sharing:
    """``value``, or ValueError if there is no such rule."""
    if value not in SHARINGS:
        raise ValueError(f"sharing is one of {', '.join(map(repr, SHARINGS))}, got {value!r}")
    return value


def activation_rows(a: Tensor, rule: Sharing = "expand") -> tuple[Tensor, float]:
    """Rows of activations (*batch, B, T, in), and the divisor B of their Gram matrix.

    Rows are (*batch, B T, in), or (*batch, B, in) if the rule is ``"reduce"``.
    """
    rows = a.mean(-2) if rule == "reduce" else a.flatten(-3, -2)
    return rows, float(a.shape[-3])


def gradient_rows(g: Tensor, rule: Sharing = "expand") -> tuple[Tensor, float]:
    """Rows of gradients (K, *batch, B, T, out), and the divisor of their Gram matrix: B T, or B.

    Rows are (*batch, K B T, out), or (*batch, K B, out) if the rule is ``"reduce"``.
    """
    examples, locations = g.shape[-3], g.shape[-2]
    if rule == "reduce":
        return g.sum(-2).movedim(0, -3).flatten(-3, -2), float(examples)
    return g.movedim(0, -4).flatten(-4, -2), float(examples * locations)


def example_gradients(a: Tensor, g: Tensor, groups: int = 1) -> Tensor:
    """Weight gradients of single examples, summed over locations.

    Args:
        a: activations (*batch, B, T, in), or (*batch, groups, B, T, in).
        g: gradients (K, *batch, B, T, out), or (K, *batch, groups, B, T, out / groups).
        groups: of outputs with inputs of their own.

    Returns:
        (K, *batch, B, out, in).
    """
    gradients = torch.einsum("k...to,...ti->k...oi", g, a)
    return gradients if groups == 1 else gradients.movedim(-4, -3).flatten(-3, -2)


def has_locations(a: Tensor) -> bool:
    """Whether activations (*batch, B, T, in) have more than one location."""
    return a.shape[-2] > 1
