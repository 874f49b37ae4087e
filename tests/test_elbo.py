"""The evidence lower bound, part by part, against sums written by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, MultivariateNormal, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

import noisynat

N = 30


def make(noise: Any = 0.5, *, posterior: Any = "kronecker", steps: int = 5, **settings: Any) -> Any:
    """A small network trained for a few steps, and its data, in float64."""
    x, y = torch.randn(N, 3).double(), torch.randn(N, 2).double()
    bnn = noisynat.VariationalNetwork(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        noise if isinstance(noise, noisynat.Likelihood) else noisynat.GaussianLikelihood(noise),
        noisynat.GaussianPrior(variance=0.7),
        posterior=posterior,
        num_data=N,
        seed=0,
        **settings,
    )
    if bnn.is_natural:
        optimizer = noisynat.NoisyNaturalGradient(bnn, refresh_every=1)
        for _ in range(steps):
            optimizer.zero_grad()
            bnn.loss(x, y).backward()
            optimizer.step()
    return bnn, x, y


def brute_force(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor, samples: int) -> tuple[float, float]:
    """E_q[sum log N(y | f, sigma^2)] and its standard error, from functions drawn one by one."""
    sigma = bnn.likelihood.noise_std
    with torch.no_grad():
        functions = bnn.sample_functions(samples, generator=torch.Generator().manual_seed(1))
        values = torch.stack([Normal(f(x), sigma).log_prob(y).sum() for f in functions])
    return float(values.mean()), float(values.std() / samples**0.5)


@pytest.mark.parametrize("posterior", ["kronecker", "matrix_normal", "diagonal", "dense", "mean_field"])
def test_expected_log_likelihood_is_that_of_sampled_functions(posterior: Any) -> None:
    bnn, x, y = make(posterior=posterior)
    elbo = bnn.elbo(x, y, num_samples=2000)
    expected, error = brute_force(bnn, x, y, 500)
    assert abs(elbo.expected_log_likelihood - expected) < 4 * (error + elbo.standard_error)


def test_standard_error_tells_the_spread_of_estimates() -> None:
    bnn, x, y = make()
    elbos = [bnn.elbo(x, y, num_samples=40) for _ in range(100)]
    spread = torch.stack([elbo.expected_log_likelihood for elbo in elbos]).std()
    claimed = torch.stack([elbo.standard_error for elbo in elbos]).square().mean().sqrt()
    assert 0.7 < claimed / spread < 1.4


def test_expected_log_likelihood_with_gamma_noise_uses_digamma() -> None:
    """With weights all but known, only the precision's expectation is left."""
    bnn, x, y = make(noisynat.GaussianLikelihood("gamma", a0=3.0, b0=2.0), posterior="mean_field")
    with torch.no_grad():
        for posterior in bnn.posteriors:
            posterior.log_std.fill_(-30.0)
    a = torch.tensor(3.0 + N * 2 / 2, dtype=torch.float64)
    b = 2.0 + N * 2 / 2 * 1.0  # the running mean squared residual starts from initial_std = 1
    squares = (y - bnn.eval()(x)).square().sum()
    expected = 0.5 * (N * 2 * (torch.digamma(a) - math.log(b) - math.log(2 * math.pi)) - a / b * squares)
    bnn.loss(x, y)  # tells the likelihood the number of outputs
    torch.testing.assert_close(bnn.elbo(x, y).expected_log_likelihood, expected.detach())


