"""The log joint density: against the distributions it is made of, numerical integration and automatic gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

import noisynat
from noisynat.interop.log_joint import LogJoint

N = 12


def network(
    likelihood: Any, outputs: int = 1, net: nn.Module | None = None, **settings: Any
) -> noisynat.VariationalNetwork:
    torch.manual_seed(1)
    net = net or nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs))
    prior = settings.pop("prior", noisynat.GaussianPrior(0.7, scale="fan_in"))
    return noisynat.VariationalNetwork(net.double(), likelihood, prior, num_data=N, **settings)


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(N, 3, generator=g, dtype=torch.float64)
    return x, torch.randn(N, outputs, generator=g, dtype=torch.float64)


def weights_of(density: LogJoint) -> Tensor:
    return torch.randn(density.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def log_prior(density: LogJoint, weights: Tensor) -> Tensor:
    """By hand, of the network of this module: fan-in 3 and 4."""
    first, second = density.unpack(weights)
    zero = weights.new_zeros(())
    total = torch.distributions.Normal(zero, (zero + 0.7 / 3).sqrt()).log_prob(first).sum()
    return total + torch.distributions.Normal(zero, (zero + 0.7 / 4).sqrt()).log_prob(second).sum()


def outputs_of(density: LogJoint, weights: Tensor, x: Tensor) -> Tensor:
    first, second = density.unpack(weights)
    h = torch.relu(x @ first[:, :3].T + first[:, 3])
    return h @ second[:, :4].T + second[:, 4]


@pytest.mark.parametrize("outputs", [1, 2])
def test_fixed_noise(outputs: int) -> None:
    x, y = data(outputs)
    density = LogJoint(network(noisynat.GaussianLikelihood(0.3), outputs), x, y)
    weights = weights_of(density)
    f = outputs_of(density, weights, x)
    expected = log_prior(density, weights) + torch.distributions.Normal(f, 0.3).log_prob(y).sum()
    torch.testing.assert_close(density(weights), expected)
    torch.testing.assert_close(density.functions(weights[None], x)[0], f)


def test_convolutions_of_groups_and_normalizations() -> None:
    """Against the ordinary network, whose parameters are the vector's parts in PyTorch's own order."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 1)
    ).double()
    x, y = torch.randn(N, 2, 3, 3, dtype=torch.float64), torch.randn(N, 1, dtype=torch.float64)
    bnn = network(noisynat.GaussianLikelihood(0.3), net=net)
    density = LogJoint(bnn, x, y)
    weights = weights_of(density)
    kernels, norm, last = density.unpack(weights)
    parameters = {
        "0.weight": kernels[:, :-1].reshape(4, 1, 3, 3), "0.bias": kernels[:, -1],
        "1.weight": 1 + norm[:, 0], "1.bias": norm[:, 1], "4.weight": last[:, :-1], "4.bias": last[:, -1],
    }  # fmt: skip
    f = torch.func.functional_call(net, parameters, (x,))
    expected = torch.distributions.Normal(f, 0.3).log_prob(y).sum()
    for part, fan_in in ((kernels, 9), (norm, 1), (last, 36)):
        expected = expected + torch.distributions.Normal(0.0, (0.7 / fan_in) ** 0.5).log_prob(part).sum()
    torch.testing.assert_close(density(weights), expected)
    torch.testing.assert_close(density.functions(weights[None], x)[0], f)


