"""Safe matrix factorizations: the only file that calls ``torch.linalg``'s.

Every function is batch-first and reports failure per batch element instead of raising, so that one
replica's trouble never stops the others. The ladder is: the matrix as it is; three tries with a jitter on
the diagonal that grows tenfold; float64; and then the element is reported as failed, and the caller keeps
the last good factor (Higham 2002, section 10.3, for the size of a harmless perturbation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from noisynat.precision import full_precision

_JITTER_TRIES = 3


def symmetrize(matrix: Tensor) -> Tensor:
    """The symmetric part of (*batch, n, n)."""
    return (matrix + matrix.mT) / 2


def cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors of symmetric positive definite matrices, by the failure ladder.

    Args:
        matrix: (*batch, n, n).

    Returns:
        The factors (*batch, n, n), of the input's dtype, and the mask (*batch,) of the elements for which
        every try failed; their factor is the identity.
    """
    with full_precision(matrix.device):
        factor, info = torch.linalg.cholesky_ex(matrix)
        failed = (info != 0) | ~torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all(-1)
        if not bool(failed.any()):
            return factor, failed
        finite = _finite(matrix)
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        candidate = torch.where(finite[..., None, None], matrix, eye)
        for jittered in _climb(candidate):
            retry, info = torch.linalg.cholesky_ex(jittered)
            solved = failed & finite & (info == 0)
            factor = torch.where(solved[..., None, None], retry.to(factor.dtype), factor)
            failed = failed & ~solved
            if not bool((failed & finite).any()):
                break
        return torch.where(failed[..., None, None], eye, factor), failed


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric positive semi-definite matrices, by the failure ladder.

    Args:
        matrix: (*batch, n, n).

    Returns:
        Eigenvalues (*batch, n), ascending and never negative; eigenvectors in columns (*batch, n, n); and
        the mask (*batch,) of failed elements, whose decomposition is that of the identity.
    """
    with full_precision(matrix.device):
        finite = _finite(matrix)
        if bool(finite.all()):
            candidate = matrix
        else:
            eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
            candidate = torch.where(finite[..., None, None], matrix, eye)
        try:
            values, vectors = torch.linalg.eigh(candidate)
            failed = ~finite
        except torch.linalg.LinAlgError:
            values, vectors, failed = _eigh_one_by_one(candidate)
            failed = failed | ~finite
        dtype = matrix.dtype
        return without_denormals(values.clamp(min=0), dtype), without_denormals(vectors, dtype), failed


def without_denormals(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values`` in ``dtype``, and zeros for denormal numbers, with which many processors are slow."""
    return functional.hardshrink(values, torch.finfo(dtype).tiny).to(dtype)


def leading_eigenpairs(matrix: Tensor, start: Tensor, iterations: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The r leading eigenpairs of symmetric positive semi-definite matrices, by subspace iteration.

    The eigenvalues of the matrix within the subspace (Ritz values) are exact for it, whatever the subspace is; it
    comes nearer to the leading eigenvectors with every iteration (Golub and Van Loan 2013, section 8.2.4).

    Args:
        matrix: (*batch, n, n).
        start: linearly independent columns (*batch, n, r), such as the eigenvectors of a similar matrix.
        iterations: products with the matrix.

    Returns:
        Eigenvalues (*batch, r), ascending and never negative; orthonormal columns (*batch, n, r); and the mask
        (*batch,) of elements that are not finite, whose columns are those of the identity.
    """
    with full_precision(matrix.device):
        finite = _finite(matrix)[..., None, None]
        eye = torch.eye(*start.shape[-2:], dtype=matrix.dtype, device=matrix.device)
        matrix, basis = matrix.where(finite, 0), start.where(finite, eye)
        for _ in range(iterations):
            basis, _ = torch.linalg.qr(matrix @ basis)
        values, rotation, failed = eigh(symmetrize(basis.mT @ (matrix @ basis)))
        return values, (basis @ rotation).where(finite, eye), failed | ~finite[..., 0, 0]


def positive_part(matrix: Tensor) -> Tensor:
    """The nearest positive semi-definite matrices (*batch, n, n) in Frobenius norm (Higham 1988, theorem 2.1)."""
    values, vectors, _ = eigh(symmetrize(matrix))
    return vectors @ (values.unsqueeze(-1) * vectors.mT)


def cholesky_solve(rhs: Tensor, factor: Tensor) -> Tensor:
    """``(L L^T)^-1 rhs`` for rhs (*batch, n, k) and the lower factor L (*batch, n, n).

    By two triangular solves, which unlike ``torch.cholesky_solve`` do not copy the factor.
    """
    return solve_transposed(factor, torch.linalg.solve_triangular(factor, rhs, upper=False))


def solve_transposed(factor: Tensor, rhs: Tensor) -> Tensor:
    """``L^-T rhs`` for the lower triangular L (*batch, n, n) and rhs (*batch, n, k)."""
    return torch.linalg.solve_triangular(factor.mT, rhs, upper=True)


def inverse_of_triangular(factor: Tensor) -> Tensor:
    """``L^-1`` for lower triangular L (*batch, n, n)."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)


def log_determinant(factor: Tensor) -> Tensor:
    """``log |L L^T|`` (*batch,) from the lower Cholesky factor L (*batch, n, n)."""
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def condition_number(matrix: Tensor) -> Tensor:
    """Ratio of extreme singular values (*batch,) in float64; infinite where the matrix is not finite."""
    finite = _finite(matrix)
    eye = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    safe = torch.where(finite[..., None, None], matrix.double(), eye)
    return torch.linalg.cond(safe).where(finite, torch.full((), torch.inf, dtype=torch.float64))


def _finite(matrix: Tensor) -> Tensor:
    """Mask (*batch,): a sum is finite only if its terms are, and costs one pass."""
    return torch.isfinite(matrix.sum((-2, -1)))


def _climb(matrix: Tensor) -> Iterator[Tensor]:
    """The next matrices to try: three growing jitters, then float64 with the largest of them."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp(min=torch.finfo(matrix.dtype).tiny)
    unit = size[..., None, None] * torch.finfo(matrix.dtype).eps * matrix.shape[-1]
    for power in range(_JITTER_TRIES):
        yield matrix + 10.0**power * unit * eye
    yield matrix.double() + 10.0 ** (_JITTER_TRIES - 1) * unit.double() * eye.double()


def _eigh_one_by_one(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigendecomposition of each batch element alone, so that only the offending ones climb the ladder."""
    size = matrix.shape[-1]
    results = [_first_success(torch.linalg.eigh, element) for element in matrix.reshape(-1, size, size)]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    values = torch.stack([eye.diagonal() if r is None else r[0].to(matrix.dtype) for r in results])
    vectors = torch.stack([eye if r is None else r[1].to(matrix.dtype) for r in results])
    failed = torch.tensor([r is None for r in results], device=matrix.device)
    batch = matrix.shape[:-2]
    return values.reshape(*batch, size), vectors.reshape(*batch, size, size), failed.reshape(batch)


def _first_success(
    factorize: Callable[[Tensor], tuple[Tensor, Tensor]], matrix: Tensor
) -> tuple[Tensor, Tensor] | None:
    for candidate in (matrix, *_climb(matrix)):
        try:
            return factorize(candidate)
        except torch.linalg.LinAlgError:
            continue
    return None
