"""Whether code runs as it is, or is being compiled, when it may neither look at numbers nor keep anything."""

from __future__ import annotations

import torch


def is_compiling() -> bool:
    """Whether ``torch.compile`` is tracing the caller."""
    ask = getattr(torch.compiler, "is_compiling", None)  # since torch 2.3
    return ask is not None and bool(ask())
