"""Schedules of the learning rate, of the curvature's average and of the KL's weight."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from noisynat.optim.natural_gradient import NaturalGradient


class CosineSchedule(LRScheduler):
    """Half a cosine for the learning rate and, if asked, for the natural-gradient step of the covariance.

    Args and errors: see :func:`cosine_schedule`.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, final: float, curvature_final: float) -> None:
        self.total_steps, self.final, self.curvature_final = total_steps, final, curvature_final
        if curvature_final < 1:
            for group in optimizer.param_groups:
                group.setdefault("initial_beta2", group["betas"][1])
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the present step, one per group; sets the groups' beta2 too."""
        progress = min(self.last_epoch / self.total_steps, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        if self.curvature_final < 1:
            for group in self.optimizer.param_groups:
                step = (1 - group["initial_beta2"]) * max(cosine, self.curvature_final)
                group["betas"] = (group["betas"][0], 1 - step)
        factor = self.final + (1 - self.final) * cosine
        return [rate * factor for rate in self.base_lrs]


def cosine_schedule(
    optimizer: Optimizer, total_steps: int, final: float = 0.0, *, curvature_final: float = 1.0
) -> CosineSchedule:
    """Learning rate from its initial value to ``final`` times it along half a cosine, over ``total_steps`` steps.

    The curvature's average has a step size too, 1 - beta2: the natural-gradient step of the covariance. Letting it fall
    averages the curvature over more batches towards the end, which a dense one needs: an average over fewer rows than
    it has dimensions is too wide in the directions that those rows missed.

    Call ``step()`` after every optimizer step (:func:`~noisynat.fit` does). Loshchilov and Hutter (2017).

    Args:
        optimizer: whose learning rates follow the schedule.
        total_steps: length of the cosine; afterwards the final values stay.
        final: last learning rate as a fraction of the first.
        curvature_final: 1 - beta2 falls with the cosine to this fraction of its first value; 1 keeps beta2.

    Raises:
        ValueError: unless total_steps >= 1, 0 <= final <= 1 and 0 < curvature_final <= 1.
        TypeError: if ``curvature_final`` is below 1 and the optimizer has no curvature.
    """
    if total_steps < 1 or not 0 <= final <= 1:
        raise ValueError(f"need total_steps >= 1 and 0 <= final <= 1, got {total_steps} and {final}")
    if not 0 < curvature_final <= 1:
        raise ValueError(f"need 0 < curvature_final <= 1, got {curvature_final}")
    if curvature_final < 1 and not isinstance(optimizer, NaturalGradient):
        raise TypeError(f"curvature_final is for this library's optimizers, not {type(optimizer).__name__}")
    return CosineSchedule(optimizer, total_steps, final, curvature_final)


def warmed_up_kl_weight(kl_weight: float, epoch: int, warmup: int, start: float | None = None) -> float:
    """lambda in ``epoch`` (from 0) of a warm-up over ``warmup`` epochs: full from epoch ``warmup`` on.

    Linear from near zero, or, with ``start``, geometric from ``start`` times the full weight.
    """
    if epoch >= warmup:
        return kl_weight
    if start is None:
        return kl_weight * (epoch + 1) / (warmup + 1)
    return float(kl_weight * start ** (1 - epoch / warmup))
