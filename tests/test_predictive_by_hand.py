"""Every attribute of a prediction in float64, against loops over samples, inputs and outputs with numpy and scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor, nn

import noisynat
from noisynat.likelihoods.discrete import Classes
from noisynat.likelihoods.observation import NormalNoise
from noisynat.random import RandomStream

SAMPLES, INPUTS, OUTPUTS = 4, 3, 2
STD = np.array([0.4, 0.9])
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
generator = np.random.default_rng(0)
F = 2 * generator.normal(size=(SAMPLES, INPUTS, OUTPUTS))
Y = generator.normal(size=(INPUTS, OUTPUTS))

NUMBERS = noisynat.Predictive(
    torch.as_tensor(F), NormalNoise(torch.as_tensor(STD).unsqueeze(0)), RandomStream(0), torch.as_tensor(WEIGHTS)
)
CLASSES = noisynat.Predictive(torch.as_tensor(F), Classes(), RandomStream(0), torch.as_tensor(WEIGHTS))


def at_every_output(value: Callable[[int, int], Any]) -> np.ndarray:
    """A function of input and output at all of them, (N, K, ...)."""
    return np.array([[value(n, k) for k in range(OUTPUTS)] for n in range(INPUTS)])


def density(y: float, n: int, k: int) -> float:
    return sum(w * stats.norm.pdf(y, F[s, n, k], STD[k]) for s, w in enumerate(WEIGHTS))


def distribution_function(y: float, n: int, k: int) -> float:
    return sum(w * stats.norm.cdf(y, F[s, n, k], STD[k]) for s, w in enumerate(WEIGHTS))


def mean(n: int, k: int) -> float:
    return sum(w * F[s, n, k] for s, w in enumerate(WEIGHTS))


def spread(n: int, m: int, k: int) -> float:
    return sum(w * (F[s, n, k] - mean(n, k)) * (F[s, m, k] - mean(m, k)) for s, w in enumerate(WEIGHTS))


def quantile(q: float) -> np.ndarray:
    return at_every_output(lambda n, k: optimize.brentq(lambda y: distribution_function(y, n, k) - q, -20, 20))


def mode(n: int, k: int) -> float:
    """The highest of the summits around every component's mean."""
    around = [(f - STD[k], f + STD[k]) for f in F[:, n, k]]
    summits = [
        optimize.minimize_scalar(lambda y: -density(y, n, k), bounds=ends, method="bounded", options={"xatol": 1e-9})
        for ends in around
    ]
    return float(min(summits, key=lambda found: found.fun).x)


def entropy(n: int, k: int) -> float:
    def part(y: float) -> float:
        p = density(y, n, k)
        return -p * np.log(p) if p > 0 else 0.0

    ends = np.sort(F[:, n, k])
    return float(integrate.quad(part, ends[0] - 12, ends[-1] + 12, points=list(ends), limit=400, epsabs=1e-10)[0])


def softmax(f: np.ndarray) -> np.ndarray:
    return np.exp(f) / np.exp(f).sum()


def class_probabilities(n: int) -> np.ndarray:
    return sum(w * softmax(F[s, n]) for s, w in enumerate(WEIGHTS))


def class_entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def own_information(n: int, k: int) -> float:
    """Entropy less that of the noise, which is the same for every sample."""
    return entropy(n, k) - 0.5 * np.log(2 * np.pi * np.e * STD[k] ** 2)


P = np.stack([class_probabilities(n) for n in range(INPUTS)])
LABELS = np.array([0, 1, 1])

