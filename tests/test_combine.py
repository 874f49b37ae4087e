"""Mixtures of replicas, against the mixture written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import noisynat
from noisynat.likelihoods.observation import NormalNoise, StudentNoise
from noisynat.random import RandomStream

SAMPLES, SETS, MEMBERS, ROWS, OUTPUTS = 6, 2, 3, 4, 2
STD = torch.tensor([[0.2, 0.4, 0.7], [0.3, 0.5, 0.9]]).double()[..., None, None]  # of every replica


def prediction(kind: str = "normal") -> noisynat.Predictive:
    """Of 2 data sets by 3 members each, whose noise differs."""
    f = torch.randn(SAMPLES, SETS, MEMBERS, ROWS, OUTPUTS, generator=torch.Generator().manual_seed(0)).double()
    observation = NormalNoise(STD) if kind == "normal" else StudentNoise(7.0, STD, joint=kind == "joint t")
    return noisynat.Predictive(f, observation, RandomStream(0))


def density(pred: noisynat.Predictive, kind: str, y: np.ndarray) -> np.ndarray:
    """p(y) by replica and row (SETS, MEMBERS, ROWS), from scipy, outputs independent given the sample."""
    of_noise = stats.norm if kind == "normal" else stats.t(7.0)
    scaled = (y - pred.samples.numpy()) / STD.numpy()
    return (of_noise.pdf(scaled) / STD.numpy()).prod(-1).mean(0)


WEIGHTS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 1.0]]).double()


@pytest.mark.parametrize("kind", ["normal", "separate t"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_density_is_the_weighted_sum(kind: str, weights: Tensor | None) -> None:
    pred, y = prediction(kind), torch.randn(SETS, ROWS, OUTPUTS).double()
    share = np.full((SETS, MEMBERS), 1 / 3) if weights is None else (weights / weights.sum(-1, keepdim=True)).numpy()
    expected = (share[..., None] * density(pred, kind, y.numpy()[:, None])).sum(1)
    np.testing.assert_allclose(pred.combine(weights).log_prob(y).exp().numpy(), expected)


@pytest.mark.parametrize("kind", ["normal", "joint t", "separate t"])
def test_moments_are_those_of_the_mixture(kind: str) -> None:
    """Mean, law of total variance, CDF, quantile: weighted by hand over members."""
    pred = prediction(kind)
    both = pred.combine(WEIGHTS)
    share = (WEIGHTS / WEIGHTS.sum(-1, keepdim=True))[..., None, None]
    mean = (share * pred.mean).sum(1)
    torch.testing.assert_close(both.mean, mean)
    within = (share * pred.variance).sum(1)
    torch.testing.assert_close(both.variance, within + (share * (pred.mean - mean[:, None]).square()).sum(1))
    torch.testing.assert_close(both.aleatoric_variance, (share * pred.aleatoric_variance).sum(1))
    y = torch.randn(SETS, ROWS, OUTPUTS).double()
    torch.testing.assert_close(both.cdf(y), (share * pred.cdf(y[:, None].expand(pred.mean.shape))).sum(1))
    torch.testing.assert_close(both.cdf(both.quantile(0.3)), torch.full_like(mean, 0.3))


@pytest.mark.parametrize("kind", ["normal", "separate t"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_distribution_and_samples_agree_with_the_density(kind: str, weights: Tensor | None) -> None:
    both = prediction(kind).combine(weights)
    y = torch.randn(SETS, ROWS, OUTPUTS).double()
    torch.testing.assert_close(both.distribution.cdf(y) if kind == "normal" else both.cdf(y), both.cdf(y))
    torch.testing.assert_close(both.distribution.mean, both.mean)
    drawn = both.sample(30_000, torch.Generator().manual_seed(0))
    error = (drawn.mean(0) - both.mean) / both.stddev
    assert error.abs().max() < 5 / 30_000**0.5
    for level in (0.1, 0.6):
        share = (drawn < both.quantile(level)).double().mean(0)
        assert (share - level).abs().max() < 5 * (level * (1 - level) / 30_000) ** 0.5


def test_the_first_samples_come_from_all_members() -> None:
    far = torch.tensor([0.0, 100.0, 200.0]).double().reshape(1, 3, 1, 1).expand(5, 3, 1, 1)
    both = noisynat.Predictive(far, NormalNoise(torch.ones(3, 1, 1).double()), RandomStream(0)).combine()
    assert both.sample(3).flatten().div(100).round().tolist() == [0.0, 1.0, 2.0]


def test_combining_twice_multiplies_the_weights() -> None:
    pred = prediction()
    across = torch.tensor([1.0, 3.0]).double()
    twice = pred.combine(WEIGHTS).combine(across)
    flat = noisynat.Predictive(pred.samples.flatten(1, 2), NormalNoise(STD.flatten(0, 1)), RandomStream(0))
    product = (across / 4)[:, None] * WEIGHTS / WEIGHTS.sum(-1, keepdim=True)
    once = flat.combine(product.flatten())
    y = torch.randn(ROWS, OUTPUTS).double()
    torch.testing.assert_close(twice.log_prob(y), once.log_prob(y))
    torch.testing.assert_close(pred.combine(WEIGHTS).combine().mean, pred.combine(WEIGHTS).mean.mean(0))


def test_a_replica_of_a_mixture_keeps_its_weights_and_noise() -> None:
    both = prediction("joint t").combine(WEIGHTS)
    y = torch.randn(SETS, ROWS, OUTPUTS).double()
    for index in range(SETS):
        torch.testing.assert_close(both.replica(index).log_prob(y[index]), both.log_prob(y)[index])


def test_replicas_in_two_dimensions() -> None:
    pred = prediction()
    one = pred.replica((1, 2))
    torch.testing.assert_close(one.mean, pred.mean[1, 2])
    torch.testing.assert_close(one.variance, pred.variance[1, 2])
    with pytest.raises(ValueError, match="2 replica dimensions, the index 1"):
        pred.replica(1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"weights have shape \(3,\), expected \(2, 3\), one per replica"),
        (-WEIGHTS, "must not be negative"),
        (torch.zeros(2, 3), "positive, finite sum"),
        (torch.full((2, 3), torch.nan), "positive, finite sum"),
    ],
)
def test_bad_weights_are_refused(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction().combine(weights)


def test_without_replicas_there_is_nothing_to_combine() -> None:
    with pytest.raises(ValueError, match="no replicas to combine"):
        prediction().replica((0, 0)).combine()


# --- of a network -----------------------------------------------------------------------------


def network(**options: Any) -> noisynat.VariationalNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    likelihood = noisynat.GaussianLikelihood(noise=0.5)
    return noisynat.VariationalNetwork(net, likelihood, num_data=9, seed=0, **options)


def test_a_network_combines_its_replicas() -> None:
    bnn, x = network(replicas=(2, 3)), torch.randn(5, 2).double()
    apart, equal, weighted = (
        bnn.predict(x, 8, torch.Generator().manual_seed(0), combine=combine) for combine in (None, "equal", WEIGHTS)
    )
    assert equal.samples.shape == (24, 2, 5, 1)
    torch.testing.assert_close(equal.mean, apart.mean.mean(1))
    torch.testing.assert_close(weighted.mean, apart.combine(WEIGHTS).mean)


def test_elbo_weights_are_the_best_of_far_components() -> None:
    """They maximize sum w (ELBO - log w): by the ELBO's own numbers and a numerical maximum over the simplex."""
    bnn = network(replicas=3, prior=noisynat.GaussianPrior([0.5, 1.0, 1.5]))
    x, y = torch.randn(9, 2).double(), torch.randn(9, 1).double()
    elbo = bnn.elbo(x, y)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def negative() -> Tensor:
        optimizer.zero_grad()
        w = logits.softmax(-1)
        value = -(w * (elbo.total - w.log())).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(negative)  # type: ignore[arg-type]
    torch.testing.assert_close(elbo.mixture_weights, logits.detach().softmax(-1), rtol=1e-5, atol=1e-6)
    apart, both = (bnn.predict(x, 8, torch.Generator().manual_seed(0), combine=c) for c in (None, elbo))
    torch.testing.assert_close(both.mean, (elbo.mixture_weights[:, None, None] * apart.mean).sum(0))


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="'equal', an ELBO or weights, got 'stacking'"):
        network(replicas=2).predict(torch.zeros(1, 2).double(), combine="stacking")  # type: ignore[arg-type]


def test_replica_dimensions_are_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        network(replicas=(2, 0))


def test_two_replica_dimensions_train_as_one() -> None:
    x, y = torch.randn(6, 9, 2).double(), torch.randn(6, 9, 1).double()
    means = []
    for shape in ((6,), (2, 3)):
        bnn = network(replicas=shape)
        optimizer = noisynat.NoisyKFAC(bnn)
        data = noisynat.TensorBatches(x.reshape(*shape, 9, 2), y.reshape(*shape, 9, 1), 4, replicas=shape, seed=0)
        noisynat.fit(bnn, optimizer, data, epochs=2, progress=False)
        elbo = bnn.elbo(x.reshape(*shape, 9, 2), y.reshape(*shape, 9, 1), num_samples=4)
        means.append([layer.mean.detach().flatten(0, -3) for layer in bnn.layers] + [elbo.total.flatten()])
    for one, other in zip(*means, strict=True):
        torch.testing.assert_close(one, other)
