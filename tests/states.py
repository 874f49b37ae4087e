"""Comparison of nested states, for the tests of resumption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two nested states are not equal to the last bit."""
    if isinstance(first, Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [where]
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return [d for key in first for d in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        return [d for i, pair in enumerate(zip(first, second, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if first == second else [where]
