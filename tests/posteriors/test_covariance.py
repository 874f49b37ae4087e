"""Sigma = (lambda / N) (C + gamma I)^-1 with gamma = lambda / (N eta), against dense algebra."""

import pytest
import torch

from noisynat.random import RandomStream
from tests.posteriors.builders import (
    ETA,
    KL_WEIGHT,
    NATURAL,
    NUM_DATA,
    STRUCTURES,
    covariance,
    feed_two_layers,
    linear_network,
    only_posterior,
    two_layers,
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_covariance_by_dense_algebra(structure: str) -> None:
    posterior = only_posterior(linear_network(structure))
    torch.testing.assert_close(posterior.covariance(), covariance(structure))
    torch.testing.assert_close(posterior.variances()[0].flatten(), covariance(structure).diagonal())


@pytest.mark.parametrize("structure", NATURAL)
@pytest.mark.parametrize(("eta", "kl_weight", "num_data"), [(0.1, 1.0, 7), (20.0, 0.05, 1000)])
def test_covariance_follows_prior_weight_and_data(structure: str, eta: float, kl_weight: float, num_data: int) -> None:
    posterior = only_posterior(linear_network(structure, eta=eta, kl_weight=kl_weight, num_data=num_data))
    torch.testing.assert_close(posterior.covariance(), covariance(structure, eta, kl_weight, num_data))


@pytest.mark.parametrize("structure", NATURAL)
def test_covariance_of_replicas_with_their_own_priors(structure: str) -> None:
    etas = [0.1, 1.0, 5.0]
    posterior = only_posterior(linear_network(structure, 3, eta=etas))
    torch.testing.assert_close(posterior.covariance(), torch.stack([covariance(structure, eta) for eta in etas]))


@pytest.mark.parametrize("structure", NATURAL)
def test_kl_weight_redamps_at_once(structure: str) -> None:
    network = linear_network(structure)
    network.kl_weight = 0.02
    torch.testing.assert_close(only_posterior(network).covariance(), covariance(structure, kl_weight=0.02))


def test_kl_weight_leaves_mean_field_alone() -> None:
    network = linear_network("mean_field")
    network.kl_weight = 0.02
    torch.testing.assert_close(only_posterior(network).covariance(), covariance("mean_field"))
    assert only_posterior(network).kl_weight == 0.02


# --- a joint posterior of two layers --------------------------------------------------------------


@pytest.mark.parametrize("locations", [1, 2])
@pytest.mark.parametrize("replicas", [None, 2])
def test_joint_posterior_of_two_layers(replicas: int | None, locations: int) -> None:
    network = two_layers(replicas)
    expected = feed_two_layers(network, locations)
    posterior = only_posterior(network)
    torch.testing.assert_close(posterior.covariance(), expected.expand(*network.replicas, 11, 11))
    first, second = posterior.variances()
    torch.testing.assert_close(first.flatten(-2), expected.diagonal()[:8].expand(*network.replicas, 8))
    torch.testing.assert_close(second.flatten(-2), expected.diagonal()[8:].expand(*network.replicas, 3))


def test_draws_of_a_joint_posterior_are_correlated_over_layers() -> None:
    network = two_layers()
    expected = feed_two_layers(network)
    deviations, norms = only_posterior(network).draw_deviations((20_000,), RandomStream(0))
    flat = torch.cat([deviation.flatten(-2) for deviation in deviations], dim=-1)
    variance = expected.diagonal()
    error = (flat.T @ flat / len(flat) - expected).abs()
    assert (error <= 5 * (2 * torch.outer(variance, variance) / len(flat)).sqrt()).all()
    torch.testing.assert_close(norms, torch.einsum("si,ij,sj->s", flat, torch.linalg.inv(expected), flat))


def test_pack_and_unpack_are_inverse() -> None:
    network = two_layers(2)
    posterior, weights = only_posterior(network), [layer.mean.detach() for layer in network.layers]
    packed = posterior.pack(weights)
    assert packed.shape == (2, 1, 11)
    assert all(torch.equal(one, two) for one, two in zip(posterior.unpack(packed), weights, strict=True))


def test_prior_precisions_are_those_of_the_layers() -> None:
    """gamma = lambda / (N eta), with eta = ETA / in of each layer."""
    found = only_posterior(two_layers()).prior_precisions()
    assert found.shape == (2, 1, 1)
    assert found.flatten().tolist() == pytest.approx([KL_WEIGHT / (NUM_DATA * ETA / inputs) for inputs in (3, 2)])


def test_name_and_dim() -> None:
    posterior = only_posterior(two_layers())
    assert posterior.name == "0+2"
    assert posterior.dim == 11
