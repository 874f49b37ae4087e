"""Bayesian linear regression: here the posterior, the evidence and every approximation have closed forms."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor, nn

import noisynat

STD = 0.5
TAU = 1 / STD**2


class Data(NamedTuple):
    """Inputs, targets, and the inputs with the bias's constant."""

    x: Tensor
    y: Tensor
    a: Tensor


def linear_data(n: int, outputs: int = 1, *, seed: int = 0) -> Data:
    """n examples with three correlated inputs."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.8], [0.0, 0.0, 0.6]], dtype=torch.float64)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64) @ mix
    noise = STD * torch.randn(n, outputs, generator=g, dtype=torch.float64)
    y = x @ torch.randn(3, outputs, generator=g, dtype=torch.float64) + 0.3 + noise
    return Data(x, y, torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1))


def exact_posterior(data: Data, eta: float, lam: float = 1.0, tau: float = TAU) -> tuple[Tensor, Tensor]:
    """Mean (K, 4) and covariance (4, 4), the same for every output, of exp(log-likelihood / lam) times the prior."""
    precision = tau / lam * data.a.T @ data.a + torch.eye(4, dtype=torch.float64) / eta
    covariance = torch.linalg.inv(precision)
    return (covariance @ data.a.T @ data.y * tau / lam).T, covariance


def log_evidence(data: Data, eta: float) -> Tensor:
    """log p(y), outputs independent."""
    n = len(data.y)
    covariance = eta * data.a @ data.a.T + STD**2 * torch.eye(n, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance)
    return marginal.log_prob(data.y.T).sum()


def network(data: Data, eta: float, posterior: Any = "kronecker", **settings: Any) -> noisynat.VariationalNetwork:
    """A linear model of the data with known noise."""
    settings.setdefault("likelihood", noisynat.GaussianLikelihood(noise=STD))
    return noisynat.VariationalNetwork(
        nn.Linear(3, data.y.shape[1]).double(),
        prior=noisynat.GaussianPrior(variance=eta),
        posterior=posterior,
        num_data=len(data.x),
        **settings,
    )


def train(
    bnn: noisynat.VariationalNetwork,
    data: Data,
    optimizer_class: type[noisynat.NoisyNaturalGradient] = noisynat.NoisyKFAC,
    *,
    steps: int = 300,
    lr: float = 0.5,
    **options: Any,
) -> None:
    """Full-batch natural gradient with cosine decay."""
    options = {"betas": (0.9, 0.9), "damping": 0.0, "kl_clip": None, "refresh_every": 1, **options}
    optimizer = optimizer_class(bnn, lr=lr, **options)
    schedule = noisynat.cosine_schedule(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        bnn.loss(data.x, data.y).backward()
        optimizer.step()
        schedule.step()


def assert_matches(
    bnn: noisynat.VariationalNetwork, mean: Tensor, covariance: Tensor, *, distance_below: float = 1e-2
) -> None:
    """Means within 1e-2 posterior standard deviations, covariance within 1% in the Frobenius norm."""
    distance = (bnn.layers[0].mean - mean) / covariance.diagonal().sqrt()
    assert distance.abs().max() < distance_below
    expected = torch.block_diag(*[covariance] * len(mean))
    assert (bnn.posteriors[0].covariance() - expected).norm() < 0.01 * expected.norm()


# --- the exact posterior ----------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [20, 200, 2000])
def test_kronecker_reaches_the_closed_form(n: int, eta: float) -> None:
    data = linear_data(n)
    bnn = network(data, eta)
    train(bnn, data)
    assert_matches(bnn, *exact_posterior(data, eta))
    assert abs(bnn.elbo(data.x, data.y).total - log_evidence(data, eta)) < 0.05


@pytest.mark.parametrize("noise", ["shared", "flipout", "per_example"])
def test_every_kind_of_noise_reaches_the_closed_form(noise: Any) -> None:
    data = linear_data(100)
    bnn = network(data, 1.0, noise=noise)
    train(bnn, data, steps=200, lr=0.2)
    assert_matches(bnn, *exact_posterior(data, 1.0), distance_below=0.05)


def test_eigen_corrected_reaches_the_closed_form() -> None:
    data = linear_data(100)
    bnn = network(data, 1.0, "eigen_corrected")
    train(bnn, data)
    assert_matches(bnn, *exact_posterior(data, 1.0))


class TwoParts(nn.Module):
    """A linear model in two layers side by side: of two inputs, and of the third with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 1, bias=False).double(), nn.Linear(1, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x[..., :2]) + self.b(x[..., 2:])


