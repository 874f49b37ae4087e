"""Pictures: what they draw is what the library says, and nothing else of matplotlib changes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from torch import nn

import noisynat
from noisynat import calibration, plotting
from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.discrete import Binary, Classes
from noisynat.likelihoods.observation import NormalNoise
from noisynat.random import RandomStream

N = 30
NOISE = NormalNoise(torch.tensor([[0.3]]))


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


@pytest.fixture(autouse=True)
def no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")


def predict(observation: ObservationModel = NOISE, *replicas: int, outputs: int = 2) -> noisynat.Predictive:
    return noisynat.Predictive(torch.randn(5, *replicas, N, outputs), observation, RandomStream(1))


def network(structure: Any = "kronecker", **settings: Any) -> noisynat.VariationalNetwork:
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    return noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.3), None, structure, num_data=N, **settings)


def trained(structure: Any = "kronecker", epochs: int = 4, **settings: Any) -> tuple[Any, noisynat.History]:
    bnn, x = network(structure, **settings), torch.linspace(-1, 1, N).unsqueeze(-1)
    data = noisynat.TensorBatches(x, x.sin())
    return bnn, noisynat.fit(bnn, noisynat.NoisyNaturalGradient(bnn), data, epochs, progress=False)


def curve(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def ends(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of a band, from left to right."""
    (band,) = [band for band in ax.collections if isinstance(band, PolyCollection) and band.get_label() == label]
    points = np.asarray(band.get_paths()[0].vertices)
    at = np.unique(points[:, 0])
    return tuple(np.array([pick(points[points[:, 0] == x, 1]) for x in at]) for pick in (min, max))  # type: ignore[return-value]


# --- predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_band_is_two_standard_deviations(ax: Axes, shape: tuple[int, ...]) -> None:
    """Of the function and of y, for inputs in any order."""
    pred, x = predict(), torch.randperm(N).float()
    assert plotting.predictive_band(x.reshape(shape), pred, ax, output=1) is ax
    order = x.argsort()
    mean = pred.mean[order, 1]
    at, drawn = curve(ax, "mean")
    np.testing.assert_allclose(at, np.arange(N))
    np.testing.assert_allclose(drawn, mean)
    for label, variance in (("function ± 2 std", pred.epistemic_variance), ("y ± 2 std", pred.variance)):
        low, high = ends(ax, label)
        std = variance[order, 1].sqrt()
        np.testing.assert_allclose(low, mean - 2 * std, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(high, mean + 2 * std, rtol=1e-5, atol=1e-6)
    wide, narrow = ax.collections
    assert wide.get_alpha() < narrow.get_alpha()  # type: ignore[operator]  # light with noise, dark without


def test_bands_of_several_networks_are_told_apart(ax: Axes) -> None:
    for label, color in (("first", plotting.BLUE), ("second", plotting.RED)):
        plotting.predictive_band(torch.arange(N), predict(), ax, label=label, color=color)
    assert ax.get_legend_handles_labels()[1] == [
        "first, y ± 2 std", "first, function ± 2 std", "first",
        "second, y ± 2 std", "second, function ± 2 std", "second",
    ]  # fmt: skip


def test_calibration_curve_is_the_coverage(ax: Axes) -> None:
    pred, y, levels = predict(), torch.randn(N, 2), [0.2, 0.5, 0.9]
    for label in ("first", "second"):
        plotting.calibration_curve(pred, y, ax, levels=levels, label=label)
    at, drawn = curve(ax, "first")
    np.testing.assert_allclose(at, levels)
    np.testing.assert_allclose(drawn, calibration.interval_coverage(pred, y, levels))
    assert sum(line.get_gid() == "diagonal" for line in ax.lines) == 1


@pytest.mark.parametrize(("observation", "label"), [(Classes(), "it was right"), (Binary(), "y = 1")])
def test_reliability_diagram_is_the_reliability(ax: Axes, observation: ObservationModel, label: str) -> None:
    pred = predict(observation)
    y = torch.randint(2, (N, 2) if isinstance(observation, Binary) else (N,))
    plotting.reliability_diagram(pred, y, ax, bins=5)
    found = calibration.reliability(pred, y, bins=5)
    (dots,) = [dots for dots in ax.collections if isinstance(dots, PathCollection)]
    expected = torch.stack([found.confidence, found.frequency], dim=-1)[found.count > 0]
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), expected)
    sizes = found.count[found.count > 0]
    np.testing.assert_allclose(np.asarray(dots.get_sizes()), 10 + 90 * sizes / sizes.max())
    assert label in ax.get_ylabel()


