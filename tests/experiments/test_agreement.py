"""Measures of agreement, against closed forms of Gaussians and Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import noisynat
from experiments import agreement
from noisynat.likelihoods.observation import NormalNoise, StudentNoise
from noisynat.random import RandomStream


def gaussian(mean: Tensor, epistemic: Tensor, noise: float, *, samples: int = 4001) -> noisynat.Predictive:
    """f_n ~ N(mean_n, epistemic_n^2), by quantiles, so that moments are those of the normal but for 1e-3."""
    levels = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    standard = torch.special.ndtri(levels)
    standard = standard / standard.std(correction=0)
    f = mean + standard[:, None] * epistemic
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(1))
    std = torch.tensor([[noise]], dtype=torch.float64)
    return noisynat.Predictive(f[order].unsqueeze(-1), NormalNoise(std), RandomStream(0))


MEAN = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
STD = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def test_kl_divergence_of_gaussians() -> None:
    p, q = gaussian(MEAN, STD, 0.4), gaussian(MEAN + 0.3, 1.5 * STD, 0.6)
    v, w = STD**2 + 0.16, 2.25 * STD**2 + 0.36
    expected = 0.5 * (v / w + 0.09 / w - 1 + (w / v).log())
    torch.testing.assert_close(agreement.kl_divergence(p, q), expected, rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(agreement.kl_divergence(p, p), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_kl_divergence_from_a_normal_to_students_t() -> None:
    """One sample each: the integral is known to scipy. Noise is integrated out of both."""
    f = torch.zeros(1, 1, 1, dtype=torch.float64)
    p = noisynat.Predictive(f, NormalNoise(torch.tensor([[0.7]], dtype=torch.float64)), RandomStream(0))
    scale = torch.tensor([[0.5]], dtype=torch.float64)
    q = noisynat.Predictive(f + 0.2, StudentNoise(5.0, scale, joint=True), RandomStream(0))
    density, other = stats.norm(0, 0.7), stats.t(5, 0.2, 0.5)
    expected, _ = integrate.quad(lambda y: density.pdf(y) * (density.logpdf(y) - other.logpdf(y)), -7, 7)
    assert agreement.kl_divergence(p, q).item() == pytest.approx(expected, abs=1e-9)


def test_the_grid_resolves_narrow_noise_in_a_wide_mixture() -> None:
    """Two peaks, ten noise standard deviations apart on either side."""
    f = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
    p, q = (
        noisynat.Predictive(f, NormalNoise(torch.tensor([[std]], dtype=torch.float64)), RandomStream(0))
        for std in (0.1, 0.12)
    )
    expected = 0.5 * (0.1**2 / 0.12**2 - 1) + math.log(1.2)  # that of one peak: they do not overlap
    assert agreement.kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-6)


def test_wasserstein_distance_of_gaussians() -> None:
    """W2^2 = (difference of means)^2 + (difference of standard deviations)^2."""
    g = torch.Generator().manual_seed(0)
    first = torch.randn(100_000, 2, generator=g, dtype=torch.float64)
    second = torch.randn(100_000, 2, generator=g, dtype=torch.float64)
    scaled = second * torch.tensor([2.0, 0.5]) + torch.tensor([0.0, 1.0])
    expected = torch.tensor([1.0, math.hypot(1.0, 0.5)], dtype=torch.float64)
    torch.testing.assert_close(agreement.wasserstein(first, scaled), expected, rtol=0.01, atol=0)
    assert (agreement.wasserstein(first, second) < 0.03).all()


def test_the_table_of_gaussians() -> None:
    p, q = gaussian(MEAN, STD, 0.4), gaussian(MEAN + 0.5 * STD, 1.5 * STD, 0.6)
    result = agreement.compare(p, q)
    v, w = (STD**2 + 0.16).sqrt(), (2.25 * STD**2 + 0.36).sqrt()
    assert result.mean_distance == pytest.approx(0.5, rel=1e-3)
    assert result.epistemic_ratio == pytest.approx(1.5, rel=1e-3)
    assert result.total_ratio == pytest.approx((w / v).mean().item(), rel=1e-3)
    assert result.epistemic_correlation == result.total_correlation == 1.0
    distance = torch.sqrt((0.5 * STD) ** 2 + (w - v) ** 2).mean().item()
    assert result.wasserstein == pytest.approx(distance, rel=0.03)
    assert result.kl == pytest.approx(agreement.kl_divergence(p, q).mean().item())
    assert list(result.row()) == list(agreement.Agreement.__dataclass_fields__)


def test_rank_correlation_by_hand() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)) without ties."""
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    second = torch.tensor([10.0, 30.0, 20.0, 400.0])
    assert agreement.rank_correlation(first, second) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(agreement.rank_correlation(first, torch.ones(4)))


def test_ranks_of_the_epistemic_part_are_not_those_of_the_total() -> None:
    p, reversed_epistemic = gaussian(MEAN, STD, 0.4), gaussian(MEAN, STD.flip(0), 0.4)
    assert agreement.compare(p, reversed_epistemic, samples=100, grid=11).epistemic_correlation == -1.0
    noise = torch.tensor([[4.0], [2.0], [0.1]], dtype=torch.float64)  # of every point, so large that it decides
    reversed_total = noisynat.Predictive(p.samples, NormalNoise(noise), RandomStream(0))
    result = agreement.compare(p, reversed_total, samples=100, grid=11)
    assert (result.epistemic_correlation, result.total_correlation) == (1.0, -1.0)
    torch.manual_seed(0)
    assert result == agreement.compare(p, reversed_total, samples=100, grid=11)


def test_samples_of_float32_will_do() -> None:
    p, q = gaussian(MEAN, STD, 0.4), gaussian(MEAN + 0.3, 1.5 * STD, 0.6)
    single = noisynat.Predictive(q.samples.float(), NormalNoise(torch.tensor([[0.6]])), RandomStream(0))
    exact, rounded = agreement.kl_divergence(p, q), agreement.kl_divergence(p, single)
    np.testing.assert_allclose(rounded.numpy(), exact.numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 3, 2), (10, 4, 1), (10, 1, 3, 1)])
def test_predictions_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    std = torch.tensor([[0.4]], dtype=torch.float64)
    other = noisynat.Predictive(torch.randn(shape, dtype=torch.float64), NormalNoise(std), RandomStream(0))
    with pytest.raises(ValueError, match="one output at the same inputs"):
        agreement.compare(gaussian(MEAN, STD, 0.4), other)
