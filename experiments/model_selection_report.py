"""Tables and the figure of what choices inside the splits are worth."""

from __future__ import annotations

from collections.abc import Sequence
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
from experiments.figures import save
from experiments.grids import Grid

RULES = {
    "elbo": ("by ELBO", "#0072b2", "o"),
    "held-out": ("best on held-out tenth", "#d55e00", "s"),
    "stacked": ("stacked", "#009e73", "D"),
    "equal": ("all alike", "#000000", "^"),
}
_FIGURES = ("log_likelihood", "rmse", "elbo_per_datum", "coverage")
_KEYS = ["dataset", "grid", "kind", "name"]


def changes(table: pd.DataFrame, grids: Sequence[Grid]) -> pd.DataFrame:
    """Every candidate and rule less the grid's default candidate, paired by split: mean, standard error and verdict.

    Args:
        table: a row per ``dataset``, ``grid``, ``kind`` ("candidate" or "rule"), ``name`` and ``split``.
        grids: their first candidates are the defaults.
    """
    default = {grid.name: grid.candidates[0].label for grid in grids}
    rows = []
    for (dataset, grid), group in table.groupby(["dataset", "grid"], sort=False):
        of_default = (group.kind == "candidate") & (group.name == default[grid])
        base = group[of_default].sort_values("split")
        for (kind, name), mine in group.groupby(["kind", "name"], sort=False):
            row: dict[str, Any] = {"dataset": dataset, "grid": grid, "kind": kind, "name": name}
            for key in _FIGURES:
                values = mine.sort_values("split")[key].to_numpy()
                row[key] = values.mean()
                row[f"{key}_change"], row[f"{key}_error"], row[f"{key}_verdict"] = paired_difference(
                    values, base[key].to_numpy()
                )
            rows.append(row)
    return pd.DataFrame(rows)


def mean_weights(chosen: pd.DataFrame) -> pd.DataFrame:
    """Weights averaged over splits: a row per ``dataset``, ``grid``, rule and candidate."""
    labels = [column for column in chosen.columns if column not in (*_KEYS, "split")]
    long = chosen.melt(["dataset", "grid", "name"], labels, "candidate", "weight").dropna()
    return long.groupby(["dataset", "grid", "name", "candidate"], sort=False).weight.mean().reset_index()


def markdown(changes: pd.DataFrame, weights: pd.DataFrame, grids: Sequence[Grid], provenance: dict[str, Any]) -> str:
    """A table of changes and one of weights per grid, with a column per data set."""
    lines = [
        "# Choices inside the training part",
        "",
        "Test log-likelihood of the default (nats), and changes against it: means over splits of the paired",
        "difference ± standard error; **bold** where they exceed two of these. In italics, mixtures whose weights the",
        "training part alone decides in every split; below each table, these weights, averaged over splits.",
    ]
    datasets = list(changes.dataset.unique())
    for grid in grids:
        mine, theirs = changes[changes.grid == grid.name], weights[weights.grid == grid.name]
        lines += ["", f"## {grid.title[0].upper()}{grid.title[1:]}", "", *_header(datasets)]
        for kind, name in mine[["kind", "name"]].drop_duplicates().itertuples(index=False):
            cells = [_cell(row) for row in _rows(mine, datasets, kind=kind, name=name)]
            lines.append(f"| {_label(kind, name)} | " + " | ".join(cells) + " |")
        rules = [name for name in theirs.name.unique() if name != "equal"]
        shown = ", ".join(RULES[name][0] for name in rules)
        lines += ["", f"Weights {shown}:", "", *_header(datasets)]
        for candidate in grid.candidates:
            of_candidate = theirs[theirs.candidate == candidate.label]
            shares = [
                [row["weight"] for name in rules for row in _rows(of_candidate, [d], name=name)] for d in datasets
            ]
            cells = [" ".join(f"{share:.2f}" for share in of_set) for of_set in shares]
            lines.append(f"| {candidate.label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *summary.provenance_lines(provenance), ""])


def screen(changes: pd.DataFrame, grids: Sequence[Grid]) -> Table:
    """For the screen: change of the test log-likelihood by rule."""
    datasets = list(changes.dataset.unique())
    title = "test log-likelihood against the default, mean ± standard error of paired differences"
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in ("grid", "choice", *datasets):
        shown.add_column(column, justify="left" if column in ("grid", "choice") else "right", no_wrap=True)
    for grid in grids:
        mine = changes[(changes.grid == grid.name) & (changes.kind == "rule")]
        for name in mine.name.unique():
            cells = [_cell(row).strip("*") for row in _rows(mine, datasets, name=name)]
            shown.add_row(grid.name, name, *cells)
    return shown


def figure(changes: pd.DataFrame, grids: Sequence[Grid], path: Path) -> None:
    """A panel per data set: change of the test log-likelihood by grid and rule, with two standard errors.

    Linear within 0.1 nats, logarithmic beyond.
    """
    datasets = list(changes.dataset.unique())
    columns = min(len(datasets), 2)
    rows = -(-len(datasets) // columns)
    canvas, panels = plt.subplots(
        rows, columns, figsize=(4.6 * columns, (0.5 * len(grids) + 0.9) * rows + 0.6), squeeze=False,
        layout="constrained", sharey=True,
    )  # fmt: skip
    for axes in panels.flat[len(datasets) :]:
        axes.set_visible(False)
    for axes, dataset in zip(panels.flat, datasets, strict=False):
        for place, grid in enumerate(grids):
            mine = changes[changes.grid == grid.name]
            for offset, (name, (label, color, marker)) in enumerate(RULES.items()):
                for row in _rows(mine, [dataset], kind="rule", name=name):
                    change, error = row["log_likelihood_change"], 2 * row["log_likelihood_error"]
                    axes.errorbar(
                        change, place + 0.17 * (offset - 1.5), xerr=error, fmt=marker, markersize=4, capsize=2,
                        linewidth=1, color=color, label=label,
                    )  # fmt: skip
        axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("symlog", linthresh=0.1)  # some choices lose a nat and more
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(grids)), [grid.name for grid in grids])
        axes.set_title(dataset, fontsize="medium")
        axes.grid(alpha=0.3, axis="x")
    panels.flat[0].invert_yaxis()
    handles = {label: handle for handle, label in zip(*panels.flat[0].get_legend_handles_labels(), strict=True)}
    canvas.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    canvas.supxlabel("change of the test log-likelihood against the default (nats, ± two standard errors)")
    save(canvas, path)


def _header(datasets: Sequence[str]) -> list[str]:
    return ["| | " + " | ".join(datasets) + " |", "| --- |" + " ---: |" * len(datasets)]


def _rows(table: pd.DataFrame, datasets: Sequence[str], **where: str) -> list[dict[Any, Any]]:
    """The rows of the data sets, in their order, with the given values."""
    for key, value in where.items():
        table = table[table[key] == value]
    return [row for dataset in datasets for row in table[table.dataset == dataset].to_dict("records")]


def _label(kind: str, name: str) -> str:
    return f"*{RULES[name][0]}*" if kind == "rule" else name


def _cell(row: dict[Any, Any]) -> str:
    if row["kind"] == "candidate" and row["log_likelihood_change"] == 0 and row["log_likelihood_error"] == 0:
        return f"{row['log_likelihood']:.3f}"  # the default
    change = f"{row['log_likelihood_change']:+.3f}±{row['log_likelihood_error']:.3f}"
    return f"**{change}**" if row["log_likelihood_verdict"] in ("higher", "lower") else change
