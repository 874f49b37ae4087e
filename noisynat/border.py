"""What is checked of the user's input, before anything changes: shape, dtype, finiteness, range.

Every message says what was given, what was expected and, where it is not obvious, what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def checked_num_data(num_data: int | None) -> int:
    """N as an int; raises TypeError if it is missing, ValueError if it is not a positive whole number."""
    if num_data is None:
        raise TypeError("num_data is required: the number N of training examples, which scales the KL and the noise")
    if isinstance(num_data, bool) or int(num_data) != num_data or num_data < 1:
        raise ValueError(f"num_data must be a positive whole number of training examples, got {num_data}")
    return int(num_data)


def checked_kl_weight(kl_weight: float) -> float:
    """lambda as a float; raises ValueError unless it is positive and finite."""
    if not 0 < kl_weight < float("inf"):
        raise ValueError(f"kl_weight must be positive and finite, got {kl_weight}")
    return float(kl_weight)


def checked_replicas(replicas: int | Sequence[int] | None) -> torch.Size:
    """Replica dimensions; raises ValueError unless all are at least 1."""
    size = () if replicas is None else (replicas,) if isinstance(replicas, int) else tuple(replicas)
    if any(count < 1 for count in size):
        raise ValueError(f"replicas must be None or at least 1, got {replicas}")
    return torch.Size(size)


def checked_inputs(x: Tensor, weights: Tensor) -> Tensor:
    """Inputs (B, ..., features) or (*replicas, B, ..., features), not empty, finite and of the dtype of ``weights``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"inputs must be (B, features), got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"the batch is empty: inputs have shape {tuple(x.shape)}")
    if x.dtype != weights.dtype and x.is_floating_point():
        raise TypeError(f"inputs are {x.dtype}, the network's weights {weights.dtype}; use x.to({weights.dtype})")
    if x.is_floating_point() and not all_finite(x):
        raise ValueError("inputs contain NaN or infinite values")
    return x


def checked_targets(y: Tensor | None) -> Tensor:
    """Targets that are a finite tensor; their shape and dtype are the likelihood's to check."""
    if not isinstance(y, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(y).__name__}")
    if y.is_floating_point() and not all_finite(y):
        raise ValueError("targets contain NaN or infinite values")
    return y


def with_replicas(x: Tensor, replicas: torch.Size) -> Tensor:
    """Inputs (B, features) given to every replica, or (*replicas, B, ...) as they are.

    Raises:
        ValueError: if the leading dimensions are others.
    """
    if not replicas:
        return x
    if x.dim() == 2:
        return x.expand(*replicas, *x.shape)
    if x.shape[: len(replicas)] != replicas:
        lead = ", ".join(str(count) for count in replicas)
        raise ValueError(
            f"inputs have shape {tuple(x.shape)}, expected (B, features) or ({lead}, B, features) "
            f"for {replicas.numel()} replicas"
        )
    return x


def targets_with_replicas(y: Tensor, expected: torch.Size, replicas: torch.Size) -> Tensor:
    """Targets of one replica given to every replica, others as they are; ``expected`` is the shape of all of them."""
    return y.expand(expected) if replicas and y.shape == expected[len(replicas) :] else y


def all_finite(values: Tensor) -> bool:
    """Whether none is infinite or not a number."""
    # A finite sum has finite terms, and one pass tells; only an overflowing sum needs the longer look.
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())
