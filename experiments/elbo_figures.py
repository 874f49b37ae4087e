"""Figures of the ELBO comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments import figures
from experiments.methods import Method

_ELBO = "ELBO per datum (nats)"


def visible_range(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits of the ELBO's axis that show how the curves end; the steep beginning runs out of the picture.

    Args:
        curves: means over splits, (T,) each.
    """
    finals = [curve[-1] for curve in curves]
    top, spread = max(curve.max() for curve in curves), max(finals) - min(finals)
    approach = max(curve[-1] - curve[len(curve) // 4] for curve in curves)  # in the last three quarters of training
    bottom = min(finals) - max(0.3 * spread, 0.5 * approach)
    room = max(top - bottom, 0.02)
    return bottom - 0.08 * room, top + 0.08 * room


def dataset_figure(curves: pd.DataFrame, name: str, methods: Sequence[Method], path: Path, clock: str) -> None:
    """The ELBO of one data set against epochs, and against seconds on a logarithmic axis.

    Args:
        curves: rows with dataset, method, epoch, seconds, elbo, elbo_error.
        name: of the data set.
        methods: in the order of the legend.
        path: of the PNG.
        clock: what the seconds are.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    _draw_curves(panels, curves, name, methods)
    panels[0].set(xlabel="epoch", ylabel=_ELBO)
    panels[1].set(xlabel=f"seconds, {clock}")
    figure.suptitle(f"{name}: mean over splits ± 2 standard errors, λ = 1; a dot is the end of training")
    _legend(figure, panels[0])
    figures.save(figure, path)


def overview_figure(
    curves: pd.DataFrame, paired: pd.DataFrame, names: Sequence[str], methods: Sequence[Method], path: Path
) -> None:
    """A column per data set: ELBO against epochs, against seconds, and the final difference from one method.

    Args:
        curves: rows with dataset, method, epoch, seconds, elbo, elbo_error.
        paired: rows with dataset, method, reference (everywhere the same), difference, error.
        names: of the data sets.
        methods: in the order of the legend.
        path: of the PNG.
    """
    heights = 3 if len(paired) else 2
    size = (max(3.2 * len(names) + 1.0, 6.0), 2.9 * heights)
    figure, grid = plt.subplots(heights, len(names), figsize=size, squeeze=False, layout="constrained")
    for column, name in zip(grid.T, names, strict=True):
        _draw_curves(column[:2], curves, name, methods)
        column[0].set(title=name, xlabel="epoch")
        column[1].set(xlabel="seconds of training")
        if len(paired):
            _draw_differences(column[2], paired[paired.dataset == name], methods)
    for axes in grid[:2, 0]:
        axes.set_ylabel(_ELBO)
    if len(paired):
        grid[2, 0].set_ylabel(f"final ELBO per datum,\ndifference from {paired.reference.iloc[0]}")
    figure.suptitle("mean over splits ± 2 standard errors, λ = 1; below, paired by split", fontsize="medium")
    _legend(figure, grid[0, 0])
    figures.save(figure, path)


def _draw_curves(panels: Sequence[Axes], curves: pd.DataFrame, name: str, methods: Sequence[Method]) -> None:
    """Against epochs in the first panel, against seconds in the second."""
    shown = {method.name: curves[(curves.dataset == name) & (curves.method == method.name)] for method in methods}
    limits = visible_range([rows.elbo.to_numpy() for rows in shown.values()])
    entered = [rows.seconds[rows.elbo >= limits[0]].min() for rows in shown.values()]
    for axes, key in zip(panels, ("epoch", "seconds"), strict=True):
        for method in methods:
            rows, color = shown[method.name], figures.COLORS[method.name]
            axes.plot(rows[key], rows.elbo, color=color, linewidth=1.4, label=f"{method.name}: {method.title}")
            axes.plot(rows[key].iloc[-1:], rows.elbo.iloc[-1:], "o", color=color, markersize=4)
            low, high = rows.elbo - 2 * rows.elbo_error, rows.elbo + 2 * rows.elbo_error
            axes.fill_between(rows[key], low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_ylim(limits)
        axes.grid(alpha=0.3)
    panels[1].set_xscale("log")
    last = max(rows.seconds.iloc[-1] for rows in shown.values())
    panels[1].set_xlim(0.8 * np.nanmin(entered), 1.25 * last)
    wide = last > 30 * np.nanmin(entered)
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    panels[1].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panels[1].xaxis.set_minor_formatter(NullFormatter())


def _draw_differences(axes: Axes, paired: pd.DataFrame, methods: Sequence[Method]) -> None:
    rows = paired.set_index("method")
    present = [method.name for method in methods if method.name in rows.index]
    for place, name in enumerate(present):
        error = 2 * np.nan_to_num(rows.error[name])
        color = figures.COLORS[name]
        axes.errorbar(place, rows.difference[name], yerr=error, fmt="o", markersize=5, capsize=3, color=color)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(present)), [name.removeprefix("nng-") for name in present])
    axes.set_xlim(-0.6, len(present) - 0.4)
    axes.grid(alpha=0.3, axis="y")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(int(figure.get_figwidth() // 2.9), len(labels))  # an entry is less than 2.9 inches wide
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
