"""The trust region: no step may change the predictions by more than a given amount of KL.

A step lr * d changes them by about (lr^2 / 2) d^T C d nats per example; with d = (C + damping I)^-1 m that is at most
lr^2 <d, m> / 2, and m is the momentum that was preconditioned (Ba et al. 2017, section 5, "KL clipping").
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def step_scale(changes: Iterable[tuple[float | Tensor, Tensor]], kl_clip: float) -> Tensor:
    """min(1, sqrt(kl_clip / sum lr^2 <d, m>)) over all blocks, one number per replica.

    Args:
        changes: per block: learning rate, and <d, m> (*replicas,) of the preconditioned direction d and momentum m.
        kl_clip: the bound, positive.

    Returns:
        (*replicas, 1, 1).
    """
    first, *others = (lr**2 * inner for lr, inner in changes)
    change = sum(others, first)
    tiny = torch.finfo(change.dtype).tiny
    return change.clamp_(min=tiny).div_(kl_clip).rsqrt_().clamp_(max=1)[..., None, None]