def test_errors_are_drawn_against_standard_deviations(ax: Axes) -> None:
    pred, y = predict(), torch.randn(N, 2)
    plotting.uncertainty_against_error(pred, y, ax, output=1, unit="kg")
    std, error = pred.stddev[:, 1], (y - pred.mean)[:, 1].abs()
    (dots,) = [dots for dots in ax.collections if isinstance(dots, PathCollection)]
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), torch.stack([std, error], -1), rtol=1e-6)
    at, drawn = curve(ax, "RMSE of a tenth")
    order = std.argsort().reshape(10, 3)
    np.testing.assert_allclose(at, std[order].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(drawn, error[order].square().mean(-1).sqrt(), rtol=1e-5)
    assert ax.get_xlabel() == "predicted standard deviation (kg)"


# --- training and posteriors ------------------------------------------------------------------


def test_elbo_and_its_parts_by_epoch(ax: Axes) -> None:
    bnn, history = trained()
    plotting.elbo_history(history, ax, skip=1)
    epoch, elbo = curve(ax, "ELBO")
    np.testing.assert_array_equal(epoch, [2, 3, 4])
    np.testing.assert_allclose(elbo, history["elbo"][1:])
    likelihood, kl = curve(ax, "expected log-likelihood")[1], curve(ax, "−KL / N")[1]
    np.testing.assert_allclose(likelihood, -np.array(history["loss"][1:]))
    np.testing.assert_allclose(kl, -np.array(history["kl"][1:]) / bnn.num_data, rtol=1e-5)
    np.testing.assert_allclose(likelihood + kl, elbo)
    assert "nats" in ax.get_ylabel()


def test_elbo_of_replicas_is_a_line_in_a_shade(ax: Axes) -> None:
    _, history = trained(replicas=(2, 3))
    plotting.elbo_history(history, ax, parts=False)
    values = np.array(history["elbo"]).reshape(4, 6)
    np.testing.assert_allclose(curve(ax, "ELBO")[1], values.mean(1))
    (shade,) = ax.collections
    assert shade.get_datalim(ax.transData).y0 == pytest.approx(values.min())
    assert len(ax.lines) == 1


@pytest.mark.parametrize("structure", ["kronecker", "dense", "mean_field"])
@pytest.mark.parametrize("kind", ["correlation", "precision"])
def test_heat_map_is_the_matrix(ax: Axes, structure: Any, kind: Any) -> None:
    bnn = network(structure) if structure == "mean_field" else trained(structure, epochs=10)[0]
    posterior = bnn.posteriors[0]
    plotting.posterior_matrix(posterior, ax, kind=kind)
    covariance = posterior.covariance().detach().double().numpy()
    if kind == "correlation":
        std = np.sqrt(covariance.diagonal())
        expected = covariance / np.outer(std, std)
    else:
        expected = np.abs(np.linalg.inv(covariance))
        expected = expected.clip(expected.max() / 1e6)
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), expected, rtol=1e-3, atol=1e-5)
    assert len(ax.lines) == (2 if structure == "dense" else 0)  # between the two layers
    assert len(ax.get_figure().axes) == 2  # type: ignore[union-attr]  # the colour bar


def test_heat_map_of_one_replica(ax: Axes) -> None:
    posterior = trained(epochs=10, replicas=(2, 3))[0].posteriors[1]
    plotting.posterior_matrix(posterior, ax, kind="precision", replica=(1, 2))
    expected = torch.linalg.inv(posterior.covariance()[1, 2].detach().double()).abs()
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), expected.clamp(expected.max() / 1e6), rtol=1e-3)
    for wrong in (None, 1, (1, 2, 0)):
        with pytest.raises(ValueError, match="replica needs 2 numbers"):
            plotting.posterior_matrix(posterior, ax, replica=wrong)


def test_coverage_is_a_table(ax: Axes) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=N)
    plotting.coverage_table(bnn.coverage(), ax)
    (table,) = ax.tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    for number, row in enumerate(bnn.coverage(), start=1):
        assert [cells[number, 0], cells[number, 2], cells[number, 3]] == [row.name, str(row.count), row.kind]
        is_white = table[number, 0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)
        assert is_white == (row.kind == "posterior")
    assert f"{bnn.coverage().fraction:.1%}" in ax.get_title()


