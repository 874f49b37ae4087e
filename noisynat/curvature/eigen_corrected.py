"""Eigenvalue-corrected Kronecker curvature (EK-FAC): diagonal in the eigenbasis of the Kronecker factors.

George et al. (2018) for the correction, Bae et al. (2018) for the posterior.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisynat.curvature import sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, kronecker_product
from noisynat.curvature.kronecker import accumulate_factors, eigenbasis, initial_factors, invert_in_eigenbasis


class EigenCorrected(Curvature):
    """C = Q diag(d) Q^T with Q = Q_S (x) Q_A and d = E[(Q_S^T g)^2 ((Q_A^T a)^2)^T] (out, in).

    Between refreshes d is averaged in the current basis. When the basis moves, d moves with it: the new d is
    the diagonal, in the new basis, of the matrix that the old d and basis stood for. With weight sharing d is exact,
    and only the basis depends on the rule.

    Args:
        rule: for weight sharing, see :mod:`noisynat.curvature.sharing`.
    """

    def __init__(self, *args: Any, rule: sharing.Sharing = "expand", **kwargs: Any) -> None:
        self.rule = sharing.checked(rule)
        super().__init__(*args, **kwargs)

    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        factors = initial_factors(self.shape, self.batch_shape, precision, dtype, device)
        d = torch.full((*self.batch_shape, *self.shape), precision, dtype=dtype, device=device)
        return {**factors, "d": d}

    def accumulate(self, a: Tensor, g: Tensor) -> None:
        accumulate_factors(self.averages, a, g, self.rule)
        q_a, q_s = self.prepared["A.vectors"], self.prepared["S.vectors"]
        a, g = _rotated(a, q_a), _rotated(g, q_s)
        if sharing.has_locations(a):
            squares = sharing.example_gradients(a, g).square().sum((0, -3))
            identity = torch.eye(self.shape[0], dtype=squares.dtype, device=squares.device)
            self.averages["d"].accumulate(identity, squares, float(a.shape[-3]))
        else:
            rows, count = sharing.activation_rows(a.square())
            self.averages["d"].accumulate(g.square().sum(0).squeeze(-2), rows, count)

    def refresh(self, damping: Tensor | float) -> None:
        old = self.prepared
        super().refresh(damping)
        # The running average continues in the new basis (where a refresh failed the basis is the old one).
        average = self.averages["d"]
        average.value = _transport(average.value, old, self.prepared)
        self.snapshot = {**self.snapshot, "d": self.prepared["d"]}

    def _prepare(self, snapshot: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        basis, failed = eigenbasis(snapshot)
        if self.prepared and snapshot is not self.snapshot:
            return {**basis, "d": _transport(snapshot["d"], self.prepared, basis)}, failed
        return {**basis, "d": snapshot["d"]}, failed  # d of a stored snapshot is in that snapshot's own basis

    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        return invert_in_eigenbasis(prepared, prepared["d"], damping)

    def latest(self) -> Tensor:
        prepared, _ = self._prepare(self._candidate())  # the candidate's d is in the basis of the last refresh
        return _in_basis({key: value.double() for key, value in prepared.items()})

    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        basis, _ = eigenbasis(snapshot)
        return _in_basis({**basis, "d": snapshot["d"]})


def _rotated(rows: Tensor, basis: Tensor) -> Tensor:
    """Rows (..., *batch, B, T, n) times Q (*batch, n, n): one product per batch element, not one per example."""
    return (rows.flatten(-3, -2) @ basis).unflatten(-2, rows.shape[-3:-1])


def _in_basis(prepared: dict[str, Tensor]) -> Tensor:
    """Q diag(d) Q^T with Q = Q_S kron Q_A, (*batch, D, D)."""
    q = kronecker_product(prepared["S.vectors"], prepared["A.vectors"])
    return q @ torch.diag_embed(prepared["d"].flatten(-2)) @ q.mT


def _transport(d: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> Tensor:
    """Diagonal in the new basis of the matrix that is diag(d) in the old one, (*batch, out, in)."""
    rotate_s = (new["S.vectors"].mT @ old["S.vectors"]).square()
    rotate_a = (new["A.vectors"].mT @ old["A.vectors"]).square()
    return rotate_s @ d @ rotate_a.mT
