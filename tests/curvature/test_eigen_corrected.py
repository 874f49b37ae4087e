"""The eigenvalue correction: measured in the eigenbasis, and carried along when the basis moves."""

import pytest
import torch
from torch import Tensor

from noisynat.curvature import EigenCorrected
from tests.curvature.cases import IN, OUT, eigenvectors, fisher, kronecker_factors, make, random_batch

DECAY = 0.8


def diagonal_in(q: Tensor, matrix: Tensor) -> Tensor:
    return (q.T @ matrix @ q).diagonal()


@pytest.mark.parametrize("locations", [1, 3])
def test_d_is_the_fishers_diagonal_in_the_eigenbasis(locations: int) -> None:
    first, second = random_batch(), random_batch(locations=locations)
    curvature = make("eigen_corrected")
    curvature.update(*first, DECAY)
    curvature.refresh(0.1)
    curvature.update(*second, decay=0.0)
    q = eigenvectors(*kronecker_factors([first], DECAY))
    expected = diagonal_in(q, fisher(*second)).reshape(OUT, IN)
    torch.testing.assert_close(curvature.averages["d"].value, expected)


def test_d_moves_with_the_basis() -> None:
    """The new d is the diagonal, in the new basis, of the matrix that the old d and basis stood for."""
    # Three outputs: the squares of a rotation in two dimensions are symmetric, and hide a transposed factor.
    batches = [(random_batch()[0], random_batch()[0].unsqueeze(0)) for _ in range(3)]
    curvature = EigenCorrected(3, IN, dtype=torch.float64)
    represented, q = torch.eye(3 * IN, dtype=torch.float64), torch.eye(3 * IN, dtype=torch.float64)
    for count, data in enumerate(batches, start=1):
        curvature.update(*data, DECAY)
        curvature.refresh(0.1)
        blended = DECAY * diagonal_in(q, represented) + (1 - DECAY) * diagonal_in(q, fisher(*data))
        old = q @ blended.diag() @ q.T
        q = eigenvectors(*kronecker_factors(batches[:count], DECAY))
        represented = q @ diagonal_in(q, old).diag() @ q.T
        torch.testing.assert_close(curvature.to_dense(), represented + 0.1 * torch.eye(3 * IN))
        torch.testing.assert_close(curvature.averages["d"].value.flatten(), diagonal_in(q, represented))


def test_moving_the_basis_keeps_the_trace() -> None:
    curvature = make("eigen_corrected", (2,))
    curvature.update(*random_batch((2,)), DECAY)
    before = curvature.averages["d"].value.sum((-2, -1)).clone()
    curvature.refresh(0.1)
    torch.testing.assert_close(curvature.averages["d"].value.sum((-2, -1)), before)


def test_refresh_without_new_statistics_changes_nothing() -> None:
    curvature = make("eigen_corrected", (2,))
    curvature.update(*random_batch((2,)), DECAY)
    curvature.refresh(0.1)
    before = curvature.to_dense()
    curvature.refresh(0.1)
    torch.testing.assert_close(curvature.to_dense(), before)


def test_exact_where_the_fisher_is_diagonal_in_the_eigenbasis() -> None:
    """Independent signs on a rotated grid: the true Fisher is Q diag(d) Q^T, and no Kronecker product."""
    q_s, q_a = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (OUT, IN))
    d = torch.tensor([[1.0, 4.0, 2.0], [9.0, 0.5, 3.0]], dtype=torch.float64)
    a = q_a.T.repeat(OUT, 1).unsqueeze(-2)  # every pair of eigenvectors is one example
    g = (q_s.T.repeat_interleave(IN, 0) * d.flatten().sqrt().unsqueeze(-1)).reshape(1, OUT * IN, 1, OUT)
    curvature = make("eigen_corrected", initial_precision=0.0)
    # A must see the directions with different weights, or its eigenvectors are arbitrary.
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).sqrt().repeat(OUT)[:, None, None]
    a, g = a * weights, g / weights
    curvature.update(a, g, decay=0.5)
    curvature.refresh(1e-9)
    curvature.update(a, g, decay=0.0)
    curvature.refresh(1e-9)
    expected = torch.kron(q_s, q_a) @ d.flatten().diag() @ torch.kron(q_s, q_a).T / (OUT * IN)
    torch.testing.assert_close(curvature.to_dense(), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fisher(a, g), expected)
