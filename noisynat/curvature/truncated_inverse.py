"""The damped inverse of truncated Kronecker factors: a multiple of the identity, with corrections of low rank.

What is orthogonal to the leading directions of a side has one eigenvalue; all answers follow from products with thin
matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noisynat.curvature.inverse import positive_root
from noisynat.curvature.step import Step, SumStep, WholeStep

if TYPE_CHECKING:
    from noisynat.random import RandomStream


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

    @property
    def parts_vary(self) -> bool:
        return False

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
