"""The sum of products against the quotient that it stands for, entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisynat.curvature.separable import reciprocal


def spectrum(size: int, exponent: float, zeros: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Numbers from 10^-exponent to 10^exponent, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    values = 10 ** (exponent * (2 * torch.rand(size, generator=generator, dtype=dtype) - 1))
    values[:zeros] = 0
    return values


@given(
    exponents=st.tuples(st.floats(0, 6), st.floats(0, 6), st.floats(-8, 3)),
    zeros=st.tuples(st.integers(0, 5), st.integers(0, 4)),
    seed=st.integers(0, 1000),
)
def test_every_entry_to_five_digits(exponents: tuple[float, float, float], zeros: tuple[int, int], seed: int) -> None:
    x, y = spectrum(5, exponents[0], zeros[0], seed), spectrum(4, exponents[1], zeros[1], seed + 1)
    gamma = torch.tensor([[10 ** exponents[2]]], dtype=torch.float64)
    u, v = reciprocal(x, y, gamma)
    expected = 1 / (torch.outer(x, y) + gamma)
    torch.testing.assert_close(u @ v.mT, expected, rtol=1e-5, atol=0)
    assert bool((u >= 0).all() and (v >= 0).all())


def test_batches_have_their_own_factors() -> None:
    x = torch.stack([spectrum(6, 1, 1, 0), spectrum(6, 3, 0, 1)])
    y = torch.stack([spectrum(3, 2, 0, 2), spectrum(3, 1, 3, 3)])
    gamma = torch.tensor([1e-5, 0.3], dtype=torch.float64)[:, None, None]
    u, v = reciprocal(x, y, gamma)
    assert u.shape[:2] == (2, 6)
    assert v.shape[:2] == (2, 3)
    torch.testing.assert_close(u @ v.mT, 1 / (x.unsqueeze(-1) * y.unsqueeze(-2) + gamma), rtol=1e-5, atol=0)


def test_single_precision() -> None:
    x, y = spectrum(200, 3, 20, 0, torch.float32), spectrum(300, 2, 10, 1, torch.float32)
    gamma = torch.tensor([[1e-5]])
    u, v = reciprocal(x, y, gamma)
    assert u.shape[-1] <= 100
    torch.testing.assert_close(u @ v.mT, 1 / (torch.outer(x, y) + gamma), rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_curvature_at_all(dtype: torch.dtype) -> None:
    u, v = reciprocal(torch.zeros(3, dtype=dtype), torch.zeros(2, dtype=dtype), torch.tensor([[0.25]], dtype=dtype))
    torch.testing.assert_close(u @ v.mT, torch.full((3, 2), 4.0, dtype=dtype), rtol=1e-5, atol=0)
