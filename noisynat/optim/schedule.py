"""Schedules of the learning rate and of the KL's weight."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_schedule(optimizer: Optimizer, total_steps: int, final: float = 0.0) -> LambdaLR:
    """Learning rate from its initial value to ``final`` times it along half a cosine, over ``total_steps`` steps.

    Call ``step()`` after every optimizer step (:func:`~noisynat.fit` does). Loshchilov and Hutter (2017).

    Raises:
        ValueError: unless total_steps >= 1 and 0 <= final <= 1.
    """
    if total_steps < 1 or not 0 <= final <= 1:
        raise ValueError(f"need total_steps >= 1 and 0 <= final <= 1, got {total_steps} and {final}")

    def factor(step: int) -> float:
        progress = min(step / total_steps, 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmed_up_kl_weight(kl_weight: float, epoch: int, warmup: int) -> float:
    """lambda in ``epoch`` (from 0) of a linear warm-up over ``warmup`` epochs: full from epoch ``warmup`` on."""
    return kl_weight if epoch >= warmup else kl_weight * (epoch + 1) / (warmup + 1)
