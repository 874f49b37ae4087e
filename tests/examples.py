"""Small data and optimizers for every likelihood and structure, for the tests that go through all of them."""

from __future__ import annotations

import torch
from torch import Tensor

import noisynat

NATURAL: dict[str, type[noisynat.NoisyNaturalGradient]] = {
    "diagonal": noisynat.NoisyAdam,
    "matrix_normal": noisynat.NoisyKFAC,
    "kronecker": noisynat.NoisyKFAC,
    "eigen_corrected": noisynat.NoisyKFAC,
    "dense": noisynat.NoisyNaturalGradient,
    "dense_per_layer": noisynat.NoisyNaturalGradient,
}


def data(likelihood: str, examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three inputs, and targets that a network with two outputs may have under a likelihood."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 3, generator=g)
    if likelihood == "categorical":
        return x, torch.randint(2, (examples,), generator=g)
    if likelihood in ("bernoulli", "poisson"):
        return x, torch.randint(2, (examples, 2), generator=g).float()
    return x, torch.randn(examples, 1 if likelihood == "heteroscedastic" else 2, generator=g)