@pytest.mark.parametrize("structure", ["dense", "kronecker", "mean_field"])
def test_layers_with_priors_of_their_own_reach_the_closed_form(structure: Any) -> None:
    """The dense posterior is the exact one; the best that factorizes has its means and its precision's blocks."""
    data, lead = linear_data(30), 0.02
    bnn = noisynat.VariationalNetwork(
        TwoParts(), noisynat.GaussianLikelihood(STD), {"a": noisynat.GaussianPrior(lead)}, structure, num_data=30
    )
    if structure == "mean_field":
        optimizer = torch.optim.Adam(bnn.parameters(), lr=0.02)
        noisynat.fit(bnn, optimizer, [(data.x, data.y)], 4000, scheduler=noisynat.cosine_schedule(optimizer, 4000),
                     progress=False)  # fmt: skip
    else:
        train(bnn, data, noisynat.NoisyNaturalGradient)
    precision = TAU * data.a.T @ data.a + torch.tensor([1 / lead, 1 / lead, 1, 1], dtype=torch.float64).diag()
    mean = torch.linalg.solve(precision, TAU * data.a.T @ data.y)[:, 0]
    covariance = torch.linalg.inv(precision)
    if structure == "kronecker":
        covariance = torch.block_diag(torch.linalg.inv(precision[:2, :2]), torch.linalg.inv(precision[2:, 2:]))
    elif structure == "mean_field":
        covariance = (1 / precision.diagonal()).diag()
    found = torch.cat([layer.mean.flatten() for layer in bnn.layers])
    tolerance = 0.05 if structure == "mean_field" else 0.01
    assert ((found - mean) / covariance.diagonal().sqrt()).abs().max() < tolerance
    blocks = torch.block_diag(*[posterior.covariance() for posterior in bnn.posteriors])
    assert (blocks - covariance).norm() < tolerance * covariance.norm()


