"""From results per split to tables: CSV, Markdown and the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

import noisynat
from experiments import records

_COLUMNS = {
    "rmse": ("RMSE", 3),
    "log_likelihood": ("test log-lik.", 3),
    "elbo_per_datum": ("ELBO / N", 3),
    "coverage": ("95% cov.", 3),
    "training_seconds": ("seconds", 0),
}
_WITHOUT_ERROR = ("coverage", "training_seconds")


def history_table(history: noisynat.History) -> pd.DataFrame:
    """A row per epoch; quantities of every split as mean over the splits and their standard error."""
    columns: dict[str, Any] = {}
    for key, values in history.items():
        array = np.asarray(values, dtype=float)
        if array.ndim == 1:
            columns[key] = array
        else:
            array = array.reshape(*array.shape[:2], -1).mean(-1)  # over the members of a split
            columns[key] = array.mean(1)
            columns[f"{key}_error"] = standard_error(array, axis=1)
    return pd.DataFrame(columns)


def collect(output: Path, datasets: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
    """The rows per split of all given data sets and methods, by name."""
    parts = [pd.read_csv(output / name / method / "splits.csv") for name in datasets for method in methods]
    return pd.concat(parts, ignore_index=True)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error over splits of every data set and method, in the table's order."""
    rows = []
    for (dataset, method), group in table.groupby(["dataset", "method"], sort=False):
        row: dict[str, Any] = {"dataset": dataset, "method": method, "splits": len(group)}
        for key in _COLUMNS:
            values = group[key].to_numpy()
            row[key] = values.mean()
            row[f"{key}_error"] = standard_error(values)
        rows.append(row)
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, output: Path, provenance: dict[str, Any]) -> None:
    """results.csv (rows per split), summary.csv, results.md, and provenance.json."""
    shown = summarize(table)
    records.write_table(output / "results.csv", table)
    records.write_table(output / "summary.csv", shown)
    records.write_json(output / "provenance.json", provenance)
    records.write_text(output / "results.md", _markdown(shown, provenance))


def rich_table(table: pd.DataFrame) -> Table:
    """For the screen: mean +- standard error over splits."""
    title = "mean ± standard error over splits, raw units, lambda = 1"
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in ("dataset", "method", *(title for title, _ in _COLUMNS.values())):
        shown.add_column(column, justify="left" if column in ("dataset", "method") else "right", no_wrap=True)
    for row in summarize(table).to_dict("records"):
        shown.add_row(*_cells(row))
    return shown


def _markdown(shown: pd.DataFrame, provenance: dict[str, Any]) -> str:
    header = ["data set", "method", *(title for title, _ in _COLUMNS.values())]
    lines = [
        "# UCI regression",
        "",
        "Mean ± standard error over the fixed splits. RMSE, test log-likelihood (of the mixture) and coverage of the",
        "95% intervals are in raw units, the ELBO is in nats per standardized training datum; lambda = 1. Seconds",
        "are of training, all splits together.",
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---", "---", *["---:"] * len(_COLUMNS)]) + " |",
        *("| " + " | ".join(_cells(row)) + " |" for row in shown.to_dict("records")),
        "",
        *provenance_lines(provenance),
        "",
    ]
    return "\n".join(lines)


def provenance_lines(provenance: dict[str, Any]) -> list[str]:
    """Command, versions and machine, for the end of a Markdown report."""
    versions = ", ".join(f"{name} {number}" for name, number in provenance["packages"].items())
    return [
        f"Command: `{provenance['command']}`  ",
        f"Versions: {versions}, Python {provenance['python']}  ",
        f"Machine: {provenance['machine']}, {provenance['threads']} threads",
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [str(row["dataset"]), str(row["method"])]
    for key, (_, digits) in _COLUMNS.items():
        if np.isnan(row[key]):
            cells.append("–")  # a mixture of methods has no ELBO of its own
            continue
        cell = f"{row[key]:.{digits}f}"
        cells.append(cell if key in _WITHOUT_ERROR else f"{cell}±{row[f'{key}_error']:.{digits}f}")
    return cells


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray:
    count = values.shape[axis]
    if count < 2:
        return np.full_like(values.mean(axis), np.nan)
    error: np.ndarray = values.std(axis, ddof=1) / np.sqrt(count)
    return error
