"""Where reduced precision may act: in passes through the network, not in the curvature's algebra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run a block with autocast and TF32 off on ``device``, and restore both afterwards."""
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def passes_in(precision: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Run a block's products in this precision by autocast, or as they are for None."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


def is_reduced(device: torch.device) -> bool:
    """Whether autocast is on for ``device``."""
    try:
        return torch.is_autocast_enabled(device.type)
    except TypeError:  # before torch 2.4
        return torch.is_autocast_cpu_enabled() if device.type == "cpu" else torch.is_autocast_enabled()
