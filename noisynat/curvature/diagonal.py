"""Diagonal curvature: the fully factorized Gaussian of noisy Adam (Zhang et al. 2018, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.curvature import sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, KroneckerBasisInverse, positive_or_one


class Diagonal(Curvature):
    """C = diag(c) with c = E[(g g) (a a)^T], elementwise; exact diagonal of the Fisher for linear layers."""

    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {"c": torch.full((*self.batch_shape, *self.shape), precision, dtype=dtype, device=device)}

    def accumulate(self, a: Tensor, g: Tensor) -> None:
        if sharing.has_locations(a):
            squares = sharing.example_gradients(a, g).square().sum((0, -3))  # (*batch, out, in)
            identity = torch.eye(self.shape[0], dtype=squares.dtype, device=squares.device)
            self.averages["c"].accumulate(identity, squares, float(a.shape[-3]))
        else:
            rows, count = sharing.activation_rows(a.square())
            self.averages["c"].accumulate(g.square().sum(0).squeeze(-2), rows, count)

    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        variance, failed = positive_or_one((prepared["c"] + damping).reciprocal_())
        return KroneckerBasisInverse(variance), failed

    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        return torch.diag_embed(snapshot["c"].flatten(-2))
