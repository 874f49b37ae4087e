"""What a posterior hands to a layer: a draw of its weight."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Draw(NamedTuple):
    """A weight that a forward pass uses in place of the mean and its noise."""

    weight: Tensor  # (*sample, *replicas, out, columns), or (*replicas, G, out, columns) for G groups of examples
    grouped: bool = False
