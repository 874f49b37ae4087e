"""The Gaussian likelihood with fixed, learned and gamma-distributed noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor
from torch.distributions import Gamma, Normal, kl_divergence

import noisynat
from noisynat.random import RandomStream

N = 40
KINDS = [0.3, "learned", "gamma"]


def bound(noise: Any, replicas: tuple[int, ...] = (), **settings: Any) -> noisynat.GaussianLikelihood:
    """A likelihood of N examples in float64."""
    likelihood = noisynat.GaussianLikelihood(noise, **settings)
    likelihood.bind(N, torch.Size(replicas), torch.float64)
    return likelihood


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets."""
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


# --- density ----------------------------------------------------------------------------------


def test_fixed_noise_is_a_standard_deviation() -> None:
    f, y = pair(5, 2)
    torch.testing.assert_close(bound(0.3).log_prob(f, y), Normal(f, 0.3).log_prob(y).sum(-1))


def test_learned_noise_starts_from_its_initial_std() -> None:
    f, y = pair(5, 2)
    torch.testing.assert_close(bound("learned", initial_std=0.6).log_prob(f, y), Normal(f, 0.6).log_prob(y).sum(-1))


def test_gamma_noise_takes_the_expectation_over_the_precision() -> None:
    """E_q[log N(y | f, 1 / tau)], by the formula and by sampling tau."""
    f, y = pair(5, 1)
    likelihood = bound("gamma", a0=2.0, b0=3.0, initial_std=0.5)
    a, b = 2 + N / 2, 3 + N / 2 * 0.25
    squares = (y - f).square()[:, 0]
    expected = 0.5 * (special.digamma(a) - math.log(b) - math.log(2 * math.pi) - a / b * squares)
    torch.testing.assert_close(likelihood.log_prob(f, y), expected)
    tau = Gamma(a, b).sample((100_000,)).double()
    sampled = Normal(f, tau.rsqrt()).log_prob(y).mean(-1)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=0.02)


def test_one_precision_serves_all_outputs() -> None:
    """K outputs are K N residuals."""
    f, y = pair(5, 3)
    likelihood = bound("gamma", a0=2.0, b0=3.0)
    likelihood.log_prob(f, y)
    assert float(likelihood.shape) == 2 + 3 * N / 2
    torch.testing.assert_close(likelihood.posterior_rate, torch.tensor([3 + 3 * N / 2]).double())


