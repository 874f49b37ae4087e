"""Metrics against closed forms, torchmetrics and the prediction's own answers; over batches and replicas."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import noisynat
from noisynat.calibration import reliability
from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.discrete import Binary, Classes
from noisynat.likelihoods.observation import NormalNoise, StudentNoise
from noisynat.random import RandomStream

torchmetrics = pytest.importorskip("torchmetrics")
metrics: Any = pytest.importorskip("noisynat.metrics")

N, S = 23, 6
STD = torch.tensor([[0.4]], dtype=torch.float64)
NORMAL, STUDENT = NormalNoise(STD), StudentNoise(5.0, STD, joint=False)
MAKERS: dict[str, Callable[[], Any]] = {
    "nll": metrics.MixtureNLL,
    "nll in raw units": lambda: metrics.MixtureNLL(scale=3.0),
    "crps": metrics.CRPS,
    "coverage": lambda: metrics.IntervalCoverage(0.7),
    "width": lambda: metrics.IntervalWidth(0.7),
}


def predict(f: Tensor, observation: ObservationModel = NORMAL, weights: Tensor | None = None) -> noisynat.Predictive:
    return noisynat.Predictive(f, observation, RandomStream(1), weights)


def samples(*replicas: int, outputs: int = 1) -> Tensor:
    return torch.randn(S, *replicas, N, outputs, dtype=torch.float64)


def score(metric: Any, prediction: noisynat.Predictive, y: Tensor) -> Tensor:
    metric.update(prediction, y)
    value: Tensor = metric.compute()
    return value


# --- batches and replicas ---------------------------------------------------------------------

BATCHES = (slice(0, 10), slice(10, 11), slice(11, N))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("replicas", [(), (2,), (2, 3)])
def test_batches_add_up_to_the_whole(name: str, replicas: tuple[int, ...]) -> None:
    """Batches of different sizes; and each replica's result is that of its own prediction."""
    f, y = samples(*replicas, outputs=2), torch.randn(N, 2).double()
    whole, parts = score(MAKERS[name](), predict(f), y), MAKERS[name]()
    for rows in BATCHES:
        parts.update(predict(f[..., rows, :]), y[rows])
    assert whole.shape == replicas
    torch.testing.assert_close(parts.compute(), whole, rtol=1e-12, atol=0)
    for index in np.ndindex(*replicas):
        alone = score(MAKERS[name](), predict(f[(slice(None), *index)]), y)
        torch.testing.assert_close(whole[index], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_forward_gives_the_batch_and_reset_forgets(name: str) -> None:
    f, y = samples(), torch.randn(N, 1).double()
    metric = MAKERS[name]()
    for rows in BATCHES:
        of_batch = metric(predict(f[:, rows]), y[rows])
        torch.testing.assert_close(of_batch, score(MAKERS[name](), predict(f[:, rows]), y[rows]))
    torch.testing.assert_close(metric.compute(), score(MAKERS[name](), predict(f), y))
    metric.reset()
    torch.testing.assert_close(score(metric, predict(f[:, :3]), y[:3]), score(MAKERS[name](), predict(f[:, :3]), y[:3]))


def test_they_work_as_a_collection_of_torchmetrics() -> None:
    f, y = samples(), torch.randn(N, 1).double()
    names = ("nll", "crps", "coverage", "width")
    collection = torchmetrics.MetricCollection({name: MAKERS[name]() for name in names})
    for rows in BATCHES:
        collection.update(predict(f[:, rows]), y[rows])
    found = collection.compute()
    for name in names:
        torch.testing.assert_close(found[name], score(MAKERS[name](), predict(f), y))


# --- the mixture's log-likelihood -------------------------------------------------------------


@pytest.mark.parametrize("observation", [NORMAL, STUDENT])
def test_nll_is_that_of_the_mixture(observation: ObservationModel) -> None:
    pred, y = predict(samples(outputs=2), observation), torch.randn(N, 2).double()
    torch.testing.assert_close(score(metrics.MixtureNLL(), pred, y), -pred.log_prob(y).mean())


@pytest.mark.parametrize("scale", [2.5, torch.tensor([2.5, 0.1])])
def test_nll_in_raw_units_is_that_of_scaled_targets(scale: float | Tensor) -> None:
    """The same mixture of y * scale: means and noise are scaled too."""
    f, y, factor = samples(outputs=2), torch.randn(N, 2).double(), torch.as_tensor(scale).double()
    raw = predict(factor * f, NormalNoise(STD * factor))
    found = score(metrics.MixtureNLL(scale), predict(f), y)
    torch.testing.assert_close(found, -raw.log_prob(factor * y).mean())


def test_nll_of_classes_is_the_cross_entropy() -> None:
    pred = predict(samples(outputs=3), Classes())
    y = torch.randint(3, (N,))
    torch.testing.assert_close(score(metrics.MixtureNLL(), pred, y), torch.nn.functional.nll_loss(pred.probs.log(), y))
    with pytest.raises(TypeError, match="a scale is of numbers"):
        metrics.MixtureNLL(scale=2.0).update(pred, y)


# --- CRPS -------------------------------------------------------------------------------------


def crps_by_integral(law: Any, weights: np.ndarray, y: float) -> float:
    """int (F(t) - [t >= y])^2 dt of a mixture of scipy's ``law``, whose parameters are (S,)."""
    below, above = (
        integrate.quad(lambda t, one=one: float((weights @ law.cdf(t) - one) ** 2), *ends, limit=200)[0]
        for one, ends in ((0, (y - 60, y)), (1, (y, y + 60)))
    )
    return float(below + above)


@pytest.mark.parametrize("weighted", [False, True])
def test_crps_of_normals_is_the_integral(weighted: bool) -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.05, 0.1]).double() if weighted else None
    f, y = samples()[:, :4], torch.randn(4, 1).double()
    share = np.full(S, 1 / S) if weights is None else (weights / weights.sum()).numpy()
    expected = [crps_by_integral(stats.norm(f[:, n, 0], 0.4), share, float(y[n])) for n in range(4)]
    found = score(metrics.CRPS(), predict(f, weights=weights), y)
    assert float(found) == pytest.approx(np.mean(expected), abs=1e-6)


