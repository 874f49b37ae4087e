"""A network as a Pyro model and guide: densities, the ELBO, predictions, minibatches."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from torch import Tensor, nn

import noisynat
from noisynat.interop.pyro import PyroNetwork
from noisynat.posteriors.families import STRUCTURES

N, STD = 30, 0.5


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=g, dtype=torch.float64)
    slope = torch.randn(3, outputs, generator=g, dtype=torch.float64)
    return x, 0.5 * x @ slope + STD * torch.randn(N, outputs, generator=g, dtype=torch.float64)


def network(structure: Any = "kronecker", likelihood: Any = None, outputs: int = 1, **settings: Any) -> Any:
    """A trained network of a few weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
    likelihood = likelihood or noisynat.GaussianLikelihood(STD)
    bnn = noisynat.VariationalNetwork(
        net,
        likelihood,
        noisynat.GaussianPrior(0.8, scale="fan_in"),
        structure,
        num_data=N,
        initial_precision=10.0,
        **settings,
    )
    x, y = data(outputs)
    natural = structure != "mean_field"
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.05) if natural else torch.optim.Adam(bnn.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (bnn.loss(x, y) if natural else bnn.negative_elbo(x, y)).backward()
        optimizer.step()
    return bnn


def pyro_elbo(p: PyroNetwork, x: Tensor, y: Tensor, *, particles: int = 1000, repeats: int = 5) -> tuple[float, float]:
    """Mean and standard error of Pyro's ELBO."""
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    values = torch.tensor([-elbo.loss(p.model, p.guide, x, y) for _ in range(repeats)])
    return values.mean().item(), values.std().item() / repeats**0.5


def assert_same_elbo(bnn: Any, x: Tensor, y: Tensor) -> None:
    ours = bnn.elbo(x, y, num_samples=4000)
    theirs, error = pyro_elbo(PyroNetwork(bnn), x, y)
    assert error < 0.25, error  # nats, of an ELBO of tens: the comparison means something
    assert theirs == pytest.approx(ours.total.item(), abs=5 * (error + float(ours.standard_error)) + 1e-9)


# --- the ELBO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_trace_elbo_is_our_elbo(structure: Any) -> None:
    assert_same_elbo(network(structure), *data())


@pytest.mark.parametrize("kl_weight", [0.2, 3.0])
def test_the_weight_of_the_kl(kl_weight: float) -> None:
    assert_same_elbo(network("dense", kl_weight=kl_weight), *data())


@pytest.mark.parametrize(("outputs", "precisions"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("noise", ["learned", "gamma"])
def test_noise_of_unknown_precision(noise: Any, outputs: int, precisions: int) -> None:
    likelihood = noisynat.GaussianLikelihood(noise, num_outputs=precisions)
    assert_same_elbo(network("kronecker", likelihood, outputs), *data(outputs))


def test_minibatches_are_scaled_to_the_training_set() -> None:
    """On average over a partition, the ELBO of its parts is that of the whole."""
    x, y = data()
    bnn = network("kronecker")
    p = PyroNetwork(bnn)
    parts = [pyro_elbo(p, *batch) for batch in zip(x.split(10), y.split(10), strict=True)]
    mean, error = np.mean([value for value, _ in parts]), np.linalg.norm([e for _, e in parts]) / len(parts)
    assert mean == pytest.approx(bnn.elbo(x, y, num_samples=4000).total.item(), abs=5 * error)
    whole, _ = pyro_elbo(p, x, y, particles=10)
    assert abs(parts[0][0] - whole) > 10 * error  # the parts do differ


def test_a_linear_model_at_its_posterior_has_the_log_evidence_for_elbo() -> None:
    """Then log p(y, w) - log q(w) is log p(y) whatever w is, so every single sample must give it."""
    x, y = data()
    eta, a = 0.8, torch.cat([x, torch.ones(N, 1, dtype=x.dtype)], 1)
    bnn = noisynat.VariationalNetwork(
        nn.Linear(3, 1).double(), noisynat.GaussianLikelihood(STD), noisynat.GaussianPrior(eta), "dense", num_data=N
    )
    covariance = torch.linalg.inv(a.T @ a / STD**2 + torch.eye(4, dtype=x.dtype) / eta)
    bnn.layers[0].mean.data = (covariance @ a.T @ y / STD**2).T
    q: Any = bnn.posteriors[0]
    q.curvature.averages["C"].value = a.T @ a / STD**2 / N
    q.refresh()
    torch.testing.assert_close(q.covariance(), covariance)
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(N, dtype=x.dtype), eta * a @ a.T + STD**2 * torch.eye(N, dtype=x.dtype)
    ).log_prob(y[:, 0])
    p = PyroNetwork(bnn)
    for _ in range(3):
        assert -Trace_ELBO().loss(p.model, p.guide, x, y) == pytest.approx(evidence.item(), abs=1e-8)


# --- the guide's density --------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_guide_has_the_density_of_q(structure: Any) -> None:
    """Also at values that it did not draw itself."""
    bnn = network(structure)
    p = PyroNetwork(bnn)
    trace = poutine.trace(p.guide).get_trace()
    trace.compute_log_prob()
    weights = torch.cat([trace.nodes[site]["value"].flatten() for site in p.weight_sites])
    blocks = [posterior.covariance() for posterior in bnn.posteriors]
    mean = torch.cat([layer.mean.detach().flatten() for layer in bnn.layers])
    q = torch.distributions.MultivariateNormal(mean, torch.block_diag(*blocks))
    torch.testing.assert_close(trace.log_prob_sum(), q.log_prob(weights), rtol=1e-8, atol=1e-8)

    sites = ["weights"] if structure == "dense" else p.weight_sites
    given = {site: (trace.nodes[site]["value"] + 0.1).clone() for site in sites}
    other = poutine.trace(poutine.condition(p.guide, given)).get_trace()
    torch.testing.assert_close(other.log_prob_sum(), q.log_prob(weights + 0.1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", ["dense", "matrix_normal"])
def test_the_guides_draws_have_the_moments_of_q(structure: Any) -> None:
    bnn = network(structure)
    p = PyroNetwork(bnn)
    draws = Predictive(p.guide, num_samples=4000, parallel=True)()
    weights = torch.cat([draws[site].flatten(1) for site in p.weight_sites], 1)
    covariance = torch.block_diag(*[posterior.covariance() for posterior in bnn.posteriors])
    mean = torch.cat([layer.mean.detach().flatten() for layer in bnn.layers])
    std = covariance.diagonal().sqrt()
    assert ((weights.mean(0) - mean) / std).abs().max() < 4.5 / 4000**0.5
    difference = torch.cov(weights.T) - covariance
    assert (difference / torch.outer(std, std)).abs().max() < 0.12


# --- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("outputs", "precisions"), [(1, 1), (2, 2)])
def test_predictive_samples_match_our_predictive(outputs: int, precisions: int, parallel: bool) -> None:
    likelihood = noisynat.GaussianLikelihood("gamma", num_outputs=precisions)
    bnn = network("dense", likelihood, outputs)
    p, count = PyroNetwork(bnn), 2000 if parallel else 300
    x = data()[0][:5]
    draws = Predictive(p.model, guide=p.guide, num_samples=count, parallel=parallel)(x)
    ours = bnn.predict(x, num_samples=20_000)
    assert draws["f"].shape == draws["y"].shape == (count, 5, outputs)
    assert draws["0.weight"].shape == (count, 1, 4, 4)  # Pyro's own: the 1 is the place of the data's plate
    assert draws["precision"].shape == (count, 1, precisions)
    for name, mean, variance in (
        ("f", ours.mean, ours.epistemic_variance),
        ("y", ours.mean, ours.variance),
    ):
        assert ((draws[name].mean(0) - mean) / variance.sqrt()).abs().max() < 4.5 / count**0.5, name
        assert (draws[name].var(0) / variance).log().abs().max() < 6 / count**0.5, name


def test_float32_networks_work() -> None:
    bnn = network("dense").float()
    p = PyroNetwork(bnn)
    draws = Predictive(p.model, guide=p.guide, num_samples=3)(torch.zeros(2, 3))
    assert draws["y"].dtype == torch.float32
    assert math.isfinite(Trace_ELBO().loss(p.model, p.guide, *(t.float() for t in data())))


def test_networks_that_do_not_carry_samples_work() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.outer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            f: Tensor = self.outer(x + torch.tanh(self.inner(x)))
            return f

    x, y = data()
    bnn = noisynat.VariationalNetwork(Skip().double(), noisynat.GaussianLikelihood(STD), num_data=N)
    p = PyroNetwork(bnn)
    assert Predictive(p.model, guide=p.guide, num_samples=7, parallel=True)(x)["f"].shape == (7, N, 1)
    assert math.isfinite(Trace_ELBO().loss(p.model, p.guide, x, y))


# --- the rules of the house -----------------------------------------------------------------------


def test_building_and_our_evaluation_leave_the_global_generators_alone() -> None:
    bnn = network()
    x, y = data()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    PyroNetwork(bnn)
    bnn.predict(x)
    bnn.elbo(x, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_guide_follows_pyros_seed_and_not_the_networks_stream() -> None:
    bnn = network("dense")
    p = PyroNetwork(bnn)
    state = bnn.evaluation_stream.state()
    assert state["position"] is None
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        draws.append(Predictive(p.model, guide=p.guide, num_samples=2)(data()[0])["y"])
    assert torch.equal(*draws)
    assert bnn.evaluation_stream.state() == state


def test_what_does_not_fit_is_refused() -> None:
    net = nn.Linear(3, 1).double()
    with pytest.raises(ValueError, match="2 replicas"):
        PyroNetwork(noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(STD), num_data=N, replicas=2))
    grouped = nn.Sequential(nn.LayerNorm(3).double(), net)
    with pytest.raises(ValueError, match="no posteriors by groups of outputs, as those of 0"):
        PyroNetwork(noisynat.VariationalNetwork(grouped, noisynat.GaussianLikelihood(STD), num_data=N))
    x, y = data()
    with pytest.raises(ValueError, match="unsqueeze"):
        PyroNetwork(network()).model(x, y[:, 0])


def test_without_pyro_the_module_imports_and_use_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['pyro'] = None\n"
        "import torch, noisynat, noisynat.interop.pyro as interop\n"
        "bnn = noisynat.VariationalNetwork(torch.nn.Linear(1, 1), noisynat.GaussianLikelihood(1.0), num_data=1)\n"
        "for use in (lambda: interop.PyroNetwork(bnn), lambda: interop.sample_nuts(bnn, None, None)):\n"
        "    try:\n"
        "        use()\n"
        "    except ImportError as error:\n"
        "        assert 'noisynat[pyro]' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('no error')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_importing_the_library_does_not_import_pyro() -> None:
    code = "import sys, noisynat, noisynat.interop.pyro; sys.exit('pyro' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
