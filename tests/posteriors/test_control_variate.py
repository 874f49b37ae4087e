"""The quadratic loss of a draw: zero on average, and exact for a linear-Gaussian model."""

import pytest
import torch
from torch import Tensor, nn

from noisynat import GaussianLikelihood, GaussianPrior, VariationalNetwork
from noisynat.random import RandomStream
from tests.curvature.cases import IN, OUT
from tests.posteriors.builders import (
    ETA,
    NATURAL,
    NUM_DATA,
    linear_network,
    only_posterior,
)

D = OUT * IN


@pytest.mark.parametrize("structure", NATURAL)
def test_quadratic_loss_has_mean_zero(structure: str) -> None:
    posterior = only_posterior(linear_network(structure, 2, eta=[0.5, 2.0]))
    losses = posterior.quadratic_loss(*posterior.draw_deviations((20_000,), RandomStream(0)))
    assert losses.shape == (20_000, 2)
    assert (losses.mean(0).abs() <= 5 * losses.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("kl_weight", [1.0, 0.2])
@pytest.mark.parametrize("structure", ["dense", "kronecker"])
def test_quadratic_loss_is_exact_for_a_linear_gaussian_model(structure: str, kl_weight: float) -> None:
    """What the log-likelihood of all data loses, averaged over a draw and its mirror image, less its expectation."""
    x, y = torch.randn(NUM_DATA, IN - 1).double(), torch.randn(NUM_DATA, OUT).double()
    network = VariationalNetwork(
        nn.Linear(IN - 1, OUT).double(), GaussianLikelihood(0.5), GaussianPrior(ETA), structure,
        num_data=NUM_DATA, kl_weight=kl_weight, initial_precision=0.0, seed=0,
    ).eval()  # fmt: skip
    posterior, mean = only_posterior(network), network.layers[0].mean.detach()
    posterior.curvature.statistics_due = True
    network.loss(x, y).backward()
    posterior.curvature.commit(0.0)
    posterior.refresh()
    (deviations,), norms = posterior.draw_deviations((50,), RandomStream(0))

    inputs = torch.cat([x, torch.ones(NUM_DATA, 1).double()], dim=-1)

    def log_likelihood(weight: Tensor) -> Tensor:
        f = inputs @ weight.mT
        return torch.distributions.Normal(f, 0.5).log_prob(y).sum((-2, -1))

    loss = log_likelihood(mean) - (log_likelihood(mean + deviations) + log_likelihood(mean - deviations)) / 2
    hessian = torch.kron(torch.eye(OUT).double(), inputs.T @ inputs) / 0.25
    sigma = torch.linalg.inv(hessian / kl_weight + torch.eye(D).double() / ETA)  # the cold posterior's
    torch.testing.assert_close(posterior.covariance(), sigma)
    expected = loss - (hessian @ sigma).trace() / 2
    torch.testing.assert_close(posterior.quadratic_loss([deviations], norms), expected)