def test_crps_of_one_normal_is_the_closed_form() -> None:
    """std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), times the scale."""
    f, y = samples()[:1], torch.randn(N, 1).double()
    z = (y - f[0]) / STD
    density = (-z.square() / 2).exp() / (2 * torch.pi) ** 0.5
    expected = 3 * STD * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - torch.pi**-0.5)
    torch.testing.assert_close(score(metrics.CRPS(scale=3.0), predict(f), y), expected.mean())


@pytest.mark.parametrize("kind", ["t", "counts"])
def test_crps_by_draws_comes_near_the_integral(kind: str) -> None:
    """Within 4 of the standard errors that the docstring states."""
    f = samples()[:, :4].clamp(max=1.5)
    pred = predict(f, STUDENT if kind == "t" else noisynat.PoissonLikelihood().observation_model())
    y, count = pred.sample(1)[0], 12_000
    laws = [stats.t(5, f[:, n, 0], 0.4) if kind == "t" else stats.poisson(f[:, n, 0].exp()) for n in range(4)]
    if kind == "t":
        exact = [crps_by_integral(law, np.full(S, 1 / S), float(at)) for law, at in zip(laws, y, strict=True)]
    else:
        k = np.arange(60)
        mixed = [law.cdf(k[:, None]).mean(-1) for law in laws]
        exact = [float(np.square(cdf - (k >= float(at))).sum()) for cdf, at in zip(mixed, y, strict=True)]
    metric = metrics.CRPS(num_samples=count, generator=torch.Generator().manual_seed(2))
    error = 0.5 * float(pred.stddev.square().sum().sqrt()) / 4 / count**0.5
    assert float(score(metric, pred, y)) == pytest.approx(np.mean(exact), abs=4 * error)


def test_crps_takes_many_components_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, y = predict(samples(2, outputs=2)), torch.randn(N, 2).double()
    whole = score(metrics.CRPS(), pred, y)
    monkeypatch.setattr(metrics, "_PAIRS", 5 * S**2)
    torch.testing.assert_close(score(metrics.CRPS(), pred, y), whole, rtol=1e-12, atol=0)


