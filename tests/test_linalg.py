"""Factorizations that fail per batch element instead of raising."""

import pytest
import torch
from torch import Tensor

from noisynat import linalg

BAD = {
    "nan": torch.full((3, 3), torch.nan, dtype=torch.float64),
    "inf": torch.diag(torch.tensor([1.0, torch.inf, 1.0], dtype=torch.float64)),
    "indefinite": torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)),
}


def positive_definite(*batch: int, size: int = 3) -> Tensor:
    root = torch.randn(*batch, size, size + 2, dtype=torch.float64)
    return root @ root.mT


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_cholesky_gives_the_lower_factor(batch: tuple[int, ...]) -> None:
    matrix = positive_definite(*batch)
    factor, failed = linalg.cholesky(matrix)
    assert failed.shape == batch
    assert not failed.any()
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.mT, matrix)


@pytest.mark.parametrize("kind", BAD)
def test_cholesky_fails_for_the_bad_element_only(kind: str) -> None:
    matrix = positive_definite(3)
    matrix[1] = BAD[kind]
    factor, failed = linalg.cholesky(matrix)
    assert failed.tolist() == [False, True, False]
    assert torch.equal(factor[1], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close((factor @ factor.mT)[[0, 2]], matrix[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_jitter_saves_a_matrix_that_rounding_made_indefinite(dtype: torch.dtype, scale: float) -> None:
    vector = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)
    tiny = torch.finfo(dtype).eps
    matrix = scale * (torch.outer(vector, vector) - tiny * torch.eye(3, dtype=dtype))
    assert torch.linalg.cholesky_ex(matrix).info != 0
    factor, failed = linalg.cholesky(matrix)
    assert not failed
    assert factor.dtype == dtype
    assert (factor @ factor.mT - matrix).abs().max() <= scale * 2000 * tiny


def test_float64_saves_what_float32_cannot_factorize(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.linalg.cholesky_ex

    def in_float64_only(matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = original(matrix)
        return factor, info + int(matrix.dtype == torch.float32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", in_float64_only)
    matrix = positive_definite(2).float()
    factor, failed = linalg.cholesky(matrix)
    assert not failed.any()
    assert factor.dtype == torch.float32
    torch.testing.assert_close(factor @ factor.mT, matrix, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_eigh_rebuilds_the_matrix(batch: tuple[int, ...]) -> None:
    matrix = positive_definite(*batch)
    values, vectors, failed = linalg.eigh(matrix)
    assert not failed.any()
    assert (values.diff() >= 0).all()
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrix)


def test_eigh_never_returns_negative_eigenvalues() -> None:
    values, _, _ = linalg.eigh(BAD["indefinite"])
    assert values.tolist() == [0, 1, 1]


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_eigh_fails_for_the_bad_element_only(kind: str) -> None:
    matrix = positive_definite(3)
    matrix[1] = BAD[kind]
    values, vectors, failed = linalg.eigh(matrix)
    assert failed.tolist() == [False, True, False]
    assert torch.equal(vectors[1], torch.eye(3, dtype=torch.float64))
    assert torch.equal(values[1], torch.ones(3, dtype=torch.float64))
    rebuilt = vectors @ torch.diag_embed(values) @ vectors.mT
    torch.testing.assert_close(rebuilt[[0, 2]], matrix[[0, 2]])


@pytest.mark.parametrize("saved_by_jitter", [True, False])
def test_eigh_that_does_not_converge_is_tried_element_by_element(
    monkeypatch: pytest.MonkeyPatch, saved_by_jitter: bool
) -> None:
    matrix = positive_definite(2, 2)
    bad, original = matrix[1, 0].clone(), torch.linalg.eigh

    def fails_for_bad(candidate: Tensor) -> tuple[Tensor, Tensor]:
        close = (candidate - bad).abs().amax((-2, -1)) <= (0 if saved_by_jitter else 1e-6)
        if close.any():
            raise torch.linalg.LinAlgError("did not converge")
        return original(candidate)

    monkeypatch.setattr(torch.linalg, "eigh", fails_for_bad)
    values, vectors, failed = linalg.eigh(matrix)
    assert failed.tolist() == [[False, False], [not saved_by_jitter, False]]
    rebuilt = vectors @ torch.diag_embed(values) @ vectors.mT
    expected = matrix.clone()
    if not saved_by_jitter:
        expected[1, 0] = torch.eye(3)
    torch.testing.assert_close(rebuilt, expected)


def test_eigh_that_does_not_converge_still_reports_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, original = positive_definite(3), torch.linalg.eigh
    matrix[2] = torch.nan

    def fails_for_batches(candidate: Tensor) -> tuple[Tensor, Tensor]:
        if candidate.dim() > 2:
            raise torch.linalg.LinAlgError("did not converge")
        return original(candidate)

    monkeypatch.setattr(torch.linalg, "eigh", fails_for_batches)
    assert linalg.eigh(matrix)[2].tolist() == [False, False, True]


def test_triangular_helpers_agree_with_the_inverse() -> None:
    matrix, rhs = positive_definite(2), torch.randn(2, 3, 4, dtype=torch.float64)
    factor = torch.linalg.cholesky(matrix)
    torch.testing.assert_close(linalg.cholesky_solve(rhs, factor), torch.linalg.inv(matrix) @ rhs)
    torch.testing.assert_close(linalg.solve_transposed(factor, rhs), torch.linalg.inv(factor.mT) @ rhs)
    torch.testing.assert_close(linalg.inverse_of_triangular(factor), torch.linalg.inv(factor))
    torch.testing.assert_close(linalg.log_determinant(factor), torch.logdet(matrix))


def test_condition_number() -> None:
    matrix = torch.stack([torch.diag(torch.tensor([4.0, 0.5])), torch.full((2, 2), torch.nan)])
    assert linalg.condition_number(matrix).tolist() == [8, torch.inf]


def test_positive_part() -> None:
    """[[0, 1], [1, 0]] has eigenvalues 1 and -1; a positive definite matrix is its own positive part."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    definite = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    torch.testing.assert_close(linalg.positive_part(torch.stack([swap, definite])), torch.stack([half, definite]))


def test_symmetrize() -> None:
    assert linalg.symmetrize(torch.tensor([[1.0, 2.0], [4.0, 3.0]])).tolist() == [[1, 3], [3, 3]]


def test_full_precision_restores_tf32_and_turns_autocast_off() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    matrix = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with linalg.full_precision(matrix.device):
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == torch.bfloat16
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_subspace_iteration_finds_the_leading_eigenpairs(batch: tuple[int, ...]) -> None:
    q = torch.linalg.qr(torch.randn(*batch, 12, 12, dtype=torch.float64))[0]
    values = 0.3 ** torch.arange(12, dtype=torch.float64)
    matrix = (q * values) @ q.mT
    start = torch.randn(*batch, 12, 3, dtype=torch.float64)
    found, vectors, failed = linalg.leading_eigenpairs(matrix, start, iterations=20)
    assert not failed.any()
    torch.testing.assert_close(found, values[:3].flip(0).expand_as(found))
    torch.testing.assert_close(matrix @ vectors, vectors * found.unsqueeze(-2))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(3, dtype=torch.float64).expand(*batch, 3, 3))


def test_ritz_values_are_those_of_the_matrix_within_the_subspace_after_few_iterations() -> None:
    matrix, start = positive_definite(size=12), torch.randn(12, 3, dtype=torch.float64)
    for iterations in (0, 1):
        basis = torch.linalg.qr(matrix @ start)[0] if iterations else torch.linalg.qr(start)[0]
        expected = torch.linalg.eigvalsh(basis.mT @ matrix @ basis)
        found, vectors, _ = linalg.leading_eigenpairs(matrix, torch.linalg.qr(start)[0], iterations)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close((vectors.mT @ matrix @ vectors).diagonal(), expected)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_subspace_iteration_fails_for_the_bad_element_only(kind: str) -> None:
    matrix = positive_definite(3)
    matrix[1] = BAD[kind]
    values, vectors, failed = linalg.leading_eigenpairs(matrix, torch.ones(3, 3, 1, dtype=torch.float64), 60)
    assert failed.tolist() == [False, True, False]
    torch.testing.assert_close(vectors[1], torch.eye(3, 1, dtype=torch.float64))
    for i in (0, 2):
        torch.testing.assert_close(values[i], torch.linalg.eigvalsh(matrix[i])[-1:])


def test_subspace_iteration_survives_a_rank_that_is_too_low() -> None:
    column = torch.randn(8, 1, dtype=torch.float64)
    matrix = column @ column.mT
    values, vectors, failed = linalg.leading_eigenpairs(matrix, torch.randn(8, 3, dtype=torch.float64), 2)
    assert not failed
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, float(column.square().sum())], dtype=torch.float64))
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(3, dtype=torch.float64))