class OnFeatures(nn.Module):
    """A frozen body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 5).double(), nn.Linear(5, 1).double()
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


@pytest.mark.parametrize("structure", ["dense", "kronecker"])
def test_a_last_layer_posterior_is_linear_regression_on_the_features(structure: Any) -> None:
    data, net = linear_data(30), OnFeatures()
    features = net.body(data.x).tanh()
    bnn = noisynat.VariationalNetwork(
        net, noisynat.GaussianLikelihood(STD), posterior=structure, num_data=30, layers="head", init="weights"
    )
    train(bnn, data, noisynat.NoisyNaturalGradient)
    a = torch.cat([features, torch.ones(30, 1, dtype=torch.float64)], 1)
    covariance = torch.linalg.inv(TAU * a.T @ a + torch.eye(6, dtype=torch.float64))
    assert_matches(bnn, (TAU * covariance @ a.T @ data.y).T, covariance)
    assert torch.equal(bnn.net.body.weight, net.body.weight)
    assert [layer.name for layer in bnn.layers] == ["head"]


def test_minibatches_and_then_full_batches_reach_the_closed_form() -> None:
    data = linear_data(200)
    bnn = network(data, 1.0)
    optimizer = noisynat.NoisyKFAC(bnn, lr=0.05, damping=0)
    batches = noisynat.TensorBatches(data.x, data.y, batch_size=20)
    noisynat.fit(bnn, optimizer, batches, epochs=10, progress=False)
    train(bnn, data)
    assert_matches(bnn, *exact_posterior(data, 1.0))
    assert abs(bnn.elbo(data.x, data.y).total - log_evidence(data, 1.0)) < 0.05


def test_the_damping_of_the_step_does_not_change_where_it_ends() -> None:
    data = linear_data(100)
    bnn = network(data, 1.0)
    train(bnn, data, damping=1.0)
    assert_matches(bnn, *exact_posterior(data, 1.0))


@pytest.mark.parametrize("structure", ["dense", "dense_per_layer", "kronecker"])
def test_several_outputs_with_one_known_noise(structure: Any) -> None:
    data = linear_data(100, outputs=3)
    bnn = network(data, 1.0, structure)
    train(bnn, data, noisynat.NoisyNaturalGradient, steps=300)
    assert_matches(bnn, *exact_posterior(data, 1.0))
    assert abs(bnn.elbo(data.x, data.y).total - log_evidence(data, 1.0)) < 0.05


def test_float32_is_accurate_enough() -> None:
    data = linear_data(200)
    bnn = network(data, 1.0).float()
    train(bnn, Data(data.x.float(), data.y.float(), data.a.float()))
    assert_matches(bnn.double(), *exact_posterior(data, 1.0))


# --- the best factorized Gaussian -------------------------------------------------------------


def factorized_optimum(data: Data, eta: float) -> tuple[Tensor, Tensor]:
    """The exact mean, and the inverses of the diagonal of the exact precision (Bishop 2006, section 10.1.2)."""
    mean, covariance = exact_posterior(data, eta)
    return mean, torch.linalg.inv(covariance).diagonal().reciprocal()


@pytest.mark.parametrize("n", [20, 200])
def test_noisy_adam_reaches_the_best_factorized_gaussian(n: int) -> None:
    data = linear_data(n)
    bnn = network(data, 1.0, "diagonal")
    train(bnn, data, noisynat.NoisyAdam, lr=0.2, steps=400)
    mean, variances = factorized_optimum(data, 1.0)
    assert_matches(bnn, mean, torch.diag(variances))


def test_bayes_by_backprop_reaches_the_same_optimum() -> None:
    data = linear_data(50)
    bnn = network(data, 1.0, "mean_field")
    optimizer = torch.optim.Adam(bnn.parameters(), lr=0.05)
    schedule = noisynat.cosine_schedule(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        bnn.negative_elbo(data.x, data.y).backward()
        optimizer.step()
        schedule.step()
    mean, variances = factorized_optimum(data, 1.0)
    assert ((bnn.layers[0].mean - mean) / variances.sqrt()).abs().max() < 0.05
    torch.testing.assert_close(bnn.posteriors[0].variances()[0][0], variances, rtol=0.05, atol=0)


def test_factorizing_costs_evidence() -> None:
    data = linear_data(50)
    bnn = network(data, 1.0, "diagonal")
    train(bnn, data, noisynat.NoisyAdam, lr=0.2, steps=200)
    _, covariance = exact_posterior(data, 1.0)
    variances = factorized_optimum(data, 1.0)[1]
    gap = 0.5 * (variances.reciprocal().log().sum() - torch.linalg.inv(covariance).logdet())  # KL(q || exact)
    elbo = bnn.elbo(data.x, data.y, num_samples=4000).total
    torch.testing.assert_close(elbo, log_evidence(data, 1.0) - gap, rtol=0, atol=0.02)


# --- the laws of lambda, eta and N ------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.1, 0.5, 2.0])
def test_kl_weight_tempers_the_likelihood(lam: float) -> None:
    data = linear_data(100)
    bnn = network(data, 1.0, kl_weight=lam)
    train(bnn, data, steps=300)
    assert_matches(bnn, *exact_posterior(data, 1.0, lam))


def test_elbo_of_a_cold_posterior_weighs_the_kl() -> None:
    data = linear_data(100)
    bnn = network(data, 1.0, kl_weight=0.5)
    train(bnn, data)
    mean, covariance = exact_posterior(data, 1.0, 0.5)
    q = torch.distributions.MultivariateNormal(mean[0], covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    squares = (data.y - data.a @ mean.T).square().sum() + (data.a @ covariance @ data.a.T).trace()
    likelihood = 0.5 * (len(data.y) * math.log(TAU / (2 * math.pi)) - TAU * squares)
    expected = likelihood - 0.5 * torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(bnn.elbo(data.x, data.y).total, expected, rtol=0, atol=0.02)


def test_n_enters_as_the_number_of_examples() -> None:
    """Stating ten times as many examples gives the posterior of the data seen ten times."""
    data = linear_data(20)
    bnn = noisynat.VariationalNetwork(
        nn.Linear(3, 1).double(), noisynat.GaussianLikelihood(noise=STD), posterior="kronecker", num_data=200
    )
    train(bnn, data)
    assert_matches(bnn, *exact_posterior(Data(*(t.repeat(10, 1) for t in data)), 1.0))


@pytest.mark.parametrize("structure", ["kronecker", "matrix_normal", "eigen_corrected", "diagonal", "dense"])
def test_without_information_the_posterior_is_the_prior(structure: Any) -> None:
    eta, n = 0.3, 50
    bnn = noisynat.VariationalNetwork(
        nn.Linear(2, 2, bias=False).double(),
        noisynat.GaussianLikelihood(noise=STD),
        noisynat.GaussianPrior(variance=eta),
        posterior=structure,
        num_data=n,
        noise="per_example",
    )
    x, y = torch.zeros(n, 2).double(), torch.randn(n, 2).double()
    train(bnn, Data(x, y, x), noisynat.NoisyNaturalGradient)
    assert bnn.layers[0].mean.abs().max() < 1e-2 * eta**0.5
    expected = eta * torch.eye(4).double()
    torch.testing.assert_close(bnn.posteriors[0].covariance(), expected, rtol=1e-3, atol=1e-3 * eta)
    assert bnn.elbo(x, y).kl < 1e-3


def test_more_data_move_the_posterior_further_from_the_prior() -> None:
    divergences = []
    for n in (20, 200, 2000):
        data = linear_data(n)
        bnn = network(data, 1.0)
        train(bnn, data, steps=100)
        divergences.append(bnn.elbo(data.x, data.y).kl.item())
    assert divergences == sorted(divergences)


# --- noise of unknown precision ---------------------------------------------------------------


class CoordinateAscent(NamedTuple):
    """The fixed point of q(w) = N(m, S), q(tau) = Gamma(a, b)."""

    mean: np.ndarray
    covariance: np.ndarray
    a: float
    b: float

    def elbo(self, data: Data, eta: float, a0: float, b0: float) -> float:
        """The evidence lower bound, term by term."""
        x, y, d = data.a.numpy(), data.y.numpy()[:, 0], len(self.mean)
        squares = np.sum((y - x @ self.mean) ** 2) + np.trace(x @ self.covariance @ x.T)
        log_tau, tau = special.digamma(self.a) - np.log(self.b), self.a / self.b
        likelihood = 0.5 * (len(y) * (log_tau - np.log(2 * np.pi)) - tau * squares)
        moment = np.trace(self.covariance) + self.mean @ self.mean
        kl_w = 0.5 * (moment / eta - d + d * np.log(eta) - np.linalg.slogdet(self.covariance)[1])
        kl_tau = (
            (self.a - a0) * special.digamma(self.a)
            - special.gammaln(self.a)
            + special.gammaln(a0)
            + a0 * np.log(self.b / b0)
            + self.a * (b0 / self.b - 1)
        )
        return float(likelihood - kl_w - kl_tau)


def coordinate_ascent(data: Data, eta: float, a0: float, b0: float) -> CoordinateAscent:
    """By hand, in numpy (Bishop 2006, section 10.3)."""
    x, y = data.a.numpy(), data.y.numpy()[:, 0]
    a, b = a0 + len(y) / 2, b0 + len(y) / 2
    for _ in range(200):
        covariance = np.linalg.inv(a / b * x.T @ x + np.eye(x.shape[1]) / eta)
        mean = a / b * covariance @ x.T @ y
        b = b0 + 0.5 * (np.sum((y - x @ mean) ** 2) + np.trace(x @ covariance @ x.T))
    return CoordinateAscent(mean, covariance, a, b)


@pytest.mark.parametrize(("a0", "b0"), [(6.0, 6.0), (1.0, 0.001)])
def test_gamma_noise_reaches_the_fixed_point_of_coordinate_ascent(a0: float, b0: float) -> None:
    data, eta = linear_data(100), 1.0
    bnn = network(data, eta, likelihood=noisynat.GaussianLikelihood("gamma", a0=a0, b0=b0, step_size=0.04))
    train(bnn, data, steps=300, lr=0.3)
    expected = coordinate_ascent(data, eta, a0, b0)
    assert float(bnn.likelihood.shape) == expected.a
    assert float(bnn.likelihood.posterior_rate) == pytest.approx(expected.b, rel=0.01)
    mean, covariance = torch.tensor(expected.mean)[None], torch.tensor(expected.covariance)
    assert_matches(bnn, mean, covariance, distance_below=0.02)
    elbo = bnn.elbo(data.x, data.y).total.item()
    assert elbo == pytest.approx(expected.elbo(data, eta, a0, b0), abs=0.05)


def test_learned_noise_is_the_maximum_likelihood_point() -> None:
    """At the fixed point the variance is the expected mean squared residual under q."""
    data, eta = linear_data(100), 1.0
    bnn = network(data, eta, likelihood=noisynat.GaussianLikelihood("learned", step_size=0.04))
    train(bnn, data, steps=300, lr=0.3)
    variance = 1.0
    for _ in range(200):
        mean, covariance = exact_posterior(data, eta, tau=1 / variance)
        squares = (data.y - data.a @ mean.T).square().mean() + (data.a @ covariance @ data.a.T).trace() / 100
        variance = float(squares)
    assert float(bnn.likelihood.noise_std) ** 2 == pytest.approx(variance, rel=0.01)
