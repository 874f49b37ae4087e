"""Optimizers: one natural-gradient update rule for all posteriors, under the names of the field."""

from noisynat.optim.compiled import CompiledStep
from noisynat.optim.kfac import KFAC
from noisynat.optim.noisy import NoisyAdam, NoisyKFAC, NoisyNaturalGradient
from noisynat.optim.schedule import cosine_schedule

__all__ = ["KFAC", "CompiledStep", "NoisyAdam", "NoisyKFAC", "NoisyNaturalGradient", "cosine_schedule"]
