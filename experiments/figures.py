"""Figures of the UCI regression experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.methods import Method

COLORS = {
    "bbb": "#7f7f7f",
    "nng-ffg": "#e69f00",
    "nng-mvg": "#56b4e9",
    "nng-kron": "#0072b2",
    "nng-ekfac": "#009e73",
    "nng-full": "#d55e00",
    "mix-kron": "#f0e442",
    "mix-kron-het": "#cc79a7",
    "mix-full": "#000000",
    "mix-full-het": "#8c510a",
}  # a palette that colour-blind readers can tell apart (Okabe and Ito 2008)


def dataset_figure(folder: Path, methods: Sequence[Method], path: Path) -> None:
    """One panel per method, predicted against observed with 95% intervals on the first split; below, ELBO by epoch.

    Args:
        folder: holds a folder per method with ``predictions.csv`` and ``history.csv``.
        methods: in the order of the panels.
        path: of the PNG.
    """
    columns = 2 if len(methods) in (2, 4) else min(len(methods), 3)
    rows = -(-len(methods) // columns)
    figure = plt.figure(figsize=(4.0 * max(columns, 2), 3.6 * rows + 3.6), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns)
    first: Axes | None = None
    for index, method in enumerate(methods):
        axes = figure.add_subplot(grid[index // columns, index % columns], sharex=first, sharey=first)
        first = first or axes
        _predictions(axes, pd.read_csv(folder / method.name / "predictions.csv"), method)
    _elbo(figure.add_subplot(grid[rows, :]), folder, methods)
    figure.suptitle(f"{folder.name}: first split's test part, and training of all splits")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, whole or not at all, making its folder, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=130, format="png")
    plt.close(figure)
    os.replace(partial, path)


def _predictions(axes: Axes, table: pd.DataFrame, method: Method) -> None:
    if len(table) > 300:
        table = table.iloc[:300]
    errors = [table.predicted - table.lower, table.upper - table.predicted]
    color = COLORS[method.name]
    axes.errorbar(table.observed, table.predicted, yerr=errors, fmt="o", markersize=3, linewidth=0.8, color=color)
    ends = [min(table.observed.min(), table.lower.min()), max(table.observed.max(), table.upper.max())]
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
    axes.set(title=f"{method.name}: {method.title}", xlabel="observed", ylabel="predicted, 95% interval")
    axes.title.set_fontsize("medium")


def _elbo(axes: Axes, folder: Path, methods: Sequence[Method]) -> None:
    lowest, highest = [], []
    for method in methods:
        history = pd.read_csv(folder / method.name / "history.csv")
        axes.plot(history.epoch, history.elbo, color=COLORS[method.name], label=method.name)
        lowest.append(history.elbo.iloc[len(history) // 5])
        highest.append(history.elbo.max())
        if "elbo_error" in history:
            low, high = history.elbo - 2 * history.elbo_error, history.elbo + 2 * history.elbo_error
            axes.fill_between(history.epoch, low, high, color=COLORS[method.name], alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel="ELBO per datum (nats)")
    bottom, top = min(lowest), max(highest)  # the first fifth of training would flatten the rest
    axes.set_ylim(bottom, top + 0.1 * (top - bottom) + 0.01)
    axes.legend(loc="best", ncols=2)
    axes.grid(alpha=0.3)
