"""Damped inverses (C + gamma I)^-1: what they answer, and the two forms that most structures come to.

A weight matrix has shape (out, in) here, its last input being the constant one of the bias, and vec() is
row-major, so that vec(S V A) = (S kron A^T) vec(V).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.compiling import is_compiling
from noisynat.curvature.step import Step, WholeStep

if TYPE_CHECKING:
    from noisynat.random import RandomStream


class DampedInverse(Protocol):
    """What a posterior asks of (C + gamma I)^-1; matrices are (*sample, *batch, out, in)."""

    @property
    def shape(self) -> Sequence[int]:
        """(out, in)."""

    @property
    def supports_output_noise(self) -> bool:
        """Whether noise can be drawn exactly at a layer's output, without drawing its weight."""

    def solve(self, matrix: Tensor) -> Tensor:
        """(C + gamma I)^-1 vec(V), as a matrix."""

    def step(self, v: Tensor) -> Step:
        """(C + gamma I)^-1 vec(v) for v (*batch, out, in), to be added to weights."""

    def sqrt_solve(self, noise: Tensor) -> Tensor:
        """L vec(E) with L L^T = (C + gamma I)^-1, as a matrix."""

    def logdet(self) -> Tensor:
        """log |C + gamma I| (*batch,)."""

    def trace_inverse(self) -> Tensor:
        """tr (C + gamma I)^-1 (*batch,)."""

    def inverse_diagonal(self) -> Tensor:
        """Diagonal of (C + gamma I)^-1 (*batch, out, in)."""


class OutputNoise(DampedInverse, Protocol):
    """What an inverse answers beyond that if noise can be drawn at a layer's output, without drawing its weight."""

    def local_noise(self, a: Tensor, normal: Tensor) -> Tensor:
        """L E a, of which each row has its exact distribution, independent of the other rows.

        Args:
            a: inputs (*batch, B, in).
            normal: independent N(0, 1) numbers (*batch, B, out).

        Returns:
            (*batch, B, out).
        """

    @property
    def is_separable(self) -> bool:
        """Whether :meth:`separable_noise` is there."""

    @property
    def parts_vary(self) -> bool:
        """Whether the number of its random numbers changes with the curvature."""

    def separable_pays(self, examples: int, directions: int) -> bool:
        """Whether it costs less than :meth:`local_noise`."""

    def separable_noise(self, a: Tensor, directions: int, stream: RandomStream) -> Tensor:
        """L E a, of which each row has its exact distribution, uncorrelated with the other rows.

        From directions that all rows share, with random signs of each row's own: a row is normal, as its signs only
        tell which of equally likely directions it takes.

        Args:
            a: inputs (*batch, B, in).
            directions: their number, at least.
            stream: of random numbers.

        Returns:
            (*batch, B, out).
        """

    def flipout_noise(self, a: Tensor, stream: RandomStream) -> Tensor:
        """L E a for one E, with random signs of each example's own; joint over an example's locations.

        Args:
            a: inputs (*batch, B, T, in).
            stream: of random numbers.

        Returns:
            (*batch, B, T, out).
        """


