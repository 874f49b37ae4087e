"""A trained network's posterior in another, richer structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat


def trained(structure: Any = "kronecker", replicas: Any = None, **options: Any) -> noisynat.VariationalNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    likelihood = noisynat.GaussianLikelihood(noise="gamma", a0=1.0, b0=0.01)
    settings = {"num_data": 12, "seed": 0, **options}
    bnn = noisynat.VariationalNetwork(net, likelihood, posterior=structure, replicas=replicas, **settings)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    optimizer = noisynat.NoisyNaturalGradient(bnn, refresh_every=1)
    for _ in range(5):
        optimizer.zero_grad()
        bnn.loss(x, y).backward()
        optimizer.step()
    return bnn


def block_diagonal(bnn: noisynat.VariationalNetwork) -> Tensor:
    """The whole covariance, written out from its layers'."""
    blocks = [posterior.covariance() for posterior in bnn.posteriors]
    size = sum(block.shape[-1] for block in blocks)
    whole, start = torch.zeros(*bnn.replicas, size, size, dtype=torch.float64), 0
    for block in blocks:
        stop = start + block.shape[-1]
        whole[..., start:stop, start:stop] = block
        start = stop
    return whole


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "eigen_corrected", "dense_per_layer"])
@pytest.mark.parametrize("replicas", [None, (2, 2)])
def test_a_dense_posterior_starts_as_the_same_distribution(structure: Any, replicas: Any) -> None:
    bnn = trained(structure, replicas)
    full = bnn.with_posterior("dense")
    assert full.structure == "dense"
    assert len(full.posteriors) == 1
    torch.testing.assert_close(full.posteriors[0].covariance(), block_diagonal(bnn))
    for one, other in zip(full.layers, bnn.layers, strict=True):
        assert torch.equal(one.mean, other.mean)
    torch.testing.assert_close(full.posteriors[0].kl_divergence(), sum(p.kl_divergence() for p in bnn.posteriors))
    assert torch.equal(full.likelihood.noise_std, bnn.likelihood.noise_std)  # type: ignore[arg-type, operator]


def test_factored_damping_goes_over_without_it() -> None:
    """The factored form's curvature goes over, not its extra damping, so the posterior widens."""
    bnn = trained("matrix_normal")
    full = bnn.with_posterior("dense")

    curvature = bnn.posteriors[0].curvature  # type: ignore[attr-defined]
    a, s = curvature.averages["A"].value, curvature.averages["S"].value
    expected = torch.linalg.inv(torch.kron(s, a) + torch.eye(16) / 12) / 12
    torch.testing.assert_close(full.posteriors[0].covariance()[:16, :16], expected)


def test_layers_one_by_one() -> None:
    bnn = trained("kronecker")
    dense = bnn.with_posterior("dense_per_layer")
    for one, other in zip(dense.posteriors, bnn.posteriors, strict=True):
        torch.testing.assert_close(one.covariance(), other.covariance())


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "eigen_corrected"])
def test_the_curvature_is_the_latest_not_that_of_the_last_refresh(structure: Any) -> None:
    bnn = trained(structure)
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    optimizer = noisynat.NoisyNaturalGradient(bnn, refresh_every=100)
    optimizer.zero_grad()
    bnn.loss(x, y).backward()
    optimizer.step()
    before = block_diagonal(bnn)
    full = bnn.with_posterior("dense")
    for posterior in bnn.posteriors:
        posterior.refresh()  # type: ignore[attr-defined]
    assert not torch.allclose(before, block_diagonal(bnn))
    torch.testing.assert_close(full.posteriors[0].covariance(), block_diagonal(bnn))


