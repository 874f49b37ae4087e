"""Dense curvature: the full-covariance Gaussian, of one layer or of a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.curvature import sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, DenseInverse


class Dense(Curvature):
    """C = E[vec(g a^T) vec(g a^T)^T], D x D with D = out * in; memory and time grow as D^2 and D^3.

    A network's joint posterior is a ``Dense`` of shape (1, D) that is given whole-network gradients by
    :meth:`accumulate_gradients`. The damping may differ from weight to weight: (*batch, out, in).

    Args:
        solve_dtype: of the Cholesky factor, once it is found; by default ``dtype``. An average over many steps needs
            double precision to stay positive definite, noise and steps that are drawn with its factor do not.
    """

    def __init__(self, *args: Any, solve_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        self.solve_dtype = solve_dtype or kwargs.get("dtype", torch.float32)
        super().__init__(*args, **kwargs)

    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        size = self.shape[0] * self.shape[1]
        return {"C": precision * torch.eye(size, dtype=dtype, device=device).repeat(*self.batch_shape, 1, 1)}

    def accumulate(self, a: Tensor, g: Tensor) -> None:
        self.accumulate_gradients(sharing.example_gradients(a, g).flatten(-2))

    def accumulate_gradients(self, gradients: Tensor) -> None:
        """Take in flattened gradients of single examples, (K, *batch, B, D)."""
        rows = gradients.movedim(0, -3).flatten(-3, -2)
        self.averages["C"].accumulate(rows, rows, float(gradients.shape[-2]))

    def start_from_blocks(self, blocks: Sequence[Tensor]) -> None:
        """Make C block diagonal, of blocks (*batch, d, d) with d adding up to D, at full weight."""
        average, start = self.averages["C"], 0
        average.discard()
        average.value = torch.zeros_like(average.value)
        average.weight = torch.ones_like(average.weight)
        for block in blocks:
            stop = start + block.shape[-1]
            average.value[..., start:stop, start:stop] = block.to(average.value)
            start = stop
        average.informative = True

    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        damped = prepared["C"].clone()
        damped.diagonal(dim1=-2, dim2=-1).add_(damping.expand(*self.batch_shape, *self.shape).flatten(-2))
        factor, failed = linalg.cholesky(damped)
        return DenseInverse(factor.to(self.solve_dtype), self.shape), failed

    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        return snapshot["C"]
