"""Kronecker-factored curvature C = S (x) A: the matrix-variate Gaussian of noisy K-FAC.

Factors: Martens and Grosse (2015); posterior: Zhang et al. (2018), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.curvature import separable, sharing
from noisynat.curvature.base import Curvature
from noisynat.curvature.inverse import DampedInverse, KroneckerBasisInverse, kronecker_product, positive_or_one
from noisynat.curvature.statistics import MovingAverage

DampingForm = Literal["exact", "factored"]
_ROUNDINGS = 4  # of a trace, that the eigenvalues of what is inverted exceed
_MOST_UNEQUAL = 1e9  # of a pair of dampings, their square roots' ratio, so that neither underflows


class Kronecker(Curvature):
    """C = S (x) A with A = E[a a^T] (in, in) and S = E[g g^T] (out, out).

    Args:
        damping_form: ``"exact"`` inverts S (x) A + gamma I in the eigenbasis of the factors (for one output by
            Cholesky, unless eigenvalues are so small that the statistics' rounding would matter);
            ``"factored"`` inverts (S + sqrt(gamma)/pi I) (x) (A + pi sqrt(gamma) I), a true matrix normal
            with pi^2 = (tr A / dim A) / (tr S / dim S), by Cholesky (Martens and Grosse 2015, section 6.3).
            Factored damping exceeds gamma I, and so narrows the posterior.
        rule: for weight sharing, see :mod:`noisynat.curvature.sharing`.
    """

    def __init__(
        self, *args: Any, damping_form: DampingForm = "exact", rule: sharing.Sharing = "expand", **kwargs: Any
    ) -> None:
        self.damping_form, self.rule = checked_damping_form(damping_form), sharing.checked(rule)
        super().__init__(*args, **kwargs)

    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return initial_factors(self.shape, self.batch_shape, precision, dtype, device)

    def accumulate(self, a: Tensor, g: Tensor) -> None:
        accumulate_factors(self.averages, a, g, self.rule)

    def _prepare(self, snapshot: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        if self.damping_form == "factored" or self.shape[0] == 1:
            return snapshot, self._nothing_failed()
        return eigenbasis(snapshot)

    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        if self.damping_form == "factored":
            return self._invert_factored(prepared, damping)
        if self.shape[0] == 1:
            return self._invert_of_one_output(prepared, damping)
        of_outputs, of_inputs = prepared["S.values"], prepared["A.values"]
        eigenvalues = of_outputs.unsqueeze(-1) * of_inputs.unsqueeze(-2)
        parts = partial(separable.reciprocal, of_outputs, of_inputs, damping)
        return invert_in_eigenbasis(prepared, eigenvalues, damping, parts)

    def _invert_factored(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        factors, failures, log_basis = {}, self._nothing_failed(), torch.zeros(())
        for key, (damped, copies) in factored_damping(prepared["S"], prepared["A"], damping).items():
            cholesky, failed = linalg.cholesky(damped)
            factors[key] = linalg.inverse_of_triangular(cholesky).mT
            failures = failures | failed
            log_basis = log_basis.to(cholesky) - copies * linalg.log_determinant(cholesky) / 2
        left: Tensor | None = factors["S"]
        right = factors["A"]
        if self.shape[0] == 1:
            left, right = None, factors["S"] * right
        return self._of_bases(left, right, log_basis), failures

    def _invert_of_one_output(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        """By Cholesky in float64, at a third of an eigendecomposition's cost; the form is the same either way."""
        product = prepared["S"].double() * prepared["A"].double()
        eye = torch.eye(self.shape[1], dtype=product.dtype, device=product.device)
        cholesky, failed = linalg.cholesky(product + damping * eye)
        right = linalg.without_denormals(linalg.inverse_of_triangular(cholesky).mT, damping.dtype)
        inverse = self._of_bases(None, right, -linalg.log_determinant(cholesky).to(damping.dtype) / 2)
        assert inverse.of_one_output is not None
        if _exceed_rounding(product, inverse.of_one_output, damping.dtype):
            return inverse, failed
        values, vectors, failed = linalg.eigh(prepared["A"])  # never negative, as rounding might make them
        eigenvalues = prepared["S"][..., 0] * values
        variance, not_inverted = positive_or_one((eigenvalues.unsqueeze(-2) + damping).reciprocal_())
        root = variance.sqrt()
        return self._of_bases(None, vectors * root, root.log().sum((-2, -1))), failed | not_inverted

    def _of_bases(self, left: Tensor | None, right: Tensor, log_basis: Tensor) -> KroneckerBasisInverse:
        """``L L^T (x) R R^T``."""
        ones = torch.ones(*self.batch_shape, *self.shape, dtype=right.dtype, device=right.device)
        return KroneckerBasisInverse(ones, left, right, log_basis, partial(separable.one, tuple(ones.shape), ones))

    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        return kronecker_product(snapshot["S"], snapshot["A"])

    def latest(self) -> Tensor:
        # The product of the factors' largest eigenvalues magnifies what single precision did to their smallest.
        return kronecker_product(*(linalg.positive_part(self._candidate()[key].double()) for key in ("S", "A")))

    def to_dense(self) -> Tensor:
        if self.damping_form == "exact":
            return super().to_dense()
        damped = factored_damping(self.snapshot["S"], self.snapshot["A"], self._damping)
        return kronecker_product(damped["S"][0], damped["A"][0])


def _exceed_rounding(matrix: Tensor, damped_inverse: Tensor, dtype: torch.dtype) -> bool:
    """Whether eigenvalues of damped matrices are much larger than what rounding in ``dtype`` may have done to them."""
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    largest = torch.linalg.vector_norm(damped_inverse, dim=(-2, -1))  # eigenvalue of the inverse, at most
    return bool((_ROUNDINGS * torch.finfo(dtype).eps * trace * largest < 1).all())


def checked_damping_form(value: DampingForm) -> DampingForm:
    """``value``, or ValueError if there is no such form."""
    if value not in ("exact", "factored"):
        raise ValueError(f"damping_form is 'exact' or 'factored', got {value!r}")
    return value


def initial_factors(
    shape: tuple[int, int], batch_shape: torch.Size, precision: float, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """A (*batch, in, in) and S (*batch, out, out) with S (x) A equal to ``precision`` times the identity."""
    sizes = {"A": shape[1], "S": shape[0]}
    return {
        key: precision**0.5 * torch.eye(size, dtype=dtype, device=device).repeat(*batch_shape, 1, 1)
        for key, size in sizes.items()
    }


def accumulate_factors(averages: dict[str, MovingAverage], a: Tensor, g: Tensor, rule: sharing.Sharing) -> None:
    """Give a batch's activations and gradients to the averages of A and S."""
    rows, count = sharing.activation_rows(a, rule)
    averages["A"].accumulate(rows, rows, count)
    rows, count = sharing.gradient_rows(g, rule)
    averages["S"].accumulate(rows, rows, count)


def factored_damping(s: Tensor, a: Tensor, damping: Tensor) -> dict[str, tuple[Tensor, int]]:
    """S + sqrt(gamma)/pi I and A + pi sqrt(gamma) I, each with the dimension of the other factor."""
    outputs, inputs = s.shape[-1], a.shape[-1]
    mean_a, mean_s = (factor.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] for factor in (a, s))
    root, pi = damping.sqrt(), balance(mean_a, mean_s)
    eye_s = torch.eye(outputs, dtype=s.dtype, device=s.device)
    eye_a = torch.eye(inputs, dtype=a.dtype, device=a.device)
    return {"S": (s + root / pi * eye_s, inputs), "A": (a + pi * root * eye_a, outputs)}


def balance(mean_a: Tensor, mean_s: Tensor) -> Tensor:
    """pi of the factored damping, from the mean eigenvalues of A and S; bounded where one of them has vanished."""
    tiny = torch.finfo(mean_a.dtype).tiny
    return (mean_a.clamp(min=tiny) / mean_s.clamp(min=tiny)).sqrt().clamp(1 / _MOST_UNEQUAL, _MOST_UNEQUAL)


def eigenbasis(snapshot: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Eigenvalues and eigenvectors of A and S, and the mask (*batch,) of failures."""
    values_a, vectors_a, failed_a = linalg.eigh(snapshot["A"])
    values_s, vectors_s, failed_s = linalg.eigh(snapshot["S"])
    basis = {"A.values": values_a, "A.vectors": vectors_a, "S.values": values_s, "S.vectors": vectors_s}
    return basis, failed_a | failed_s


def invert_in_eigenbasis(
    basis: dict[str, Tensor],
    eigenvalues: Tensor,
    damping: Tensor,
    make_parts: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> tuple[DampedInverse, Tensor]:
    """(Q diag(eigenvalues) Q^T + damping I)^-1 with Q = Q_S (x) Q_A, for eigenvalues (*batch, out, in)."""
    variance, failed = positive_or_one((eigenvalues + damping).reciprocal_())
    left = None if eigenvalues.shape[-2] == 1 else basis["S.vectors"]  # of one output it is 1 or -1
    return KroneckerBasisInverse(variance, left, basis["A.vectors"], make_parts=make_parts, parts_vary=True), failed
