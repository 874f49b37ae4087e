"""NUTS: against closed forms, against our posteriors on a small network, and the life of its results."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.interop.log_joint import LogJoint
from noisynat.interop.nuts import _resumed, _seed, _starting_points
from noisynat.interop.nuts_posterior import Diagnostics
from noisynat.interop.pyro import NUTSPosterior, UnconvergedError, sample_nuts

STD, ETA = 0.5, 0.8


def linear_data(n: int = 25) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, 3), targets (n, 2), and the inputs with the bias's constant."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    x[:, 1] += 0.8 * x[:, 0]
    y = x @ torch.randn(3, 2, generator=g, dtype=torch.float64) + STD * torch.randn(n, 2, generator=g).double()
    return x, y, torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1)


def linear_network(likelihood: Any, outputs: int = 2, **settings: Any) -> noisynat.VariationalNetwork:
    return noisynat.VariationalNetwork(
        nn.Linear(3, outputs).double(), likelihood, noisynat.GaussianPrior(ETA), num_data=25, **settings
    )


def quick(network: noisynat.VariationalNetwork, x: Tensor, y: Tensor, **settings: Any) -> NUTSPosterior:
    settings = {"num_samples": 60, "warmup": 60, "chains": 2, "progress": False, **settings}
    return sample_nuts(network, x, y, **settings)


# --- closed forms ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed_noise() -> NUTSPosterior:
    x, y, _ = linear_data()
    network = linear_network(noisynat.GaussianLikelihood(STD))
    return sample_nuts(network, x, y, num_samples=400, warmup=100, chains=2, init="prior", progress=False)


def test_moments_of_bayesian_linear_regression(fixed_noise: NUTSPosterior) -> None:
    _, y, a = linear_data()
    covariance = torch.linalg.inv(a.T @ a / STD**2 + torch.eye(4, dtype=y.dtype) / ETA)
    mean = (covariance @ a.T @ y / STD**2).T
    weights = fixed_noise.weights.flatten(0, 1)
    expected, std = torch.block_diag(covariance, covariance), covariance.diagonal().sqrt().repeat(2)
    assert ((weights.mean(0) - mean.flatten()) / std).abs().max() < 0.2  # some 600 effective draws
    assert ((torch.cov(weights.T) - expected) / torch.outer(std, std)).abs().max() < 0.3


def test_predictive_of_bayesian_linear_regression(fixed_noise: NUTSPosterior) -> None:
    _, y, a = linear_data()
    covariance = torch.linalg.inv(a.T @ a / STD**2 + torch.eye(4, dtype=y.dtype) / ETA)
    at = torch.tensor([[0.0, 0.0, 0.0, 1.0], [3.0, -2.0, 1.0, 1.0]], dtype=y.dtype)
    variance = (at @ covariance * at).sum(-1, keepdim=True)
    mean = at @ covariance @ a.T @ y / STD**2
    prediction = fixed_noise.predict(at[:, :3])
    assert ((prediction.mean - mean).abs() / variance.sqrt()).max() < 0.2
    torch.testing.assert_close(prediction.epistemic_variance, variance.expand(2, 2), rtol=0.25, atol=0)
    torch.testing.assert_close(prediction.aleatoric_variance, torch.full_like(mean, STD**2))
    target = mean + 1.0
    exact = torch.distributions.Normal(mean, (variance + STD**2).sqrt()).log_prob(target).sum(-1)
    torch.testing.assert_close(prediction.log_prob(target), exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("precisions", [1, 2])
def test_unknown_noise_with_a_wide_prior_gives_the_students_t(precisions: int) -> None:
    """As the prior of the weights goes flat: tau ~ Gamma(a0 + (P - p)/2, b0 + RSS/2), w | tau ~ N(OLS, ./tau)."""
    x, y, a = linear_data()
    likelihood = noisynat.GaussianLikelihood("gamma", a0=2.0, b0=0.5, num_outputs=precisions)
    network = noisynat.VariationalNetwork(
        nn.Linear(3, 2).double(), likelihood, noisynat.GaussianPrior(1e6), num_data=25, initial_precision=100.0
    )
    reference = sample_nuts(network, x, y, num_samples=600, warmup=150, chains=1, progress=False)
    solution = torch.linalg.lstsq(a, y).solution
    squares = (y - a @ solution).square().sum(0)
    degrees = torch.tensor([25.0 - 4, 25 - 4], dtype=y.dtype)
    if precisions == 1:
        squares, degrees = squares.sum(0, keepdim=True), degrees.sum(0, keepdim=True)
    shape, rate = 2.0 + degrees / 2, 0.5 + squares / 2
    precision = reference.precision.flatten(0, 1)
    assert precision.shape == (600, precisions)
    std = shape.sqrt() / rate
    assert ((precision.mean(0) - shape / rate) / std).abs().max() < 0.2
    torch.testing.assert_close(precision.std(0), std, rtol=0.2, atol=0)
    variance = torch.linalg.inv(a.T @ a).diagonal() * (rate / (shape - 1)).expand(2)[:, None]  # (K, 4)
    weights = reference.weights.flatten(0, 1).unflatten(-1, (2, 4))
    assert ((weights.mean(0) - solution.T) / variance.sqrt()).abs().max() < 0.2
    torch.testing.assert_close(weights.var(0), variance, rtol=0.4, atol=0)


# --- a small network ------------------------------------------------------------------------------


def trained(
    bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor, *, lr: float, steps: int
) -> noisynat.VariationalNetwork:
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=lr, betas=(0.9, 0.95), damping=0.0)
    schedule = noisynat.cosine_schedule(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        bnn.loss(x, y).backward()
        optimizer.step()
        schedule.step()
    return bnn


def test_a_network_of_25_weights_against_our_dense_posterior() -> None:
    """Its first layer is frozen, so that the posterior is a Gaussian and ours is exact."""
    g = torch.Generator().manual_seed(0)
    x, at = (2 * torch.rand(n, 2, generator=g, dtype=torch.float64) - 1 for n in (80, 8))
    y = torch.sin(2 * x[:, :1]) * x[:, 1:] + 0.3 * torch.randn(80, 1, generator=g, dtype=torch.float64)
    torch.manual_seed(0)
    first = nn.Linear(2, 24).double().requires_grad_(False)
    first.weight.mul_(3)
    bnn = noisynat.VariationalNetwork(
        nn.Sequential(first, nn.Tanh(), nn.Linear(24, 1).double()),
        noisynat.GaussianLikelihood(0.3),
        noisynat.GaussianPrior(1.0, scale="fan_in"),
        "dense",
        num_data=80,
    )
    trained(bnn, x, y, lr=0.5, steps=300)
    reference = sample_nuts(bnn, x, y, num_samples=200, warmup=75, chains=2, check_at=at, progress=False)
    assert reference.converged, reference.summary()
    assert float(reference.r_hat().max()) < 1.01
    ours, exact = bnn.predict(at, 4000), reference.predict(at)
    std = exact.epistemic_variance.sqrt()
    assert ((ours.mean - exact.mean) / std).abs().max() < 0.2  # about 400 effective draws
    assert (ours.epistemic_variance.sqrt() / std).log().abs().max() < 0.15
    summary = reference.summary()
    assert summary["divergences"] == 0
    assert 100 < summary["ess_min"] <= summary["ess_median"]


@pytest.mark.slow
def test_a_network_of_two_hidden_units_against_our_dense_posterior() -> None:
    """Nine weights that the data know well: the posterior is nearly a Gaussian."""
    g = torch.Generator().manual_seed(0)
    x, at = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (400, 8))
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for parameter, values in zip(
            net.parameters(), ([1.0, 0.2, -0.3, 0.8], [0.3, -0.5], [1.0, -0.7], [0.1]), strict=True
        ):
            parameter.copy_(torch.tensor(values).reshape(parameter.shape))
        y = net(x) + 0.2 * torch.randn(400, 1, generator=g, dtype=torch.float64)
    bnn = noisynat.VariationalNetwork(
        net, noisynat.GaussianLikelihood(0.2), noisynat.GaussianPrior(1.0), "dense", num_data=400
    )
    trained(bnn, x, y, lr=0.1, steps=200)
    reference = sample_nuts(bnn, x, y, num_samples=300, warmup=150, chains=2, check_at=at, progress=False)
    ours, exact = bnn.predict(at, 4000), reference.predict(at, allow_unconverged=True)
    std = exact.epistemic_variance.sqrt()
    assert float(reference.r_hat().max()) < 1.05
    assert ((ours.mean - exact.mean) / std).abs().max() < 0.5
    assert (ours.epistemic_variance.sqrt() / std).log().abs().max() < 0.3


# --- the life of a result -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short() -> NUTSPosterior:
    x, y, _ = linear_data()
    return quick(linear_network(noisynat.GaussianLikelihood("gamma")), x, y)


def made_of(weights: Tensor, threshold: float = 1.01) -> NUTSPosterior:
    """A result with given weights of the linear network (chains, draws, 8)."""
    chains = len(weights)
    diagnostics = Diagnostics(1, 10, 0.8, 0, [0] * chains, [0.1] * chains, [1] * chains, [0.0] * chains)
    return NUTSPosterior(
        linear_network(noisynat.GaussianLikelihood(STD)),
        weights,
        torch.full((*weights.shape[:2], 1), STD**-2, dtype=torch.float64),
        linear_data()[0],
        diagnostics,
        torch.ones(chains, 8, dtype=torch.float64),
        threshold,
    )


def test_chains_that_disagree_cannot_be_used_by_accident() -> None:
    g = torch.Generator().manual_seed(0)
    agreed = torch.randn(2, 3000, 8, generator=g, dtype=torch.float64)
    assert made_of(agreed).converged
    made_of(agreed).predict(torch.ones(1, 3))
    apart = made_of(agreed + torch.tensor([0.0, 3.0], dtype=torch.float64)[:, None, None])
    assert not apart.converged
    with pytest.raises(UnconvergedError, match=r"largest R-hat is \d.*allow_unconverged"):
        apart.predict(torch.ones(1, 3))
    assert apart.predict(torch.ones(1, 3), allow_unconverged=True).samples.shape == (6000, 1, 2)
    assert apart.select([0]).converged
    assert made_of(apart.weights, threshold=10.0).converged


def test_r_hat_by_hand_and_the_spread() -> None:
    """The definition in Gelman et al. (2013), section 11.4, at one input."""
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 100, 8, generator=g, dtype=torch.float64)
    weights[0] *= 3.0
    result, at = made_of(weights), torch.ones(1, 3, dtype=torch.float64)
    f = result.functions(at)[..., 0, 0].numpy()
    halves = np.concatenate([f[:, :50], f[:, 50:]])
    within, between = halves.var(1, ddof=1).mean(), 50 * halves.mean(1).var(ddof=1)
    expected = np.sqrt((49 / 50 * within + between / 50) / within)
    assert result.r_hat(at)[0, 0].item() == pytest.approx(expected)
    assert result.r_hat(at, folded=True)[0, 0] > 1.1 > result.r_hat(at)[0, 0]


def test_effective_sample_size_of_an_autoregressive_chain() -> None:
    """rho = 0.8 leaves (1 - rho) / (1 + rho) of the draws."""
    g, rho = torch.Generator().manual_seed(0), 0.8
    noise = torch.randn(4, 3000, 8, generator=g, dtype=torch.float64)
    weights = noise.clone()
    for t in range(1, 3000):
        weights[:, t] = rho * weights[:, t - 1] + (1 - rho**2) ** 0.5 * noise[:, t]
    size = made_of(weights).effective_sample_size(torch.eye(3, dtype=torch.float64))
    assert size.shape == (3, 2)
    torch.testing.assert_close(size, torch.full_like(size, 12_000 / 9), rtol=0.25, atol=0)


def test_save_and_load(short: NUTSPosterior, tmp_path: Path) -> None:
    short.save(tmp_path / "reference.pt")
    loaded = NUTSPosterior.load(tmp_path / "reference.pt", linear_network(noisynat.GaussianLikelihood("gamma")))
    x = linear_data()[0]
    assert torch.equal(loaded.functions(x), short.functions(x))
    assert loaded.summary() == short.summary()
    assert loaded.diagnostics == short.diagnostics
    y = linear_data()[1]
    a, b = (p.predict(x, allow_unconverged=True).log_prob(y) for p in (loaded, short))
    assert torch.equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pt"]


def test_a_file_of_another_network_is_refused(short: NUTSPosterior, tmp_path: Path) -> None:
    short.save(tmp_path / "reference.pt")
    other = noisynat.VariationalNetwork(nn.Linear(3, 2), noisynat.GaussianLikelihood("gamma"), num_data=25)
    with pytest.raises(ValueError, match="prior variances"):
        NUTSPosterior.load(tmp_path / "reference.pt", other)
    with pytest.raises(ValueError, match="holds draws of 8 weights"):
        NUTSPosterior.load(tmp_path / "reference.pt", linear_network(noisynat.GaussianLikelihood("gamma"), 1))


def test_chains_go_on_where_they_stood(short: NUTSPosterior) -> None:
    x, y, _ = linear_data()
    network = linear_network(noisynat.GaussianLikelihood("gamma"))
    longer = quick(network, x, y, num_samples=40, resume=short)
    assert (longer.draws, longer.chains) == (100, 2)
    assert torch.equal(longer.weights[:, :60], short.weights)
    assert longer.diagnostics.step_sizes == short.diagnostics.step_sizes
    assert all(a > b for a, b in zip(longer.diagnostics.evaluations, short.diagnostics.evaluations, strict=True))
    again = quick(network, x, y, num_samples=40, resume=short)
    assert torch.equal(longer.weights, again.weights)
    assert not torch.equal(longer.weights[:, 60:100], short.weights[:, :40])
    assert len(longer.weights[0].unique(dim=0)) > 90  # new draws, not the old ones again
    for index in (0, 1):
        chain = _resumed(LogJoint(network, x, y), short, index, 40, seed=0, progress=False)
        assert torch.equal(chain.start, short.weights[index, -1])
        assert torch.equal(chain.inverse_mass, short.inverse_mass[index])
        assert (chain.index, chain.warmup, chain.drawn) == (index, 0, 60)
        assert chain.step_size == short.diagnostics.step_sizes[index]
    with pytest.raises(ValueError, match="draws of 8 weights, the network has 4"):
        quick(linear_network(noisynat.GaussianLikelihood("gamma"), 1), x, y[:, :1], resume=short)


def test_pooling_and_thinning(short: NUTSPosterior) -> None:
    x = linear_data()[0]
    f = short.functions(x)
    assert f.shape == (2, 60, 25, 2)
    whole = short.predict(x, allow_unconverged=True)
    assert torch.equal(whole.samples, f.flatten(0, 1))
    thinned = short.predict(x, 12, allow_unconverged=True)
    assert torch.equal(thinned.samples, f.flatten(0, 1)[::10])
    noise = 1 / short.precision.flatten(0, 1)[::10, 0]
    torch.testing.assert_close(thinned.aleatoric_variance, noise.mean().expand(25, 2))
    with pytest.raises(ValueError, match="at most the 120 draws"):
        short.predict(x, 121, allow_unconverged=True)


# --- random numbers -------------------------------------------------------------------------------


def test_the_seed_decides_and_the_global_generators_are_left_as_found() -> None:
    x, y, _ = linear_data()
    network = linear_network(noisynat.GaussianLikelihood("gamma"))
    state = {key: value.clone() for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    settings: dict[str, Any] = {"num_samples": 10, "warmup": 10}
    first, same, other = (quick(network, x, y, seed=seed, **settings) for seed in (0, 0, 1))
    first.predict(x, allow_unconverged=True).sample(3)
    first.summary()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002

    assert torch.equal(first.weights, same.weights)
    assert torch.equal(first.precision, same.precision)
    assert not torch.equal(first.weights, other.weights)
    assert not torch.equal(first.precision, other.precision)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())


def test_every_chain_and_part_of_a_chain_has_random_numbers_of_its_own() -> None:
    seeds = {
        _seed(seed, chain, drawn, purpose)
        for seed in range(5)
        for chain in range(5)
        for drawn in (0, 100)
        for purpose in ("chain", "noise", "start")
    }
    assert len(seeds) == 150
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.slow
def test_chains_in_processes_of_their_own_draw_the_same() -> None:
    x, y, _ = linear_data()
    network = linear_network(noisynat.GaussianLikelihood("gamma"))
    settings: dict[str, Any] = {"num_samples": 10, "warmup": 10}
    here, there = (quick(network, x, y, processes=processes, **settings) for processes in (1, 2))
    assert torch.equal(here.weights, there.weights)
    assert torch.equal(here.precision, there.precision)


@pytest.mark.parametrize("init", ["posterior", "prior"])
def test_where_chains_start(init: Any) -> None:
    """With so few steps and no data to speak of, chains are still near their start."""
    x, y, _ = linear_data()
    network = linear_network(noisynat.GaussianLikelihood(STD), posterior="dense")
    network.layers[0].mean.data.fill_(7.0)
    starts = _starting_points(LogJoint(network, x, y), 500, init, seed=0)
    std = network.posteriors[0].variances()[0].flatten().sqrt()
    mean, expected = (7.0, std) if init == "posterior" else (0.0, torch.full_like(std, ETA**0.5))
    assert ((starts.mean(0) - mean) / expected).abs().max() < 0.2
    torch.testing.assert_close(starts.std(0), expected, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 3}, "num_samples must be at least 4"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"chains": 0}, "chains must be at least 1"),
        ({"init": "mean"}, "'posterior' or 'prior'"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], message: str) -> None:
    x, y, _ = linear_data()
    with pytest.raises(ValueError, match=message):
        quick(linear_network(noisynat.GaussianLikelihood(STD)), x, y, **settings)


def test_progress_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    x, y, _ = linear_data()
    quick(linear_network(noisynat.GaussianLikelihood(STD)), x, y, num_samples=10, warmup=10, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("chain 1: warm-up 2/20, step size")
    assert lines[-1].startswith("chain 2: draws 20/20")
