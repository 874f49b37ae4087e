"""The UCI table on paper: Markdown with a column per data set, CSV with a row per method, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import records, summary
from experiments.methods import DEFAULT, METHODS, RECIPES
from experiments.peer_methods import PEERS
from experiments.published import published_results
from experiments.selection import NAME as SELECTED
from experiments.uci_verdicts import verdicts

_DIGITS = {"naval": 5, "kin8nm": 4}  # of RMSEs, where three say too little


def write(
    ours: pd.DataFrame,
    peers: pd.DataFrame | None,
    weights: dict[str, pd.DataFrame],
    wall: dict[str, float],
    folder: Path,
    provenance: dict[str, Any],
) -> None:
    """uci_tables.md; uci.csv, a row per data set and method; uci_verdicts.csv; uci_chosen.csv, a row per split.

    Args:
        ours: rows per data set, method and split.
        peers: likewise, of peers that we ran; None for none.
        weights: per data set, those of the selection in every split.
        wall: time that the command took, all invocations together.
        folder: to write to.
        provenance: of the command.
    """
    found = verdicts(ours, peers)
    all_rows = ours if peers is None else pd.concat([ours, peers], ignore_index=True)
    chosen = pd.concat([table.assign(dataset=name) for name, table in weights.items()], ignore_index=True)
    chosen = chosen[["dataset", *chosen.columns.drop("dataset")]]
    records.write_table(folder / "uci.csv", summary.summarize(all_rows))
    records.write_table(folder / "uci_verdicts.csv", found)
    records.write_table(folder / "uci_chosen.csv", chosen)
    parts = [
        _verdicts(found),
        _figures(all_rows, "log_likelihood", "Test log-likelihood", "test_log_likelihood", "ll_error"),
        _figures(all_rows, "rmse", "RMSE", "rmse", "rmse_error"),
        _figures(ours, "elbo_per_datum", "ELBO per datum"),
        _figures(all_rows, "coverage", "Coverage of 95% intervals"),
        _selection(chosen),
        _seconds(ours, wall),
        summary.provenance_lines(provenance),
    ]
    lines = [line for part in parts for line in [*part, ""]]
    records.write_text(folder / "uci_tables.md", "\n".join(lines))


def _verdicts(found: pd.DataFrame) -> list[str]:
    lines = ["## Claims, set by set", "", "| claim | holds | where not (ours, other ± paired error) |"]
    lines.append("| --- | ---: | --- |")
    for claim, group in found.groupby("claim", sort=False):
        failures = [
            f"{row.dataset}: {row.ours:.3f}, {row.other:.3f}"
            + ("" if np.isnan(row.error) else f"±{row.error:.3f}")
            + f" ({row.against})"
            for row in group[~group.holds].itertuples()
        ]
        lines.append(f"| {claim} | {group.holds.sum()} of {len(group)} | {'; '.join(failures)} |")
    return lines


def _figures(
    table: pd.DataFrame, column: str, title: str, published: str | None = None, error: str | None = None
) -> list[str]:
    """A Markdown table of one figure, a row per method and a column per data set; published rows at its end."""
    datasets = list(table.dataset.unique())
    lines = [f"## {title}", "", _row(["method", *datasets]), _row(["---", *["---:"] * len(datasets)])]
    means = table.groupby(["method", "dataset"], sort=False)[column].agg(["mean", "sem"])
    for method in table.method.unique():
        if not np.isfinite(means.loc[method, "mean"]).any():
            continue
        cells = []
        for dataset in datasets:
            known = (method, dataset) in means.index
            value, spread = means.loc[(method, dataset)] if known else (np.nan, np.nan)
            cells.append(_cell(value, np.nan if column == "coverage" else spread, _digits(column, dataset)))
        lines.append(_row([_name(method), *cells]))
    if published is not None and error is not None:
        lines += _published(datasets, published, error)
    return lines


def _published(datasets: Sequence[str], column: str, error: str) -> list[str]:
    table = published_results()
    lines = []
    for method in table.method.unique():
        rows = table[table.method == method].set_index("dataset")
        cells = [
            _as_printed(rows.loc[name, column], rows.loc[name, error]) if name in rows.index else "–"
            for name in datasets
        ]
        kinds = [kind for kind in rows.error_kind.dropna().unique() if kind != "none printed"]
        note = f" ({', '.join(kinds)})" if kinds else ""
        lines.append(_row([f"*{method}*{note}", *cells]))
    return lines


def _selection(chosen: pd.DataFrame) -> list[str]:
    means = chosen.drop(columns="split").groupby("dataset", sort=False).mean()
    lines = ["## Weights that the selection gave, mean over splits", "", _row(["data set", *means.columns])]
    lines.append(_row(["---", *["---:"] * len(means.columns)]))
    lines += [_row([str(name), *(f"{value:.2f}" for value in row)]) for name, row in means.iterrows()]
    return lines


def _seconds(ours: pd.DataFrame, wall: dict[str, float]) -> list[str]:
    datasets = list(ours.dataset.unique())
    seconds = ours.groupby(["method", "dataset"], sort=False).training_seconds.first().unstack()[datasets]
    lines = [
        "## Time",
        "",
        f"All of it with the selection took {wall['seconds'] / 60:.0f} minutes with {wall['processes']:.0f} processes "
        f"of one thread each, in {wall['invocations']:.0f} invocation(s). Seconds of training, all splits together:",
        "",
        _row(["method", *datasets]),
        _row(["---", *["---:"] * len(datasets)]),
    ]
    methods = [method for method in ours.method.unique() if method != SELECTED]
    return lines + [_row([_name(m), *(f"{seconds.loc[m, name]:.0f}" for name in datasets)]) for m in methods]


def rich_verdicts(ours: pd.DataFrame, peers: pd.DataFrame | None, wall: dict[str, float]) -> Table:
    """For the screen: on how many data sets each claim holds, and where not."""
    minutes = wall["seconds"] / 60
    shown = Table(title=f"the UCI table, {minutes:.0f} minutes", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("claim", "holds", "where not"):
        shown.add_column(column)
    for claim, group in verdicts(ours, peers).groupby("claim", sort=False):
        shown.add_row(str(claim), f"{group.holds.sum()} of {len(group)}", ", ".join(group[~group.holds].dataset))
    return shown


def _name(method: str) -> str:
    if method == SELECTED:
        return f"**`{method}`**"
    known = METHODS | RECIPES
    title = known[method].title if method in known else PEERS[method].title
    return f"`{method}` {title}" + (" (the default)" if method == DEFAULT else "")


def _digits(column: str, dataset: str) -> int:
    return _DIGITS.get(dataset, 3) if column == "rmse" else 3


def _cell(value: float, error: float, digits: int) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" if not np.isfinite(error) else f"{value:.{digits}f}±{error:.{digits}f}"


def _as_printed(value: float, error: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:g}" if not np.isfinite(error) else f"{value:g}±{error:g}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