@pytest.mark.parametrize("structure", ["kronecker", "matrix_normal", "eigen_corrected"])
def test_rounding_of_a_large_curvature_does_not_make_it_indefinite(structure: Any) -> None:
    """Factors of rank 3 with entries up to 1e3 in single precision, and a damping of 1e-4."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.1), posterior=structure, num_data=10_000)
    for posterior in bnn.posteriors:
        averages = posterior.curvature.averages  # type: ignore[attr-defined]
        for key in ("S", "A"):
            root = 20 * torch.randn(averages[key].value.shape[-1], 3)
            averages[key].value = root @ root.mT
        if "d" in averages:
            averages["d"].value[:, 1:] = 0.0
            averages["d"].value[:, 0] = 1e5
        posterior.refresh()  # type: ignore[attr-defined]
    full = bnn.with_posterior("dense")
    curvature = full.posteriors[0].curvature  # type: ignore[attr-defined]
    assert curvature.failures == 0
    smallest = torch.linalg.eigvalsh(curvature.averages["C"].value)[0]
    assert smallest > -1e-5  # of the damping 1e-4, a tenth


def test_a_dense_posterior_solves_in_the_networks_precision() -> None:
    """Its statistics are always double; the factor follows the network, also when that changes."""
    bnn = noisynat.VariationalNetwork(nn.Linear(3, 2), noisynat.GaussianLikelihood(0.1), posterior="dense", num_data=9)
    curvature = bnn.posteriors[0].curvature  # type: ignore[attr-defined]
    assert curvature.inverse.factor.dtype == torch.float32
    for dtype in (torch.float64, torch.float32):
        bnn.to(dtype)
        assert curvature.inverse.factor.dtype == dtype
        assert curvature.averages["C"].value.dtype == torch.float64


def test_networks_go_on_apart() -> None:
    bnn = trained("kronecker")
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    full = bnn.with_posterior("dense")
    x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    optimizer = noisynat.NoisyNaturalGradient(full)
    for _ in range(6):
        optimizer.zero_grad()
        full.loss(x, y).backward()
        optimizer.step()
    after = bnn.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not torch.equal(full.layers[0].mean, bnn.layers[0].mean)
    assert torch.isfinite(full.elbo(x, y).total)


def test_settings_go_over_and_may_be_changed() -> None:
    bnn = trained("kronecker", kl_weight=0.5, prior=noisynat.GaussianPrior(2.0))
    same, other = (
        bnn.with_posterior("dense"),
        bnn.with_posterior("dense", prior=noisynat.GaussianPrior(0.1), noise="shared"),
    )
    assert same.kl_weight == 0.5
    assert same.posteriors[0].prior_variance.unique().tolist() == [2.0]
    assert other.posteriors[0].prior_variance.unique().tolist() == [0.1]
    assert other.posteriors[0].noise_mode == "shared"
    same.kl_weight = 1.0
    assert bnn.kl_weight == 0.5


def test_a_fitted_prior_goes_over() -> None:
    bnn = trained("kronecker", prior=noisynat.GaussianPrior("empirical_bayes"))
    full = bnn.with_posterior("dense")
    fitted = torch.cat([posterior.prior_variance for posterior in bnn.posteriors])
    assert (fitted != 1).all()
    torch.testing.assert_close(full.posteriors[0].prior_variance, fitted)


def test_priors_of_layers_go_over_and_may_be_changed() -> None:
    bnn = trained("kronecker", prior={"0": noisynat.GaussianPrior(2.0), "*": noisynat.GaussianPrior(3.0)})
    assert bnn.with_posterior("dense").posteriors[0].prior_variance.tolist() == [2.0, 3.0]
    other = bnn.with_posterior("dense", prior={"0": noisynat.GaussianPrior(0.5)})
    assert other.posteriors[0].prior_variance.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("structure", "target"),
    [("kronecker", "diagonal"), ("mean_field", "dense"), ("dense", "kronecker"), ("dense", "dense_per_layer")],
)
def test_only_richer_structures_can_take_over(structure: Any, target: Any) -> None:
    bnn = trained("kronecker") if structure != "mean_field" else make_mean_field()
    bnn = bnn.with_posterior("dense") if structure == "dense" else bnn
    with pytest.raises(ValueError, match="'dense' or 'dense_per_layer'"):
        bnn.with_posterior(target)


def make_mean_field() -> noisynat.VariationalNetwork:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.1), posterior="mean_field", num_data=3)
