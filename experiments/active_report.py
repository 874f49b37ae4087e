"""Tables and the figure of the active learning experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import summary
from experiments.elbo_statistics import paired_difference
from experiments.figures import COLORS, save

_STYLES = {"random": "--", "variance": ":", "reduction": "-"}


_KEYS = ("data set", "method", "asked for by")


def line(rows: pd.DataFrame) -> str:
    """Mean RMSE of each strategy in one round, for the log."""
    means = rows.groupby("strategy", sort=False).rmse.mean()
    return ", ".join(f"RMSE {value:.3f} {strategy}" for strategy, value in means.items())


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """A row per data set, method and strategy but the random one, whose figures after the last addition it is less.

    Differences are paired by repeat.

    Args:
        table: rows with ``dataset``, ``method``, ``strategy``, ``repeat``, ``asked``, ``rmse`` and ``log_likelihood``.
    """
    rows = []
    last = table[table.asked == table.asked.max()]
    for (dataset, method), group in last.groupby(["dataset", "method"], sort=False):
        parts = {name: part.sort_values("repeat") for name, part in group.groupby("strategy", sort=False)}
        random = parts.pop("random")
        for strategy, part in parts.items():
            row: dict[str, Any] = {"dataset": dataset, "method": method, "strategy": strategy}
            for key in ("rmse", "log_likelihood"):
                row[f"{key}_random"], row[f"{key}_active"] = random[key].mean(), part[key].mean()
                found = paired_difference(part[key].to_numpy(), random[key].to_numpy())
                row[f"{key}_change"], row[f"{key}_error"], row[f"{key}_verdict"] = found
            rows.append(row)
    return pd.DataFrame(rows)


def markdown(gains: pd.DataFrame, provenance: dict[str, Any]) -> str:
    """The gains as a table."""
    lines = [
        "# Active learning",
        "",
        "RMSE and log-likelihood of the test rows after the last addition, mean over repeats in raw units; changes are",
        "active less random, paired by repeat, ± standard error; **bold** where they exceed two of these.",
        "",
        f"| {' | '.join(_KEYS)} | RMSE, random | active | change | log-lik., random | active | change |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(_cells(row)) + " |" for row in gains.to_dict("records")),
    ]
    return "\n".join([*lines, "", *summary.provenance_lines(provenance), ""])


def screen(gains: pd.DataFrame) -> Table:
    """For the screen: RMSE only."""
    shown = Table(title="RMSE after the last addition", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in (*_KEYS, "random", "active", "change"):
        shown.add_column(column, justify="left" if column in _KEYS else "right", no_wrap=True)
    for row in gains.to_dict("records"):
        shown.add_row(*(cell.strip("*") for cell in _cells(row)[:6]))
    return shown


def figure(table: pd.DataFrame, path: Path) -> None:
    """A panel per data set: mean RMSE by targets asked for, with one standard error for the expected reduction.

    The variance's is left out where several methods would crowd the panels.
    """
    if table.method.nunique() > 1:
        table = table[table.strategy != "variance"]
    datasets = list(table.dataset.unique())
    columns = min(len(datasets), 3)
    rows = -(-len(datasets) // columns)
    canvas, panels = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.8 * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(datasets) :]:
        axes.set_visible(False)
    for axes, dataset in zip(panels.flat, datasets, strict=False):
        for (method, strategy), part in table[table.dataset == dataset].groupby(["method", "strategy"], sort=False):
            by_round = part.groupby("asked").rmse
            mean, error = by_round.mean(), by_round.sem()
            label = f"{method}, {strategy}"
            axes.plot(mean.index, mean, _STYLES[strategy], color=COLORS[method], label=label, linewidth=1.2)
            if strategy == "reduction":
                axes.fill_between(mean.index, mean - error, mean + error, color=COLORS[method], alpha=0.15, linewidth=0)
        axes.set_title(dataset, fontsize="medium")
        axes.grid(alpha=0.3)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=4, fontsize="small")
    canvas.supxlabel("targets asked for")
    canvas.supylabel("RMSE of the test rows (raw units)")
    save(canvas, path)


def _cells(row: dict[Any, Any]) -> list[str]:
    cells = [row["dataset"], row["method"], row["strategy"]]
    for key in ("rmse", "log_likelihood"):
        change = f"{row[f'{key}_change']:+.3f}±{row[f'{key}_error']:.3f}"
        marked = f"**{change}**" if row[f"{key}_verdict"] in ("higher", "lower") else change
        cells += [f"{row[f'{key}_random']:.3f}", f"{row[f'{key}_active']:.3f}", marked]
    return cells
