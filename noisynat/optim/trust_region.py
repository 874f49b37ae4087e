"""The trust region: no step may change the predictions by more than a given amount of KL.

A step lr * d changes them by about (lr^2 / 2) d^T C d nats per example; with d = (C + damping I)^-1 m that is at most
lr^2 <d, m> / 2, and m is the momentum that was preconditioned (Ba et al. 2017, section 5, "KL clipping").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def step_scale(changes: Sequence[tuple[float, Tensor]], kl_clip: float) -> Tensor:
    """min(1, sqrt(kl_clip / sum lr^2 <d, m>)) over all blocks, one number per replica.

    Args:
        changes: per block: learning rate, and <d, m> (*replicas,) of the preconditioned direction d and momentum m.
        kl_clip: the bound, positive.

    Returns:
        (*replicas, 1, 1).
    """
    first, *others = changes
    change = first[1] * first[0] ** 2
    for lr, inner in others:
        change.add_(inner, alpha=lr**2)
    tiny = torch.finfo(change.dtype).tiny
    return change.clamp_(min=tiny).div_(kl_clip).rsqrt_().clamp_(max=1)[..., None, None]
