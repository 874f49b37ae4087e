"""Kronecker factors by their leading eigenvalues: what wide layers' posteriors are made of.

A factor F of n rows is replaced by U diag(l) U^T + c (I - U U^T) with its r leading eigenpairs and the mean c of the
other n - r eigenvalues. Damping, noise and log-determinants of the product of two such factors remain exact, for any
damping, and take products with n x r matrices only, where full eigenvectors take n x n ones (randomized K-FAC truncates
in the same way, Puiu 2022). A factor may also be its diagonal alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.curvature import sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, kronecker_product, positive_or_one
from noisynat.curvature.kronecker import DampingForm, balance, checked_damping_form
from noisynat.curvature.truncated_inverse import TruncatedInverse

_ITERATIONS = 1  # of subspace iteration, which goes on where the last refresh stopped
_SUBSPACE_PAYS = 4  # from so many times the rank on, a factor's size is too large for all eigenvectors


class TruncatedKronecker(Curvature):
    """C = S (x) A, of which S and A keep their leading eigenvalues and the mean of the others, or their diagonal.

    Args:
        ranks: how many eigenvalues S (out, out) and A (in, in) keep, at most as many as they have; None stands for the
            diagonal, which is then all that is ever computed of a factor.
        damping_form: as for :class:`~noisynat.curvature.Kronecker`.
        rule: likewise.
    """

    def __init__(
        self,
        *args: Any,
        ranks: tuple[int | None, int | None],
        damping_form: DampingForm = "exact",
        rule: sharing.Sharing = "expand",
        **kwargs: Any,
    ) -> None:
        self.damping_form, self.rule = checked_damping_form(damping_form), sharing.checked(rule)
        self.ranks = dict(zip("SA", ranks, strict=True))
        if any(rank is not None and rank < 1 for rank in ranks):
            raise ValueError(f"a rank is a positive number or None, got {ranks}")
        super().__init__(*args, **kwargs)

    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        initial = {}
        for key, size in zip("SA", self.shape, strict=True):
            eye = precision**0.5 * torch.eye(size, dtype=dtype, device=device)
            if self.ranks[key] is None:
                key, eye = key.lower(), eye.diagonal().unsqueeze(-1)
            initial[key] = eye.repeat(*self.batch_shape, 1, 1)
        return initial

    def accumulate(self, a: Tensor, g: Tensor) -> None:
        of_inputs, of_outputs = sharing.activation_rows(a, self.rule), sharing.gradient_rows(g, self.rule)
        for key, (rows, count) in (("A", of_inputs), ("S", of_outputs)):
            if self.ranks[key] is None:
                ones = rows.new_ones(*rows.shape[:-1], 1)
                self.averages[key.lower()].accumulate(rows.square(), ones, count)
            else:
                self.averages[key].accumulate(rows, rows, count)

    def _prepare(self, snapshot: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Eigenvectors, and eigenvalues with the mean of the others at the end."""
        prepared, failures = {}, self._nothing_failed()
        for key, size in zip("SA", self.shape, strict=True):
            rank = self.ranks[key]
            if rank is None:
                values = snapshot[key.lower()].squeeze(-1).clone()
                failures = failures | ~torch.isfinite(values.sum(-1))
            else:
                values, vectors, failed = self._leading(key, snapshot[key], min(rank, size))
                prepared[f"{key}.vectors"] = vectors
                failures = failures | failed
            prepared[f"{key}.values"] = values
        return prepared, failures

    def _leading(self, key: str, factor: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        size = factor.shape[-1]
        if size < _SUBSPACE_PAYS * rank:
            values, vectors, failed = linalg.eigh(factor)
            values, vectors = values[..., size - rank :], vectors[..., size - rank :].contiguous()
        else:
            start = self.prepared.get(f"{key}.vectors")
            if start is None:
                start = _arbitrary_columns(factor, rank)
            values, vectors, failed = linalg.leading_eigenpairs(factor, start, _ITERATIONS)
        left_over = factor.diagonal(dim1=-2, dim2=-1).sum(-1) - values.sum(-1)
        rest = left_over.clamp(min=0) / max(size - rank, 1)
        return torch.cat([values, rest.unsqueeze(-1)], dim=-1), vectors, failed

    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        s, a = prepared["S.values"].unsqueeze(-1), prepared["A.values"].unsqueeze(-2)
        if self.damping_form == "factored":
            root, pi = damping.sqrt(), balance(self._mean("A", prepared), self._mean("S", prepared))
            table = 1 / ((s + root / pi) * (a + pi * root))
        else:
            table = 1 / (s * a + damping)
        table, failed = positive_or_one(table)
        left, right = prepared.get("S.vectors"), prepared.get("A.vectors")
        return TruncatedInverse(table, self.shape, left, right), failed

    def _mean(self, key: str, prepared: dict[str, Tensor]) -> Tensor:
        """Of all eigenvalues of a factor, (*batch, 1, 1)."""
        values, size = prepared[f"{key}.values"], self.shape["SA".index(key)]
        total = values.sum(-1)
        if self.ranks[key] is not None:
            total = total + (size - values.shape[-1]) * values[..., -1]  # one of the others is in the sum
        return (total / size)[..., None, None]

    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        prepared = {key: value.to(next(iter(snapshot.values())).dtype) for key, value in self.prepared.items()}
        return kronecker_product(self._factor("S", prepared), self._factor("A", prepared))

    def _factor(self, key: str, prepared: dict[str, Tensor], extra: Tensor | float = 0.0) -> Tensor:
        """The factor (*batch, n, n) as it is kept, plus ``extra`` times the identity."""
        values, size = prepared[f"{key}.values"] + extra, self.shape["SA".index(key)]
        if self.ranks[key] is None:
            return torch.diag_embed(values)
        vectors, rest = prepared[f"{key}.vectors"], values[..., -1:]
        eye = torch.eye(size, dtype=values.dtype, device=values.device)
        return rest.unsqueeze(-1) * eye + (vectors * (values[..., :-1] - rest).unsqueeze(-2)) @ vectors.mT

    def latest(self) -> Tensor:
        factors = []
        for key in "SA":
            if self.ranks[key] is None:
                factors.append(torch.diag_embed(self._candidate()[key.lower()].squeeze(-1).double()))
            else:
                factors.append(linalg.positive_part(self._candidate()[key].double()))
        return kronecker_product(*factors)

    def to_dense(self) -> Tensor:
        if self.damping_form == "exact":
            return super().to_dense()
        root = self._damping.sqrt().squeeze(-1)
        pi = balance(self._mean("A", self.prepared), self._mean("S", self.prepared)).squeeze(-1)
        s, a = self._factor("S", self.prepared, root / pi), self._factor("A", self.prepared, pi * root)
        return kronecker_product(s, a)

    # --- state: the eigenvectors are stored, as the next refresh goes on from them, and what they are of is not -----

    def _candidate(self) -> dict[str, Tensor]:
        """The averages themselves, where they need no debiasing: nobody asks for them once they are prepared."""
        return {key: a.value if a.informative else a.debiased() for key, a in self.averages.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        state = {key: value for key, value in super().state_tensors().items() if not key.startswith("refreshed.")}
        return state | {f"leading.{key}": value for key, value in self.prepared.items()}

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        self.prepared = {key: state[f"leading.{key}"].clone() for key in self.prepared}
        super().load_tensors(state | {f"refreshed.{key}": state[f"average.{key}"] for key in self.averages})
        self.snapshot = self._candidate()

    def _factorize_snapshot(self) -> None:
        if not self.prepared:
            super()._factorize_snapshot()
            return
        inverse, _ = self._invert(self.prepared, self._damping)
        self._install(inverse)


def _arbitrary_columns(factor: Tensor, rank: int) -> Tensor:
    """Columns (*batch, n, rank) to start from, always the same."""
    size = factor.shape[-1]
    columns = torch.randn(size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return columns.to(factor).expand(*factor.shape[:-1], rank)
