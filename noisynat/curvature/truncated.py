"""Kronecker factors by their leading eigenvalues: what wide layers' posteriors are made of.

A factor F of n rows is replaced by U diag(l) U^T + c (I - U U^T) with its r leading eigenpairs and the mean c of the
other n - r eigenvalues. Damping, noise and log-determinants of the product of two such factors remain exact, for any
damping, and take products with n x r matrices only, where full eigenvectors take n x n ones (randomized K-FAC truncates
in the same way, Puiu 2022). A factor may also be its diagonal alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.curvature import sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, kronecker_product, positive_or_one, positive_root
from noisynat.curvature.kronecker import DampingForm, balance, checked_damping_form
from noisynat.curvature.step import Step, SumStep, WholeStep

if TYPE_CHECKING:
    from noisynat.random import RandomStream

_ITERATIONS = 1  # of subspace iteration, which goes on where the last refresh stopped
_SUBSPACE_PAYS = 4  # from so many times the rank on, a factor's size is too large for all eigenvectors


class TruncatedKronecker(Curvature):
    """C = S (x) A, of which S and A keep their leading eigenvalues and the mean of the others, or their diagonal.

    Args:
        ranks: how many eigenvalues S (out, out) and A (in, in) keep, at most as many as they have; None stands for the
            diagonal, which is then all that is ever computed of a factor.
        damping_form: as for :class:`~noisynat.curvature.Kronecker`.
    """

    def __init__(
        self, *args: Any, ranks: tuple[int | None, int | None], damping_form: DampingForm = "exact", **kwargs: Any
    ) -> None:
        self.damping_form = checked_damping_form(damping_form)
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
        for key, (rows, count) in (("A", sharing.activation_rows(a)), ("S", sharing.gradient_rows(g))):
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


@dataclass(frozen=True)
class TruncatedInverse:
    """A matrix that is diagonal in a Kronecker basis of which only the leading columns are known.

    Args:
        table: its eigenvalues (*batch, p, q), positive. Where the left basis has r columns, p = r + 1, and the last row
            belongs to all that is orthogonal to them; where there is none, p = out. So for the right one.
        shape: (out, in).
        left: orthonormal columns (*batch, out, r), or None for the identity.
        right: orthonormal columns (*batch, in, r), or None for the identity.
    """

    table: Tensor
    shape: tuple[int, int]
    left: Tensor | None
    right: Tensor | None
    supports_output_noise: bool = field(default=True, init=False)

    def solve(self, matrix: Tensor) -> Tensor:
        return self._apply(self.table, matrix)

    def step(self, v: Tensor) -> Step:
        if self.left is None and self.right is None:
            return WholeStep(v, self.solve(v))
        return SumStep(v, *self._terms(self.table, v))

    def sqrt_solve(self, noise: Tensor) -> Tensor:
        return self._apply(self.table.sqrt(), noise)

    def logdet(self) -> Tensor:
        return -self._sum_over_all(self.table.log())

    def trace_inverse(self) -> Tensor:
        return self._sum_over_all(self.table)

    def inverse_diagonal(self) -> Tensor:
        rest, by_left, by_right, both = self._parts(self.table)
        diagonal = rest
        if self.left is not None:
            diagonal = diagonal + self.left.square() @ by_left
        if self.right is not None:
            if self.left is not None:
                by_right = by_right + self.left.square() @ both
            diagonal = diagonal + by_right @ self.right.square().mT
        return diagonal.expand(*self.table.shape[:-2], *self.shape)

    def local_noise(self, a: Tensor, normal: Tensor) -> Tensor:
        std = self._output_stds(a)
        if self.left is None:
            return std * normal
        std, rest = std[..., :-1], std[..., -1:]
        return rest * normal + ((std - rest) * (normal @ self.left)) @ self.left.mT

    @property
    def is_separable(self) -> bool:
        return self.left is not None

    def separable_pays(self, examples: int, directions: int) -> bool:
        return examples > directions

    def separable_noise(self, a: Tensor, directions: int, stream: RandomStream) -> Tensor:
        """With a normal number of each row's own for every leading direction."""
        assert self.left is not None
        std = self._output_stds(a)
        std, rest = std[..., :-1], std[..., -1:] / directions**0.5
        shared = stream.normal((*a.shape[:-2], directions, self.shape[0]), a)
        shared = shared - (shared @ self.left) @ self.left.mT
        signs = stream.signs((*a.shape[:-1], directions), a)
        weights = torch.cat([std * stream.normal(std.shape, std), rest * signs], dim=-1)
        return weights @ torch.cat([self.left.mT, shared], dim=-2)

    def _output_stds(self, a: Tensor) -> Tensor:
        """Standard deviations of the outputs along the left directions, (*batch, B, p), for inputs (*batch, B, in)."""
        if self.right is None:
            energies = a.square()
        else:
            leading = (a @ self.right).square()
            rest = a.square().sum(-1, keepdim=True) - leading.sum(-1, keepdim=True)
            energies = torch.cat([leading, rest.clamp(min=0)], dim=-1)
        return positive_root(energies @ self.table.mT)

    def flipout_noise(self, a: Tensor, stream: RandomStream) -> Tensor:
        """With a sign of its own for every leading direction, and one for all that is orthogonal to them."""
        *batch, examples, locations, _ = a.shape
        rows, outputs = a.flatten(-3, -2), self.shape[0]
        if self.right is not None:
            leading = rows @ self.right
            rows = torch.cat([leading, rows - leading @ self.right.mT], dim=-1)
        scales = self._spread(self._spread(self.table.sqrt(), self.left, outputs, -2), self.right, self.shape[1], -1)
        draw = scales * stream.normal(scales.shape, rows)
        flip_out, flip_in = (
            self._spread(stream.signs((*batch, examples, 1, size), rows), basis, full, -1)
            for size, basis, full in zip(self.table.shape[-2:], (self.left, self.right), self.shape, strict=True)
        )
        flipped = (flip_in * rows.unflatten(-2, (examples, locations))).flatten(-3, -2)
        noise = (flip_out * (flipped @ draw.mT).unflatten(-2, (examples, locations))).flatten(-3, -2)
        if self.left is not None:
            leading, noise = noise.split([noise.shape[-1] - outputs, outputs], dim=-1)
            noise = noise + (leading - noise @ self.left) @ self.left.mT
        return noise.unflatten(-2, (examples, locations))

    @staticmethod
    def _spread(values: Tensor, basis: Tensor | None, size: int, dim: int) -> Tensor:
        """Repeat the last entry along ``dim``, which belongs to all that is orthogonal to ``basis``, ``size`` times."""
        if basis is None:
            return values
        leading, last = values.split([values.shape[dim] - 1, 1], dim=dim)
        shape = list(last.shape)
        shape[dim] = size
        return torch.cat([leading, last.expand(shape)], dim=dim)

    def _apply(self, table: Tensor, matrix: Tensor) -> Tensor:
        """The matrix with eigenvalues ``table`` times vec(V), as a matrix."""
        if self.left is None and self.right is None:
            return table * matrix
        coefficient, tall, wide, _ = self._terms(table, matrix)
        return torch.addcmul(tall @ wide, coefficient, matrix)

    def _terms(self, table: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same as coefficient * V + tall @ wide, and its inner product with V."""
        rest, by_left, by_right, both = self._parts(table)
        alike = [dim for dim in (-2, -1) if rest.shape[dim] == 1]
        inner = rest * torch.linalg.vector_norm(v, dim=alike, keepdim=True).square()
        inner = inner.sum((-2, -1))
        if self.left is None:
            assert self.right is not None
            of_right = v @ self.right
            tall, wide = by_right * of_right, self.right.mT
            inner = inner + (tall * of_right).sum((-2, -1))
        elif self.right is None:
            of_left = self.left.mT @ v
            tall, wide = self.left, by_left * of_left
            inner = inner + (wide * of_left).sum((-2, -1))
        else:
            of_left, of_right = self.left.mT @ v, v @ self.right
            of_both = of_left @ self.right
            from_left, from_right, from_both = by_left * of_left, by_right * of_right, both * of_both
            pairs = ((from_left, of_left), (from_right, of_right), (from_both, of_both))
            inner = inner + sum((one * other).sum((-2, -1)) for one, other in pairs)
            lead = v.shape[:-2]
            tall = torch.cat([self.left.expand(*lead, -1, -1), from_right], dim=-1)
            wide = torch.cat([from_left + from_both @ self.right.mT, self.right.mT.expand(*lead, -1, -1)], dim=-2)
        return rest, tall, wide, inner

    def _parts(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``table`` as a sum: what all directions have, and what leading left ones, right ones and both have beyond."""
        nothing = table.new_zeros(())
        rest, by_left, by_right, both = table, nothing, nothing, nothing
        if self.left is not None:
            rest, by_left = rest[..., -1:, :], rest[..., :-1, :] - rest[..., -1:, :]
        if self.right is not None:
            rest, by_right = rest[..., -1:], rest[..., :-1] - rest[..., -1:]
            if self.left is not None:
                by_left, both = by_left[..., -1:], by_left[..., :-1] - by_left[..., -1:]
        return rest, by_left, by_right, both

    def _sum_over_all(self, table: Tensor) -> Tensor:
        """The sum over all eigenvalues (*batch,), in double precision."""
        total = table.double()
        for basis, size, dim in ((self.left, self.shape[0], -2), (self.right, self.shape[1], -1)):
            if basis is not None:
                last = total.narrow(dim, total.shape[dim] - 1, 1)
                total = torch.cat(
                    [total.narrow(dim, 0, total.shape[dim] - 1), (size - basis.shape[-1]) * last], dim=dim
                )
        return total.sum((-2, -1))


def _arbitrary_columns(factor: Tensor, rank: int) -> Tensor:
    """Columns (*batch, n, rank) to start from, always the same."""
    size = factor.shape[-1]
    columns = torch.randn(size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return columns.to(factor).expand(*factor.shape[:-1], rank)
