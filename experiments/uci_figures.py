"""Figures of the whole UCI table: calibration, ELBOs by posterior family, log-likelihoods beside those of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import COLORS, save
from experiments.methods import DEFAULT, METHODS
from experiments.published import published_results
from experiments.selection import NAME as SELECTED
from experiments.summary import standard_error

_SELECTED_COLOR = "#000000"
_SHOWN = ("bbb", "nng-kron", DEFAULT, SELECTED)  # in the calibration figure


def calibration(output: Path, datasets: Sequence[str], path: Path) -> None:
    """A panel per data set: how often test targets lie in central intervals, less the intervals' level.

    Args:
        output: folder with a folder per data set and method, each with ``pointwise.npz``.
        datasets: in the order of the panels.
        path: of the PNG.
    """
    levels = np.linspace(0.02, 0.98, 49)
    figure, panels = _panels(len(datasets))
    for axes, dataset in zip(panels, datasets, strict=True):
        for method in _SHOWN:
            file = output / dataset / method / "pointwise.npz"
            if not file.exists():
                continue
            with np.load(file) as arrays:
                centred = 2 * np.abs(arrays["cdf"] - 0.5)  # the level of the smallest central interval with the target
            excess = (centred[..., None] <= levels).mean(1) - levels  # (splits, levels)
            error = 2 * standard_error(excess)
            color = COLORS.get(method, _SELECTED_COLOR)
            axes.plot(levels, excess.mean(0), color=color, label=method)
            axes.fill_between(
                levels, excess.mean(0) - error, excess.mean(0) + error, color=color, alpha=0.15, linewidth=0
            )
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(dataset, fontsize="medium")
    figure.supxlabel("level of the central interval")
    figure.supylabel("observed coverage less the level (± two standard errors)")
    _legend(figure, panels)
    save(figure, path)


def elbo(ours: pd.DataFrame, path: Path) -> None:
    """A panel per data set: ELBO per datum of every posterior family, with two standard errors over splits."""
    datasets = list(ours.dataset.unique())
    families = [name for name in METHODS if name in set(ours.method)]
    figure, panels = _panels(len(datasets), sharey=False)
    for axes, dataset in zip(panels, datasets, strict=True):
        for place, method in enumerate(families):
            values = ours[(ours.dataset == dataset) & (ours.method == method)].elbo_per_datum.to_numpy()
            if len(values):
                error = 2 * standard_error(values)
                axes.errorbar(place, values.mean(), yerr=error, fmt="o", capsize=3, color=COLORS[method])
        axes.set_xticks(range(len(families)), families, rotation=60, fontsize="small")
        axes.set_title(dataset, fontsize="medium")
    figure.supylabel("ELBO per datum (nats)")
    save(figure, path)


def log_likelihood(ours: pd.DataFrame, peers: pd.DataFrame | None, path: Path) -> None:
    """A panel per data set: test log-likelihoods of our methods, of the peers we ran, and published ones."""
    datasets = list(ours.dataset.unique())
    figure, panels = _panels(len(datasets), sharey=False, height=3.4)
    for axes, dataset in zip(panels, datasets, strict=True):
        place, labels = 0, []
        for label, mean, error, color in _rows(dataset, ours, peers):
            axes.errorbar(mean, place, xerr=error, fmt="o", markersize=4, capsize=2, color=color)
            labels.append(label)
            place -= 1
        axes.set_yticks(range(0, place, -1), labels, fontsize=6)
        axes.set_title(dataset, fontsize="medium")
        _zoom(axes)
    figure.supxlabel(
        "test log-likelihood (nats), two standard errors where known; ours black, peers blue, published orange"
    )
    save(figure, path)


def _rows(dataset: str, ours: pd.DataFrame, peers: pd.DataFrame | None) -> Iterator[tuple[str, float, float, str]]:
    for table, color in ((ours, "#000000"), (peers, "#0072b2")):
        if table is None:
            continue
        of_set = table[table.dataset == dataset]
        for method in of_set.method.unique():
            values = of_set[of_set.method == method].log_likelihood.to_numpy()
            yield method, float(values.mean()), float(2 * standard_error(values)), color
    published = published_results()
    for row in published[published.dataset == dataset].itertuples():
        if np.isfinite(row.test_log_likelihood):
            known = row.error_kind == "standard error" and np.isfinite(row.ll_error)
            yield row.method.split(" (")[0], row.test_log_likelihood, 2 * row.ll_error if known else 0.0, "#d55e00"


def _zoom(axes: Axes) -> None:
    """Leave out what lies far below the rest: it would press the others together."""
    means = np.array([container.lines[0].get_xdata()[0] for container in axes.containers])  # type: ignore[attr-defined]
    low, middle, high = np.quantile(means, [0.25, 0.5, 1.0])
    bottom = max(means.min(), low - 3 * (high - middle) - 0.2)
    margin = 0.08 * (high - bottom)
    axes.set_xlim(bottom - margin, high + 2 * margin)


def _panels(count: int, *, sharey: bool = True, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, height * rows + 0.6), squeeze=False, layout="constrained", sharey=sharey
    )
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