@dataclass(frozen=True)
class KroneckerBasisInverse:
    """A matrix that is diagonal in a Kronecker basis: (L kron R) diag(v) (L kron R)^T.

    Everything that noise needs follows from two small bases and the variances in them: the fully factorized,
    the matrix-variate and the eigenvalue-corrected Gaussian differ in nothing else.

    Args:
        variance: v (*batch, out, in), positive.
        left: L (*batch, out, out), or None for the identity.
        right: R (*batch, in, in), or None for the identity.
        basis_logdet: log |L kron R| (*batch,); zero (None) for orthogonal bases.
        make_parts: gives :attr:`parts`, for those who ask; None if v is no short sum.
        parts_vary: whether their number depends on v.

    Attributes:
        of_one_output: R diag(v) R^T (*batch, in, in) where there is one output and an R, None elsewhere.
    """

    variance: Tensor
    left: Tensor | None = None
    right: Tensor | None = None
    basis_logdet: Tensor | None = None
    make_parts: Callable[[], tuple[Tensor, Tensor]] | None = None
    parts_vary: bool = False
    supports_output_noise: bool = field(default=True, init=False)
    of_one_output: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.shape[0] == 1 and self.right is not None:
            object.__setattr__(self, "of_one_output", (self.right * self.variance) @ self.right.mT)

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor] | None:
        """u (*batch, out, K) and w (*batch, in, K), not negative, with variance u w^T; None if there are none."""
        return None if self.make_parts is None else self.make_parts()

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.variance.shape[-2:]

    @property
    def root(self) -> Tensor:
        """Standard deviations in the basis (*batch, out, in)."""
        return self.variance.sqrt()

    def solve(self, matrix: Tensor) -> Tensor:
        if self.left is None and self.shape[0] == 1:
            return self.covary(matrix)
        inner = matrix
        if self.left is not None:
            inner = (inner.mT @ self.left).mT  # libraries are faster where the wide matrix is the second one
        if self.right is not None:
            inner = inner @ self.right
        return self.from_basis(self.variance * inner)

    def step(self, v: Tensor) -> Step:
        if self.left is None and self.right is None:
            if is_compiling():  # which finds memory of its own
                return WholeStep(v, self.variance * v)
            return WholeStep(v, torch.mul(self.variance, v, out=self._buffer))
        return WholeStep(v, self.solve(v))

    @cached_property
    def _buffer(self) -> Tensor:
        return torch.empty_like(self.variance)

    def sqrt_solve(self, noise: Tensor) -> Tensor:
        return self.from_basis(self.root * noise)

    def logdet(self) -> Tensor:
        logdet = -self.variance.log().sum((-2, -1))
        return logdet if self.basis_logdet is None else logdet - 2 * self.basis_logdet

    def trace_inverse(self) -> Tensor:
        variance = self.variance
        if self.basis_logdet is not None:  # columns of the bases have other lengths than one
            if self.left is not None:
                variance = variance * self.left.square().sum(-2).unsqueeze(-1)
            if self.right is not None:
                variance = variance * self.right.square().sum(-2).unsqueeze(-2)
        return variance.sum((-2, -1))

    def inverse_diagonal(self) -> Tensor:
        variance = self.variance
        if self.left is not None:
            variance = self.left.square() @ variance
        return variance if self.right is None else variance @ self.right.square().mT

    def from_basis(self, matrix: Tensor) -> Tensor:
        """``L matrix R^T``."""
        if self.left is not None:
            matrix = (matrix.mT @ self.left.mT).mT
        return matrix if self.right is None else matrix @ self.right.mT

    def rotate_inputs(self, a: Tensor) -> Tensor:
        """``R^T a`` for rows a (*batch, rows, in)."""
        return a if self.right is None else a @ self.right

    def rotate_outputs(self, s: Tensor) -> Tensor:
        """``L s`` for rows s (*batch, rows, out)."""
        return s if self.left is None else s @ self.left.mT

    def covary(self, a: Tensor) -> Tensor:
        """``R diag(v) R^T a`` for rows a (*batch, rows, in), where there is one output."""
        return a * self.variance if self.of_one_output is None else a @ self.of_one_output

    def local_noise(self, a: Tensor, normal: Tensor) -> Tensor:
        variance = self.rotate_inputs(a).square() @ self.variance.mT
        return self.rotate_outputs(positive_root(variance) * normal)

    @property
    def is_separable(self) -> bool:
        """Whether the variance is a short sum."""
        return self.make_parts is not None

    def separable_pays(self, examples: int, directions: int) -> bool:
        """Whether it takes fewer multiplications."""
        assert self.parts is not None
        outputs, inputs = self.shape
        shared = max(self.parts[0].shape[-1], directions)
        return shared * (examples * (inputs + outputs) + outputs**2) < examples * outputs * (inputs + outputs)

    def separable_noise(self, a: Tensor, directions: int, stream: RandomStream) -> Tensor:
        assert self.parts is not None
        of_outputs, of_inputs = self.parts
        copies = -(-directions // of_outputs.shape[-1])
        variance = (self.rotate_inputs(a).square() @ of_inputs).repeat_interleave(copies, -1) / copies
        weights = positive_root(variance) * stream.signs(variance.shape, variance)
        scales = of_outputs.sqrt().repeat_interleave(copies, -1).mT
        return weights @ self.rotate_outputs(scales * stream.normal(scales.shape, scales))

    def flipout_noise(self, a: Tensor, stream: RandomStream) -> Tensor:
        *batch, examples, locations, _ = a.shape
        rows = self.rotate_inputs(a.flatten(-3, -2)).unflatten(-2, (examples, locations))
        flip_in = stream.signs((*batch, examples, 1, rows.shape[-1]), rows)
        flip_out = stream.signs((*batch, examples, 1, self.shape[0]), rows)
        draw = self.root * stream.normal(self.variance.shape, self.variance)
        product = (flip_in * rows).flatten(-3, -2) @ draw.mT
        flipped = flip_out * product.unflatten(-2, (examples, locations))
        return self.rotate_outputs(flipped.flatten(-3, -2)).unflatten(-2, (examples, locations))


@dataclass(frozen=True)
class DenseInverse:
    """A full inverse, by the lower Cholesky factor of vec's matrix.

    Args:
        factor: lower triangular (*batch, D, D) with D = out * in.
        shape: (out, in).
    """

    factor: Tensor
    shape: tuple[int, int]
    supports_output_noise: bool = field(default=False, init=False)

    def solve(self, matrix: Tensor) -> Tensor:
        return self._from_columns(linalg.cholesky_solve(self._columns(matrix), self.factor), matrix)

    def step(self, v: Tensor) -> Step:
        return WholeStep(v, self.solve(v))

    def sqrt_solve(self, noise: Tensor) -> Tensor:
        return self._from_columns(linalg.solve_transposed(self.factor, self._columns(noise)), noise)

    def logdet(self) -> Tensor:
        return 2 * self.factor.diagonal(dim1=-2, dim2=-1).double().log().sum(-1)

    def trace_inverse(self) -> Tensor:
        return self.inverse_diagonal().sum((-2, -1))

    def inverse_diagonal(self) -> Tensor:
        return self._inverse_diagonal.clone()

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        """Kept, as it costs as much as the factorization and every epoch, ELBO and fit of the prior asks for it."""
        return linalg.inverse_of_triangular(self.factor).square().sum(-2).unflatten(-1, self.shape)

    def _columns(self, matrix: Tensor) -> Tensor:
        """Columns (*batch, D, samples) of matrices (*sample, *batch, out, in)."""
        batch = self.factor.shape[:-2]
        flat = matrix.to(self.factor.dtype).flatten(-2)
        flat = flat.expand(*flat.shape[: max(flat.dim() - 1 - len(batch), 0)], *batch, flat.shape[-1])
        return flat.reshape(-1, *batch, flat.shape[-1]).movedim(0, -1)

    def _from_columns(self, columns: Tensor, like: Tensor) -> Tensor:
        batch = self.factor.shape[:-2]
        sample = like.shape[: max(like.dim() - 2 - len(batch), 0)]
        flat = columns.movedim(-1, 0).reshape(*sample, *batch, columns.shape[-2])
        return flat.unflatten(-1, self.shape).to(like.dtype)


def positive_or_one(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of inverses (*batch, p, q), ones where a batch element's are not all positive numbers, and the mask.

    Zero is what remains of an infinite eigenvalue.
    """
    failed = ~((eigenvalues.amin((-2, -1)) > 0) & (eigenvalues.amax((-2, -1)) < torch.inf))  # NaN is neither
    if bool(failed.any()):
        eigenvalues = torch.where(failed[..., None, None], 1, eigenvalues)
    return eigenvalues, failed


def positive_root(variance: Tensor) -> Tensor:
    """The square root, with a finite derivative at zero."""
    return variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()


def kronecker_product(left: Tensor, right: Tensor) -> Tensor:
    """Batched Kronecker product (*batch, m p, n q) of (*batch, m, n) and (*batch, p, q)."""
    product = torch.einsum("...ij,...kl->...ikjl", left, right)
    return product.flatten(-4, -3).flatten(-2, -1)