# What is asked of a prediction, and the same by hand.
OF_NUMBERS: dict[str, tuple[Callable[[noisynat.Predictive], Tensor], Callable[[], Any]]] = {
    "samples": (lambda p: p.samples, lambda: F),
    "weights": (lambda p: p.weights, lambda: WEIGHTS),  # type: ignore[dict-item, return-value]
    "means": (lambda p: p.means, lambda: F),
    "mean": (lambda p: p.mean, lambda: at_every_output(mean)),
    "epistemic_variance": (lambda p: p.epistemic_variance, lambda: at_every_output(lambda n, k: spread(n, n, k))),
    "aleatoric_variance": (lambda p: p.aleatoric_variance, lambda: at_every_output(lambda n, k: STD[k] ** 2)),
    "variance": (lambda p: p.variance, lambda: at_every_output(lambda n, k: spread(n, n, k) + STD[k] ** 2)),
    "stddev": (lambda p: p.stddev, lambda: at_every_output(lambda n, k: (spread(n, n, k) + STD[k] ** 2) ** 0.5)),
    "covariance": (
        lambda p: p.covariance,
        lambda: [
            [[spread(n, m, k) + (n == m) * STD[k] ** 2 for m in range(INPUTS)] for n in range(INPUTS)]
            for k in range(OUTPUTS)
        ],
    ),
    "mode": (lambda p: p.mode, lambda: at_every_output(mode)),
    "entropy": (lambda p: p.entropy, lambda: at_every_output(entropy)),
    "mutual_information": (lambda p: p.mutual_information, lambda: at_every_output(own_information)),
    "log_prob": (
        lambda p: p.log_prob(torch.as_tensor(Y)),
        lambda: [
            np.log(sum(w * stats.norm.pdf(Y[n], F[s, n], STD).prod() for s, w in enumerate(WEIGHTS)))
            for n in range(INPUTS)
        ],
    ),
    "distribution": (
        lambda p: p.distribution.log_prob(torch.as_tensor(Y)),
        lambda: at_every_output(lambda n, k: np.log(density(Y[n, k], n, k))),
    ),
    "cdf": (
        lambda p: p.cdf(torch.as_tensor(Y)),
        lambda: at_every_output(lambda n, k: distribution_function(Y[n, k], n, k)),
    ),
    "quantile": (lambda p: p.quantile(0.3), lambda: quantile(0.3)),
    "interval": (lambda p: torch.stack(p.interval(0.9)), lambda: [quantile(0.05), quantile(0.95)]),
    "average": (lambda p: p.average(p.samples.exp()), lambda: np.einsum("s,snk->nk", WEIGHTS, np.exp(F))),
}
OF_CLASSES: dict[str, tuple[Callable[[noisynat.Predictive], Tensor], Callable[[], Any]]] = {
    "probs": (lambda p: p.probs, lambda: P),
    "mean": (lambda p: p.mean, lambda: P),
    "variance": (lambda p: p.variance, lambda: P * (1 - P)),
    "epistemic_variance": (
        lambda p: p.epistemic_variance,
        lambda: np.stack(
            [sum(w * (softmax(F[s, n]) - P[n]) ** 2 for s, w in enumerate(WEIGHTS)) for n in range(INPUTS)]
        ),
    ),
    "aleatoric_variance": (
        lambda p: p.aleatoric_variance,
        lambda: np.stack(
            [sum(w * softmax(F[s, n]) * (1 - softmax(F[s, n])) for s, w in enumerate(WEIGHTS)) for n in range(INPUTS)]
        ),
    ),
    "mode": (lambda p: p.mode, lambda: P.argmax(1)),
    "entropy": (lambda p: p.entropy, lambda: [class_entropy(p) for p in P]),
    "mutual_information": (
        lambda p: p.mutual_information,
        lambda: [
            class_entropy(P[n]) - sum(w * class_entropy(softmax(F[s, n])) for s, w in enumerate(WEIGHTS))
            for n in range(INPUTS)
        ],
    ),
    "log_prob": (lambda p: p.log_prob(torch.as_tensor(LABELS)), lambda: np.log(P[np.arange(INPUTS), LABELS])),
    "distribution": (
        lambda p: p.distribution.log_prob(torch.as_tensor(LABELS)),
        lambda: np.log(P[np.arange(INPUTS), LABELS]),
    ),
}
ELSEWHERE = {"sample", "replica", "combine"}  # below, and in test_combine


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers(name: str) -> None:
    ask, expected = OF_NUMBERS[name]
    tolerance = 1e-5 if name == "mode" else 1e-7  # a summit is flat
    np.testing.assert_allclose(ask(NUMBERS).numpy(), np.array(expected()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes(name: str) -> None:
    ask, expected = OF_CLASSES[name]
    np.testing.assert_allclose(ask(CLASSES).numpy(), np.array(expected()), rtol=1e-10, atol=1e-12)


def test_no_attribute_is_left_out() -> None:
    public = {name for name in [*dir(NUMBERS), *vars(NUMBERS)] if not name.startswith("_")}
    assert public == set(OF_NUMBERS) | set(OF_CLASSES) | ELSEWHERE


def test_draws_have_the_mixture_s_moments() -> None:
    y = NUMBERS.sample(200_000).numpy()
    error = y.std(0) / len(y) ** 0.5
    assert (np.abs(y.mean(0) - at_every_output(mean)) < 5 * error).all()
    expected = np.array(OF_NUMBERS["covariance"][1]())
    for k in range(OUTPUTS):
        off = np.cov(y[..., k].T) - expected[k]
        scale = np.sqrt(3 * np.outer(expected[k].diagonal(), expected[k].diagonal()) / len(y))
        assert (np.abs(off) < 5 * scale).all()


# --- intervals on simulated data ----------------------------------------------------------------


def test_intervals_cover_as_stated_where_the_model_is_true() -> None:
    """Weights drawn from the prior, data from them, 300 times: a Bayesian's intervals then cover what they say."""
    repeats, n, new, std = 300, 12, 40, 0.3
    torch.manual_seed(0)
    x, x_new = torch.randn(repeats, n, 2).double(), torch.randn(repeats, new, 2).double()
    weights = torch.randn(repeats, 3, 1).double()
    y, y_new = (
        at @ weights[:, :2] + weights[:, 2:] + std * torch.randn(repeats, len(at[0]), 1).double() for at in (x, x_new)
    )
    bnn = noisynat.VariationalNetwork(
        nn.Linear(2, 1).double(), noisynat.GaussianLikelihood(std), posterior="dense", num_data=n, replicas=repeats
    )
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.5, betas=(0.9, 0.5), damping=0.0, kl_clip=None, refresh_every=1)
    schedule = noisynat.cosine_schedule(optimizer, 100)
    noisynat.fit(bnn, optimizer, [(x, y)], 100, scheduler=schedule, progress=False)
    prediction = bnn.predict(x_new, num_samples=200)
    for level in (0.5, 0.9):
        low, high = prediction.interval(level)
        covered = ((low < y_new) & (y_new < high)).double().mean((-2, -1))
        error = covered.std() / repeats**0.5
        assert error < 0.015
        assert abs(covered.mean() - level) < 3 * error + 0.005  # that of 200 samples in place of all