@pytest.mark.parametrize(("outputs", "precisions"), [(1, 1), (2, 1), (2, 2)])
def test_gamma_noise_is_integrated_out(outputs: int, precisions: int) -> None:
    x, y = data(outputs)
    likelihood = noisynat.GaussianLikelihood("gamma", a0=2.0, b0=0.5, num_outputs=precisions)
    density = LogJoint(network(likelihood, outputs), x, y)
    weights = weights_of(density)
    f = outputs_of(density, weights, x)

    expected = float(log_prior(density, weights))
    for columns in [slice(None)] if precisions == 1 else [slice(0, 1), slice(1, 2)]:
        squares = float((y - f)[:, columns].square().sum())
        pairs = (y - f)[:, columns].numel()

        def integrand(tau: float, squares: float = squares, pairs: int = pairs) -> float:
            prior = 0.5**2.0 * tau * np.exp(-0.5 * tau)  # Gamma(2, 0.5)
            return float(prior * (tau / (2 * np.pi)) ** (pairs / 2) * np.exp(-tau * squares / 2) * 1e8)

        value, _ = integrate.quad(integrand, 0, 80, points=[0.1, 1.0, 5.0], epsabs=0, epsrel=1e-10, limit=200)
        expected += np.log(value) - np.log(1e8)
    assert float(density(weights)) == pytest.approx(expected, abs=1e-8)


def test_the_noise_precision_is_drawn_from_its_conditional() -> None:
    x, y = data(2)
    likelihood = noisynat.GaussianLikelihood("gamma", a0=2.0, b0=0.5, num_outputs=2)
    density = LogJoint(network(likelihood, 2), x, y)
    weights = weights_of(density)
    squares = (y - outputs_of(density, weights, x)).square().sum(0)
    drawn = density.noise_precision(weights.expand(20_000, -1), torch.Generator().manual_seed(0))
    a, b = 2.0 + N / 2, 0.5 + squares / 2
    torch.testing.assert_close(drawn.mean(0), a / b, rtol=0.02, atol=0)
    torch.testing.assert_close(drawn.var(0), a / b**2, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(3, 2),
        nn.Linear(3, 2, bias=False),
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2), nn.Tanh()),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)),
    ],
    ids=["linear", "no bias", "relu", "deep", "deep linear", "silu"],
)
@pytest.mark.parametrize("noise", [0.3, "gamma"])
def test_the_gradient_by_hand_is_that_of_autograd(net: nn.Module, noise: Any) -> None:
    x, y = data(2)
    density = LogJoint(network(noisynat.GaussianLikelihood(noise), net=net), x, y)
    weights = weights_of(density)
    value, gradient = density.value_and_gradient(weights)
    other_value, other = density._gradient_by_autograd(weights)
    torch.testing.assert_close(gradient + weights / density.prior_variance, other)
    assert torch.autograd.gradcheck(density, weights.requires_grad_(True))
    torch.testing.assert_close(density(weights), value)
    assert torch.isfinite(other_value)


def test_a_layer_used_twice_goes_by_autograd() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 1))
    x, y = data()
    density = LogJoint(network(noisynat.GaussianLikelihood(0.3), net=net), x, y)
    assert density.dim == 12 + 4
    assert torch.autograd.gradcheck(density, weights_of(density).requires_grad_(True))


def test_every_posterior_family_has_the_same_target() -> None:
    x, y = data()
    values = []
    for structure in ("dense", "diagonal", "mean_field"):
        density = LogJoint(network(noisynat.GaussianLikelihood("gamma"), posterior=structure), x, y)
        values.append(density(weights_of(density)))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 2}, "2 replicas"),
        ({"kl_weight": 0.5}, "cold posterior"),
        ({"prior": noisynat.GaussianPrior("empirical_bayes")}, "must be fixed"),
    ],
)
def test_what_has_no_exact_posterior_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogJoint(network(noisynat.GaussianLikelihood(0.3), **settings), *data())


def test_another_likelihood_is_refused() -> None:
    bnn = network(noisynat.HeteroscedasticGaussianLikelihood(), outputs=2)
    with pytest.raises(ValueError, match="got HeteroscedasticGaussianLikelihood"):
        LogJoint(bnn, *data())


def test_a_part_of_the_data_is_refused() -> None:
    x, y = data()
    with pytest.raises(ValueError, match=f"got {N - 1} examples, num_data is {N}"):
        LogJoint(network(noisynat.GaussianLikelihood(0.3)), x[1:], y[1:])
    with pytest.raises(ValueError, match="unsqueeze"):
        LogJoint(network(noisynat.GaussianLikelihood(0.3)), x, y[:, 0])
