"""The KL from the prior against torch.distributions, and the prior that empirical Bayes fits."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from noisynat import GaussianPrior
from noisynat.layers import VariationalLinear
from noisynat.posteriors import MeanFieldPosterior
from noisynat.random import RandomStream
from tests.curvature.cases import IN, OUT
from tests.posteriors.builders import (
    ETA,
    NATURAL,
    STRUCTURES,
    covariance,
    feed_two_layers,
    linear_network,
    mean_of,
    only_posterior,
    prior_of_two_layers,
    two_layers,
)

D = OUT * IN


def gaussian_kl(mean: Tensor, sigma: Tensor, eta: Tensor | float) -> Tensor:
    """KL(N(mean, sigma) || N(0, diag eta)) by torch.distributions."""
    prior = torch.as_tensor(eta, dtype=torch.float64).expand(len(mean)).diag()
    return kl_divergence(MultivariateNormal(mean, sigma), MultivariateNormal(torch.zeros_like(mean), prior))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kl_weight", [1.0, 0.1])
def test_kl_divergence(structure: str, kl_weight: float) -> None:
    network = linear_network(structure, kl_weight=kl_weight)
    expected = gaussian_kl(mean_of(network), covariance(structure, kl_weight=kl_weight), ETA)
    torch.testing.assert_close(only_posterior(network).kl_divergence(), expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_kl_divergence_of_replicas(structure: str) -> None:
    etas = [0.2, 3.0]
    network = linear_network(structure, 2, eta=etas, init=None)
    means = mean_of(network)
    assert not torch.equal(means[0], means[1])
    expected = [gaussian_kl(mean, covariance(structure, eta), eta) for mean, eta in zip(means, etas, strict=True)]
    torch.testing.assert_close(only_posterior(network).kl_divergence(), torch.stack(expected))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_kl_is_the_expected_log_ratio(structure: str) -> None:
    """Monte Carlo over the library's own draws: KL = E_q[log q - log p]."""
    network = linear_network(structure)
    mean, sigma = mean_of(network), covariance(structure)
    (weights,) = only_posterior(network).draw((20_000,), RandomStream(0))
    q = MultivariateNormal(mean, sigma)
    p = MultivariateNormal(torch.zeros(D).double(), ETA * torch.eye(D).double())
    ratio = (q.log_prob(weights.flatten(-2)) - p.log_prob(weights.flatten(-2))).detach()
    error = (ratio.mean() - only_posterior(network).kl_divergence()).abs()
    assert error <= 5 * ratio.std() / len(ratio) ** 0.5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_kl_divergence_is_differentiable_in_the_mean(structure: str) -> None:
    network = linear_network(structure)
    only_posterior(network).kl_divergence().backward()
    torch.testing.assert_close(network.layers[0].mean.grad, network.layers[0].mean.detach() / ETA)


def test_mean_field_kl_is_differentiable_in_log_std() -> None:
    network = linear_network("mean_field")
    posterior = only_posterior(network)
    posterior.kl_divergence().backward()
    variance = covariance("mean_field").diagonal().reshape(OUT, IN)
    torch.testing.assert_close(posterior.log_std.grad, variance / ETA - 1)


def test_mean_field_starts_as_wide_as_a_natural_posterior() -> None:
    layer = VariationalLinear(2, 3, dtype=torch.float64)
    settings = {"num_data": 5, "kl_weight": 1.0, "noise_mode": "auto", "structure": "mean_field"}
    posterior = MeanFieldPosterior(layer, GaussianPrior(2.0), initial_precision=3.0, **settings)
    expected = 1 / 5 / (3.0 + 1 / (5 * 2.0))
    torch.testing.assert_close(posterior.covariance(), expected * torch.eye(9).double())


@pytest.mark.parametrize("replicas", [None, 2])
def test_joint_kl_of_two_layers(replicas: int | None) -> None:
    network = two_layers(replicas)
    sigma = feed_two_layers(network)
    means = torch.cat([layer.mean.detach().flatten(-2) for layer in network.layers], dim=-1).reshape(-1, 11)
    expected = torch.stack([gaussian_kl(mean, sigma, prior_of_two_layers()) for mean in means])
    torch.testing.assert_close(only_posterior(network).kl_divergence(), expected.reshape(network.replicas))


# --- empirical Bayes ------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_empirical_bayes_sets_the_prior_variance_that_maximizes_the_elbo(structure: str) -> None:
    network = linear_network(structure)
    posterior = only_posterior(network)
    posterior.priors = (GaussianPrior("empirical_bayes"),) * len(posterior.layers)
    mean, sigma = mean_of(network), covariance(structure)
    posterior.fit_prior()
    eta = float(posterior.prior_variance)
    torch.testing.assert_close(eta, float((sigma.trace() + mean @ mean) / D))
    best = gaussian_kl(mean, sigma, eta)
    assert all(gaussian_kl(mean, sigma, factor * eta) > best for factor in (0.9, 1.1))


@pytest.mark.parametrize("structure", NATURAL)
def test_refresh_fits_the_prior_and_uses_it(structure: str) -> None:
    network = linear_network(structure)
    posterior = only_posterior(network)
    posterior.priors = (GaussianPrior("empirical_bayes"),) * len(posterior.layers)
    eta = float((covariance(structure).trace() + mean_of(network) @ mean_of(network)) / D)
    posterior.refresh()
    torch.testing.assert_close(posterior.covariance(), covariance(structure, eta))
    torch.testing.assert_close(
        posterior.kl_divergence(), gaussian_kl(mean_of(network), covariance(structure, eta), eta)
    )


def test_empirical_bayes_of_a_joint_posterior_is_per_layer_and_replica() -> None:
    network = two_layers(2)
    sigma = feed_two_layers(network)
    posterior = only_posterior(network)
    posterior.priors = (GaussianPrior("empirical_bayes"),) * len(posterior.layers)
    posterior.fit_prior()
    variances = sigma.diagonal()[:8].mean(), sigma.diagonal()[8:].mean()
    expected = [v + layer.mean.square().mean((-2, -1)) for v, layer in zip(variances, network.layers, strict=True)]
    torch.testing.assert_close(posterior.prior_variance, torch.stack(expected).detach())


def test_empirical_bayes_of_one_layer_leaves_the_other() -> None:
    network = two_layers(2)
    sigma = feed_two_layers(network)
    posterior = only_posterior(network)
    first, before = posterior.priors[0], posterior.prior_variance.clone()
    posterior.priors = (first, GaussianPrior("empirical_bayes"))
    posterior.fit_prior()
    expected = sigma.diagonal()[8:].mean() + network.layers[1].mean.square().mean((-2, -1))
    torch.testing.assert_close(posterior.prior_variance[1], expected.detach())
    assert torch.equal(posterior.prior_variance[0], before[0])


def test_fixed_priors_stay() -> None:
    posterior = only_posterior(linear_network("kronecker"))
    posterior.refresh()
    assert posterior.prior_variance.tolist() == [ETA]
