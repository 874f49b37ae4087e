"""Layers of one output, which have shortcuts: C is s A with a number s, and one matrix inverts it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from noisynat import linalg
from noisynat.curvature import Curvature, Kronecker

COLUMNS = 4


def trained(batch: tuple[int, ...], damping: float) -> tuple[Curvature, Tensor]:
    """A curvature that starts from nothing and has seen one batch, and its matrix C (*batch, D, D) by hand."""
    curvature = Kronecker(1, COLUMNS, batch, initial_precision=0.0, dtype=torch.float64)
    a = torch.randn(*batch, 6, 1, COLUMNS, dtype=torch.float64) @ torch.rand(COLUMNS, COLUMNS, dtype=torch.float64)
    g = torch.full((1, *batch, 6, 1, 1), 1.7, dtype=torch.float64)  # the same for all, so that S (x) A is the Fisher's
    curvature.update(a, g, 0.0)
    curvature.refresh(damping)
    rows = a.squeeze(-2)
    return curvature, 1.7**2 * rows.mT @ rows / 6


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("damping", [1e-6, 0.05, 1e2])
def test_answers_agree_with_the_dense_matrix(batch: tuple[int, ...], damping: float) -> None:
    curvature, c = trained(batch, damping)
    eye = torch.eye(COLUMNS, dtype=torch.float64)
    dense, extra = c + damping * eye, c + (damping + 0.3) * eye
    covariance, v = torch.linalg.inv(dense), torch.randn(*batch, 1, COLUMNS, dtype=torch.float64)
    units = eye.reshape(COLUMNS, *(1,) * len(batch), 1, COLUMNS).expand(COLUMNS, *batch, 1, COLUMNS)
    root = curvature.sqrt_solve(units).squeeze(-2).movedim(0, -1)
    for answer, expected in (
        (curvature.to_dense(), dense),
        (curvature.logdet(), torch.logdet(dense)),
        (curvature.trace_inverse(), covariance.diagonal(dim1=-2, dim2=-1).sum(-1)),
        (curvature.inverse.inverse_diagonal().squeeze(-2), covariance.diagonal(dim1=-2, dim2=-1)),
        (curvature.solve(v).mT, torch.linalg.solve(dense, v.mT)),
        (curvature.solve(v, 0.3).mT, torch.linalg.solve(extra, v.mT)),
        (root @ root.mT, covariance),
    ):
        torch.testing.assert_close(answer, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_noise_at_the_output_has_the_covariance_of_the_weights() -> None:
    """With one standard normal number per row it is a sum of sqrt(a^T Sigma a)."""
    curvature, c = trained((2,), 0.05)
    rows = torch.randn(2, 5, COLUMNS, dtype=torch.float64)
    covariance = torch.linalg.inv(c + 0.05 * torch.eye(COLUMNS, dtype=torch.float64))
    noise = curvature.inverse.local_noise(rows, torch.ones(2, 5, 1, dtype=torch.float64))  # type: ignore[attr-defined]
    torch.testing.assert_close(noise.square(), (rows @ covariance * rows).sum(-1, keepdim=True))


def test_no_eigendecomposition_where_eigenvalues_exceed_rounding() -> None:
    curvature, _ = trained((3,), 0.05)
    with mock.patch.object(linalg, "eigh", side_effect=AssertionError):
        curvature.refresh(0.05)
    curvature.averages["A"].value[..., 0, 0] += 1e20
    with mock.patch.object(linalg, "eigh", side_effect=AssertionError), pytest.raises(AssertionError):
        curvature.refresh(0.05)


@pytest.mark.parametrize("damping", [1e-6, 1e-4])
def test_rounding_of_large_statistics_does_not_exceed_the_prior(damping: float) -> None:
    """A is singular and some 1e4 in size: single precision leaves eigenvalues of -1e-3 where there should be none."""
    curvature = Kronecker(1, 30, (5,), initial_precision=0.0, dtype=torch.float32)
    rows = 100 * torch.randn(5, 3, 30)
    curvature.update(rows.unsqueeze(-2), torch.ones(1, 5, 3, 1, 1), 0.0)
    assert linalg.eigh(curvature.averages["A"].value)[0].amax() > 1e4
    assert torch.linalg.eigvalsh(curvature.averages["A"].value.double()).amin() < -2 * damping
    curvature.refresh(damping)
    assert not curvature.failures.any()
    assert curvature.inverse.inverse_diagonal().amax() < 1.001 / damping