def test_kl_of_the_noise_is_that_of_two_gammas() -> None:
    bnn, x, y = make(noisynat.GaussianLikelihood("gamma", a0=3.0, b0=2.0, num_outputs=2))
    likelihood = bnn.likelihood
    expected = kl_divergence(Gamma(likelihood.shape, likelihood.posterior_rate), Gamma(*torch.tensor([3.0, 2.0])))
    elbo = bnn.elbo(x, y, num_samples=2)
    torch.testing.assert_close(elbo.noise_kl, expected.double().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("posterior", ["kronecker", "matrix_normal", "eigen_corrected", "diagonal", "dense_per_layer"])
def test_kl_by_layer_is_that_of_two_multivariate_normals(posterior: Any) -> None:
    bnn, x, y = make(posterior=posterior)
    elbo = bnn.elbo(x, y, num_samples=2)
    assert list(elbo.kl_by_layer) == ["0", "2"]
    for layer, q, kl in zip(bnn.layers, bnn.posteriors, elbo.kl_by_layer.values(), strict=True):
        covariance = q.covariance().detach()
        prior = MultivariateNormal(torch.zeros(q.dim).double(), 0.7 * torch.eye(q.dim).double())
        mean = layer.mean.detach().flatten()
        torch.testing.assert_close(kl, kl_divergence(MultivariateNormal(mean, covariance), prior))


def test_kl_of_a_joint_posterior_covers_all_layers() -> None:
    bnn, x, y = make(posterior="dense")
    (q,) = bnn.posteriors
    mean = torch.cat([layer.mean.detach().flatten() for layer in bnn.layers])
    prior = MultivariateNormal(torch.zeros(q.dim).double(), 0.7 * torch.eye(q.dim).double())
    expected = kl_divergence(MultivariateNormal(mean, q.covariance().detach()), prior)
    elbo = bnn.elbo(x, y, num_samples=2)
    assert list(elbo.kl_by_layer) == ["0+2"]
    torch.testing.assert_close(elbo.kl, expected)


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_total_weighs_the_weights_kl_and_not_the_noises(kl_weight: float) -> None:
    bnn, x, y = make("gamma", kl_weight=kl_weight)
    elbo = bnn.elbo(x, y, num_samples=4)
    weights = sum(elbo.kl_by_layer.values())
    torch.testing.assert_close(elbo.kl, weights + elbo.noise_kl)
    expected = elbo.expected_log_likelihood - kl_weight * weights - elbo.noise_kl
    torch.testing.assert_close(elbo.total, expected)
    torch.testing.assert_close(elbo.per_datum, expected / N)


def test_a_cold_posterior_says_so() -> None:
    bnn, x, y = make(kl_weight=0.25)
    assert "kl_weight=0.25" in str(bnn.elbo(x, y, num_samples=2))
    assert "cold" not in str(make()[0].elbo(x, y, num_samples=2))


def test_a_loader_gives_what_tensors_give() -> None:
    bnn, x, y = make("gamma")
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    of_tensors = bnn.elbo(x, y, generator=torch.Generator().manual_seed(2))
    of_loader = bnn.elbo(loader, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(of_loader.total, of_tensors.total)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    bnn, x, y = make()
    whole = bnn.elbo(x, y, num_samples=6, generator=torch.Generator().manual_seed(2))
    parts = bnn.elbo(x, y, num_samples=6, generator=torch.Generator().manual_seed(2), batch_size=batch_size)
    torch.testing.assert_close(parts.total, whole.total)


def test_part_of_the_data_warns_and_is_scaled() -> None:
    bnn, x, y = make()
    twice = torch.cat([x[:10]] * 3), torch.cat([y[:10]] * 3)
    expected = bnn.elbo(*twice, generator=torch.Generator().manual_seed(2))
    with pytest.warns(UserWarning, match="num_data is 30"):
        scaled = bnn.elbo(x[:10], y[:10], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(scaled.total, expected.total)


def test_replicas_have_an_elbo_each() -> None:
    bnn, x, y = make("gamma", replicas=3, steps=3)
    elbo = bnn.elbo(x, y, num_samples=4)
    parts = [elbo.total, elbo.per_datum, elbo.expected_log_likelihood, elbo.kl, elbo.standard_error]
    assert all(part.shape == (3,) and part.dtype == torch.float64 for part in parts)
    assert "3 replicas" in str(elbo)


def test_never_above_the_evidence() -> None:
    """Of a linear model with a wrong mean and a wrong covariance."""
    x, y = torch.randn(N, 2).double(), torch.randn(N, 1).double()
    a = torch.cat([x, torch.ones(N, 1).double()], 1)
    evidence = MultivariateNormal(torch.zeros(N).double(), a @ a.T + 0.25 * torch.eye(N).double()).log_prob(y[:, 0])
    for posterior in ("kronecker", "diagonal", "mean_field"):
        bnn = noisynat.VariationalNetwork(
            nn.Linear(2, 1).double(), noisynat.GaussianLikelihood(0.5), posterior=posterior, num_data=N
        )
        elbo = bnn.elbo(x, y, num_samples=1000)
        assert elbo.total + 4 * elbo.standard_error < evidence


def test_the_same_generator_gives_the_same_number_and_the_own_stream_moves_on() -> None:
    bnn, x, y = make()
    first, second = (bnn.elbo(x, y, generator=torch.Generator().manual_seed(5)).total for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(bnn.elbo(x, y).total, bnn.elbo(x, y).total)
    twin = copy.deepcopy(bnn)
    assert torch.equal(bnn.elbo(x, y).total, twin.elbo(x, y).total)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
def test_few_samples_are_enough_for_a_finite_number(num_samples: int) -> None:
    bnn, x, y = make()
    elbo = bnn.elbo(x, y, num_samples=num_samples)
    assert torch.isfinite(elbo.total)
    assert torch.isfinite(elbo.standard_error)