# --- what all of them keep to -----------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Axes]] = {
    "band": lambda ax: plotting.predictive_band(torch.arange(N), predict(), ax),
    "calibration": lambda ax: plotting.calibration_curve(predict(), torch.randn(N, 2), ax),
    "reliability": lambda ax: plotting.reliability_diagram(predict(Classes()), torch.zeros(N).long(), ax),
    "errors": lambda ax: plotting.uncertainty_against_error(predict(), torch.randn(N, 2), ax),
    "elbo": lambda ax: plotting.elbo_history(trained(epochs=2)[1], ax),
    "matrix": lambda ax: plotting.posterior_matrix(network().posteriors[0], ax, kind="precision"),
    "coverage": lambda ax: plotting.coverage_table(network().coverage(), ax),
}


@pytest.mark.parametrize("name", CALLS)
def test_drawing_on_given_axes_changes_nothing_else(name: str, tmp_path: Any) -> None:
    current, settings = plt.figure(), dict(mpl.rcParams)
    figure = Figure(layout="constrained")
    ax, other = figure.subplots(1, 2)
    assert CALLS[name](ax) is ax
    assert plt.get_fignums() == [current.number]
    assert plt.gcf() is current
    assert not current.axes
    assert not other.has_data()
    assert dict(mpl.rcParams) == settings
    figure.savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("name", CALLS)
def test_without_axes_there_is_a_new_figure(name: str) -> None:
    plt.figure()
    ax = CALLS[name](None)
    assert ax.get_figure() is plt.gcf()
    assert len(plt.get_fignums()) == 2
    if name != "coverage":
        assert ax.get_xlabel()
        assert ax.get_ylabel()


@pytest.mark.parametrize("name", CALLS)
def test_axes_are_axes(name: str) -> None:
    with pytest.raises(TypeError, match="must be matplotlib Axes, got Figure"):
        CALLS[name](Figure())


def test_labels_that_are_there_stay(ax: Axes) -> None:
    ax.set(xlabel="time (s)", ylabel="force (N)")
    plotting.predictive_band(torch.arange(N), predict(), ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "force (N)")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plotting.predictive_band(torch.arange(N), predict(NOISE, 3)), ValueError, r"prediction.replica\(i\)"),
        (lambda: plotting.predictive_band(torch.arange(N), predict(Classes())), TypeError, "targets are classes"),
        (lambda: plotting.predictive_band(torch.zeros(N, 2), predict()), ValueError, "one number for each of 30 rows"),
        (lambda: plotting.calibration_curve(predict(), torch.zeros(N)), ValueError, r"expected \(30, 2\)"),
        (lambda: plotting.calibration_curve(predict(NOISE, 3), torch.zeros(N, 2)), ValueError, "of one network"),
        (lambda: plotting.calibration_curve(predict(Classes()), torch.zeros(N)), TypeError, "targets are classes"),
        (lambda: plotting.reliability_diagram(predict(), torch.zeros(N)), TypeError, "targets are numbers"),
        (lambda: plotting.uncertainty_against_error(predict(Binary()), torch.zeros(N, 2)), TypeError, "are classes"),
        (lambda: plotting.elbo_history(noisynat.History()), ValueError, "0 epochs"),
        (lambda: plotting.elbo_history(trained(epochs=2)[1], skip=2), ValueError, "skip=2 leaves none"),
        (lambda: plotting.posterior_matrix(network().posteriors[0], kind="sigma"), ValueError, "'correlation', got"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    assert not plt.get_fignums()  # before anything is drawn


def test_large_posteriors_are_refused() -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(50, 50), noisynat.GaussianLikelihood(), num_data=N)
    with pytest.raises(ValueError, match="has 2550 weights, too many for a picture"):
        plotting.posterior_matrix(bnn.posteriors[0])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "noisynat.plotting")
    again = importlib.import_module("noisynat.plotting")
    with pytest.raises(ImportError, match=r'^matplotlib is not installed; get it with pip install "noisynat\[plot\]"$'):
        again.coverage_table(network().coverage())


def test_given_axes_need_no_pyplot() -> None:
    code = (
        "import sys, torch, noisynat; from noisynat import plotting; from matplotlib.figure import Figure\n"
        "bnn = noisynat.VariationalNetwork(torch.nn.Linear(1, 1), noisynat.GaussianLikelihood(1.0), num_data=1)\n"
        "x, ax = torch.zeros(3, 1), Figure().add_subplot()\n"
        "plotting.predictive_band(x, bnn.predict(x), ax); plotting.posterior_matrix(bnn.posteriors[0], ax)\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
