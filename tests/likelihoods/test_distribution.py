"""Likelihoods from torch distributions whose support is bounded: quantiles and intervals, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, LogNormal, Uniform

import noisynat
from noisynat.likelihoods import DistributionLikelihood
from noisynat.random import RandomStream

LAWS = {
    "exponential": (lambda f: Exponential((-f).exp()), lambda f: stats.expon(scale=np.exp(f))),
    "gamma": (lambda f: Gamma(3.0, (-f).exp()), lambda f: stats.gamma(3.0, scale=np.exp(f))),
    "lognormal": (lambda f: LogNormal(f, 0.5), lambda f: stats.lognorm(0.5, scale=np.exp(f))),
    "uniform": (lambda f: Uniform(f, f + 1), lambda f: stats.uniform(f, 1)),
}


def prediction(name: str, f: Tensor) -> noisynat.Predictive:
    class Likelihood(DistributionLikelihood):
        def distribution(self, f: Tensor) -> Distribution:
            return LAWS[name][0](f)

    return noisynat.Predictive(f, Likelihood().observation_model(), RandomStream(0))


@pytest.mark.parametrize("name", LAWS)
def test_cdf_is_zero_below_the_support_and_one_above(name: str) -> None:
    f, y = torch.randn(5, 9, 1).double(), torch.linspace(-10, 10, 9).double().unsqueeze(-1)
    expected = LAWS[name][1](f.numpy()).cdf(y.numpy()).mean(0)
    np.testing.assert_allclose(prediction(name, f).cdf(y).numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("q", [0.01, 0.5, 0.99])
def test_quantiles_are_the_roots_of_the_cdf(name: str, q: float) -> None:
    f = torch.randn(5, 2, 1).double()
    found = prediction(name, f).quantile(q)
    for n in range(2):
        law = LAWS[name][1](f[:, n, 0].numpy())
        root = optimize.brentq(lambda y, law=law: law.cdf(y).mean() - q, -10, 500, xtol=1e-12)
        assert float(found[n, 0]) == pytest.approx(root, rel=1e-6, abs=1e-8)