def test_every_output_may_have_its_own_precision() -> None:
    f, y = pair(5, 2)
    likelihood = bound("learned", num_outputs=2)
    likelihood.residual.copy_(torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(likelihood.precision, torch.tensor([4.0, 0.25]).double())
    expected = Normal(f, torch.tensor([0.5, 2.0]).double()).log_prob(y).sum(-1)
    torch.testing.assert_close(likelihood.log_prob(f, y), expected)


def test_replicas_have_their_own_precision() -> None:
    f, y = pair(2, 5, 1)
    likelihood = bound("learned", (2,))
    likelihood.residual.copy_(torch.tensor([[0.25], [4.0]]))
    expected = torch.stack([Normal(f[r], std).log_prob(y[r]).sum(-1) for r, std in enumerate((0.5, 2.0))])
    torch.testing.assert_close(likelihood.log_prob(f, y), expected)


@pytest.mark.parametrize(("noise", "num_outputs"), [(0.3, 1), ("learned", 1), ("learned", 3), ("gamma", 3)])
def test_hessian_root_squares_to_minus_the_hessian(noise: Any, num_outputs: int) -> None:
    f, y = pair(4, 3)
    likelihood = bound(noise, num_outputs=num_outputs)
    if noise != 0.3:
        likelihood.residual.copy_(0.5 + torch.rand(num_outputs))
    likelihood.log_prob(f, y)
    root = likelihood.hessian_root(f)
    assert root.shape == (3, 4, 3)
    for n in range(4):
        hessian = torch.autograd.functional.hessian(
            lambda z, n=n: likelihood.log_prob(z[None], y[n : n + 1]).sum(), f[n]
        )
        torch.testing.assert_close(torch.einsum("ki,kj->ij", root[:, n], root[:, n]), -hessian)


def test_hessian_root_with_replicas() -> None:
    likelihood = bound("learned", (2,))
    likelihood.residual.copy_(torch.tensor([[0.25], [4.0]]))
    root = likelihood.hessian_root(pair(2, 4, 1)[0])
    torch.testing.assert_close(root, torch.tensor([2.0, 0.5]).double().reshape(1, 2, 1, 1).expand(1, 2, 4, 1))


def test_samples_have_the_noises_standard_deviation() -> None:
    f = torch.full((50_000, 2), 3.0).double()
    y = bound(0.3).sample(f, RandomStream(0))
    torch.testing.assert_close(y.std(0), torch.full((2,), 0.3).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(y.mean(0), f[0], rtol=0, atol=0.01)


# --- inference of the noise -------------------------------------------------------------------


def test_gammas_rate_moves_by_the_natural_step() -> None:
    """b <- (1 - rho) b + rho (b0 + N/2 mean (y - f)^2), whatever the batch's size."""
    likelihood = bound("gamma", a0=2.0, b0=3.0, step_size=0.1)
    b = 3 + N / 2
    for size in (5, 11, 1):
        f, y = pair(size, 1)
        likelihood.observe(f, y)
        likelihood.natural_step()
        b = 0.9 * b + 0.1 * (3 + N / 2 * float((y - f).square().mean()))
        assert float(likelihood.posterior_rate) == pytest.approx(b)


def test_micro_batches_are_one_batch() -> None:
    f, y = pair(9, 2)
    whole, parts = bound("gamma", num_outputs=2), bound("gamma", num_outputs=2)
    whole.observe(f, y)
    for start, end in ((0, 2), (2, 9)):
        parts.observe(f[start:end], y[start:end])
    whole.natural_step()
    parts.natural_step()
    torch.testing.assert_close(parts.residual, whole.residual)


def test_what_was_forgotten_does_not_count() -> None:
    likelihood = bound("gamma")
    likelihood.observe(*pair(5, 1))
    likelihood.forget()
    likelihood.natural_step()
    assert float(likelihood.residual) == 1.0


def test_fixed_noise_stays_fixed() -> None:
    likelihood = bound(0.3)
    likelihood.observe(*pair(5, 1))
    likelihood.natural_step()
    torch.testing.assert_close(likelihood.noise_std, torch.tensor([0.3]).double())


def test_learned_noise_converges_to_the_residual_variance() -> None:
    f, y = pair(N, 2)
    likelihood = bound("learned", num_outputs=2, step_size=0.1)
    for _ in range(300):
        likelihood.observe(f, y)
        likelihood.natural_step()
    torch.testing.assert_close(likelihood.noise_std.square(), (y - f).square().mean(0))


def test_gamma_converges_to_its_conjugate_posterior() -> None:
    f, y = pair(N, 1)
    likelihood = bound("gamma", a0=2.0, b0=3.0, step_size=0.1)
    for _ in range(300):
        likelihood.observe(f, y)
        likelihood.natural_step()
    assert float(likelihood.shape) == 2 + N / 2
    assert float(likelihood.posterior_rate) == pytest.approx(3 + 0.5 * float((y - f).square().sum()))


def test_infinite_residuals_are_skipped() -> None:
    likelihood = bound("gamma", (2,))
    f, y = pair(2, 5, 1)
    f[1] = torch.inf
    likelihood.observe(f, y)
    likelihood.natural_step()
    assert float(likelihood.residual[1]) == 1.0
    assert float(likelihood.residual[0]) != 1.0


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_kl_is_that_of_two_gammas(num_outputs: int) -> None:
    likelihood = bound("gamma", (3,), a0=2.0, b0=0.5, num_outputs=num_outputs)
    likelihood.residual.copy_(0.1 + torch.rand(3, num_outputs))
    likelihood.log_prob(*pair(3, 4, 2))
    prior = Gamma(torch.tensor(2.0).double(), torch.tensor(0.5).double())
    expected = kl_divergence(Gamma(likelihood.shape, likelihood.posterior_rate), prior).sum(-1)
    torch.testing.assert_close(likelihood.kl(torch.Size((3,))), expected)


@pytest.mark.parametrize("noise", [0.3, "learned"])
def test_a_point_estimate_has_no_kl(noise: Any) -> None:
    assert torch.equal(bound(noise, (3,)).kl(torch.Size((3,))), torch.zeros(3).double())


# --- the predictive ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_gammas_predictive_integrates_the_precision_out(num_outputs: int) -> None:
    likelihood = bound("gamma", a0=2.0, b0=3.0, num_outputs=num_outputs)
    f, y = pair(4, 2)
    likelihood.log_prob(f, y)
    a, b = likelihood.shape.item(), likelihood.posterior_rate
    tau = torch.from_numpy(np.random.default_rng(0).gamma(a, 1, (200_000, 1, num_outputs))) / b
    density = Normal(f, tau.rsqrt()).log_prob(y).sum(-1)
    expected = torch.logsumexp(density, 0) - math.log(200_000)
    torch.testing.assert_close(likelihood.observation_model().log_prob(f, y), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("noise", KINDS)
def test_an_observation_model_is_frozen(noise: Any) -> None:
    likelihood = bound(noise)
    f, y = pair(4, 1)
    model = likelihood.observation_model()
    before = model.log_prob(f, y)
    for _ in range(5):
        likelihood.observe(f, y + 10)
        likelihood.natural_step()
    torch.testing.assert_close(model.log_prob(f, y), before)


# --- bad arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, -1.0, math.nan, math.inf])
def test_a_standard_deviation_is_positive_and_finite(noise: float) -> None:
    with pytest.raises(ValueError, match="noise must be positive"):
        noisynat.GaussianLikelihood(noise)


def test_unknown_noise_names_the_known() -> None:
    with pytest.raises(ValueError, match="'learned' or 'gamma', got 'beta'"):
        noisynat.GaussianLikelihood("beta")


@pytest.mark.parametrize("settings", [{"a0": 0}, {"b0": -1}, {"step_size": 0}, {"step_size": 1.5}, {"num_outputs": 0}])
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        noisynat.GaussianLikelihood("gamma", **settings)


def test_targets_without_the_output_dimension_raise() -> None:
    with pytest.raises(ValueError, match=r"use y.unsqueeze\(-1\)"):
        bound(0.3).check_targets(torch.zeros(5, 1), torch.zeros(5))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_targets_of_another_dtype_raise(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"expected torch\.float64"):
        bound(0.3).check_targets(torch.zeros(5, 1).double(), torch.zeros(5, 1, dtype=dtype))


def test_the_number_of_precisions_must_fit_the_outputs() -> None:
    f, y = pair(5, 2)
    with pytest.raises(ValueError, match="num_outputs=3, the network 2"):
        bound("learned", num_outputs=3).check_targets(f, y)