# --- intervals --------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("observation", [NORMAL, STUDENT])
def test_coverage_and_width_are_those_of_the_interval(level: float, observation: ObservationModel) -> None:
    pred = predict(samples(outputs=2), observation)
    y = torch.randn(N, 2).double()
    lower, upper = pred.interval(level)
    inside = ((lower <= y) & (y <= upper)).double().mean()
    torch.testing.assert_close(score(metrics.IntervalCoverage(level), pred, y), inside)
    torch.testing.assert_close(score(metrics.IntervalWidth(level), pred, y), (upper - lower).mean())
    scale = torch.tensor([2.0, 10.0]).double()
    in_raw_units = ((upper - lower) * scale).mean()
    torch.testing.assert_close(score(metrics.IntervalWidth(level, scale), pred, y), in_raw_units)


# --- classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_calibration_error_is_torchmetrics(norm: str) -> None:
    f, y = samples(outputs=3), torch.randint(3, (N,))
    metric = metrics.ExpectedCalibrationError(bins=5, norm=norm)
    for rows in BATCHES:
        metric.update(predict(f[:, rows], Classes()), y[rows])
    theirs = torchmetrics.classification.MulticlassCalibrationError(num_classes=3, n_bins=5, norm=norm)
    theirs.update(predict(f, Classes()).probs, y)
    torch.testing.assert_close(metric.compute().float(), theirs.compute().float())


def test_calibration_error_of_binary_targets_is_torchmetrics() -> None:
    f, y = samples(outputs=2), torch.randint(2, (N, 2)).double()
    theirs = torchmetrics.classification.BinaryCalibrationError(n_bins=5)
    theirs.update(predict(f, Binary()).probs.flatten(), y.flatten().long())
    found = score(metrics.ExpectedCalibrationError(bins=5), predict(f, Binary()), y)
    torch.testing.assert_close(found.float(), theirs.compute().float())
    bins = reliability(predict(f, Binary()), y, bins=5)
    gap = ((bins.confidence - bins.frequency).abs() * bins.count).nansum() / bins.count.sum()
    torch.testing.assert_close(found, gap)


def test_certain_probabilities_are_no_logits() -> None:
    """In float32 an average of ones may exceed 1, which torchmetrics would take for logits."""
    certain = torch.tensor([[100.0, 0.0]]).expand(7, 4, 2)
    pred = predict(certain, Classes(), weights=torch.full((7,), 1 / 7 + 1e-7))
    assert pred.probs.max() > 1
    assert score(metrics.ExpectedCalibrationError(), pred, torch.zeros(4).long()) == 0


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_targets_of_another_shape_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"y has shape \(23,\), expected \(23, 1\)"):
        MAKERS[name]().update(predict(samples()), torch.zeros(N))


@pytest.mark.parametrize("name", ["crps", "coverage", "width"])
def test_metrics_of_numbers_refuse_classes(name: str) -> None:
    with pytest.raises(TypeError, match="targets are classes"):
        MAKERS[name]().update(predict(samples(outputs=3), Classes()), torch.zeros(N).long())


def test_the_calibration_error_refuses_numbers_and_replicas() -> None:
    with pytest.raises(TypeError, match="targets are numbers"):
        metrics.ExpectedCalibrationError().update(predict(samples()), torch.zeros(N, 1))
    with pytest.raises(ValueError, match="of one network"):
        metrics.ExpectedCalibrationError().update(predict(samples(2, outputs=3), Classes()), torch.zeros(N).long())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.IntervalCoverage(95), "strictly between 0 and 1, got 95"),
        (lambda: metrics.IntervalWidth(0.0), "strictly between 0 and 1"),
        (lambda: metrics.IntervalWidth(scale=-1.0), "a scale is a positive, finite"),
        (lambda: metrics.MixtureNLL(scale=0.0), "a scale is a positive, finite"),
        (lambda: metrics.CRPS(num_samples=1), "num_samples must be at least 2"),
    ],
)
def test_arguments_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- without the packages ---------------------------------------------------------------------


@pytest.mark.parametrize("package", ["torchmetrics", "scoringrules"])
def test_without_a_package_the_error_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "noisynat.metrics")
    with pytest.raises(
        ImportError, match=rf'^{package} is not installed; get it with pip install "noisynat\[metrics\]"$'
    ):
        importlib.import_module("noisynat.metrics").CRPS()
