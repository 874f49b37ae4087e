"""The ELBO comparison's report. Every sentence is made from the numbers; none states an expectation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import records, summary
from experiments.elbo_statistics import BASELINE, HIGHER, LOWER, TOLERANCE, UNKNOWN, WITHIN, Tables
from experiments.methods import Method

_CONDITIONS = """\
ELBO in nats per standardized training datum, lambda = 1 throughout; mean ± standard error over splits, which are
trained together as replicas. All methods have the same network, prior, likelihood, initial means and batches; their
learning rates fall along a cosine over the whole run. Fraction of the epochs in which the KL's weight rises to 1
(`--warmup {choice}`): {fractions}; the curves show the bound at weight 1 during it, too. Points of a curve are
evaluated with {samples} samples of the weights, the final ELBO with more. Seconds are of training alone, all splits
together: {clock}.
"""
_PAIRED = """\
Mean ± standard error of the difference over the same splits. The splits share most of their examples: the error is
that of another split of this data set, not of other data.
"""
_SPEED = f"""\
The first evaluated epoch at which the mean over splits is there, and the seconds until then; a dash where it never is.
Last two columns: splits in which the method is near `{BASELINE}`'s final ELBO of that split before `{BASELINE}` itself.
A step's time is the median over rounds in which all methods take turns, with quartiles; on one thread it is processor
time.
"""


def write(
    tables: Tables, methods: Sequence[Method], warmup: str, samples: int, output: Path, provenance: dict[str, Any]
) -> None:
    """curves.csv, final.csv, paired.csv, speed.csv, results.md and provenance.json.

    Args:
        tables: of the finished runs.
        methods: as they were trained.
        warmup: the command's choice of KL warm-up.
        samples: of the weights at a point of a curve.
        output: folder.
        provenance: of :func:`experiments.records.provenance`.
    """
    frames = {"curves": tables.curves(), "final": tables.final(), "paired": tables.paired(), "speed": tables.speed()}
    for name, frame in frames.items():
        records.write_table(output / f"{name}.csv", frame)
    records.write_json(output / "provenance.json", provenance)
    conditions = _CONDITIONS.format(
        choice=warmup,
        fractions=", ".join(f"`{method.name}` {method.kl_warmup:g}" for method in methods),
        samples=samples,
        clock=tables.clock(),
    )
    records.write_text(output / "results.md", _markdown(tables, methods, conditions, provenance))


def rich_table(tables: Tables) -> Table:
    """The paired differences, for the screen."""
    shown = Table(title="final ELBO per datum, paired over splits, lambda = 1", box=SIMPLE_HEAD)
    for column in ("dataset", "pair", "difference", "verdict"):
        shown.add_column(column, no_wrap=True)
    for row in tables.paired().to_dict("records"):
        shown.add_row(row["dataset"], f"{row['method']} - {row['reference']}", _signed(row), row["verdict"])
    return shown


def sentences(tables: Tables, methods: Sequence[Method]) -> list[str]:
    """What came out, from the numbers alone."""
    speed = tables.speed()
    titles = {method.name: f"`{method.name}` ({method.title})" for method in methods}
    lines = []
    for (method, reference), rows in tables.paired().groupby(["method", "reference"], sort=False):
        lines.append(f"The final ELBO of {titles[method]} against {titles[reference]}: {_outcome(rows)}.")
    if BASELINE in titles:
        base = speed[speed.method == BASELINE].set_index("dataset")
        for name in titles:
            if name != BASELINE:
                lines.append(f"{titles[name]} {_pace(speed[speed.method == name].set_index('dataset'), base)}.")
    return lines


def _markdown(tables: Tables, methods: Sequence[Method], conditions: str, provenance: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in provenance["packages"].items())
    groups = tables.final().groupby(["dataset", "method"], sort=False)
    final = [_final_cells(dataset, method, rows) for (dataset, method), rows in groups]
    parts = [
        "# ELBO against epochs and seconds",
        conditions,
        "## Final ELBO",
        _table(["data set", "method"], ["ELBO / N", "expected log-lik. / N", "KL / N"], final),
        "## Paired differences of the final ELBO",
        _PAIRED,
        _table(
            ["data set", "pair", "verdict"],
            ["splits", "difference"],
            [_paired_cells(row) for row in tables.paired().to_dict("records")],
        ),
        f"## Epochs and seconds until within {TOLERANCE} nats of a final ELBO",
        _SPEED,
        _table(
            ["data set", "method"],
            [
                *("ms per step", "seconds in all", "own: epochs", "own: seconds"),
                *(f"{BASELINE}'s: epochs", f"{BASELINE}'s: seconds", "sooner in epochs", "sooner in seconds"),
            ],
            [_speed_cells(row) for row in tables.speed().to_dict("records")],
        ),
        "## What came out",
        "".join(f"- {line}\n" for line in sentences(tables, methods)),
        f"Command: `{provenance['command']}`  \n"
        f"Versions: {versions}, Python {provenance['python']}  \n"
        f"Machine: {provenance['machine']}, {provenance['threads']} thread{'s' if provenance['threads'] > 1 else ''}\n",
    ]
    return "\n".join(part if part.endswith("\n") else part + "\n" for part in parts)


def _outcome(rows: pd.DataFrame) -> str:
    parts = []
    for verdict in (HIGHER, WITHIN, LOWER, UNKNOWN):
        chosen = rows[rows.verdict == verdict].to_dict("records")
        if chosen:
            parts.append(f"{verdict} on " + ", ".join(f"{row['dataset']} ({_signed(row)})" for row in chosen))
    return "; ".join(parts)


def _pace(rows: pd.DataFrame, base: pd.DataFrame) -> str:
    """How soon a method is near bbb's final ELBO, both read off the means over splits; indexed by data set."""
    count = len(rows)
    fewer = rows.index[rows.bbb_epochs < base.bbb_epochs]
    less = rows.index[rows.bbb_seconds < base.bbb_seconds]
    never = rows.index[rows.bbb_epochs.isna()]
    text = (
        f"is within {TOLERANCE} nats of `{BASELINE}`'s final ELBO after fewer epochs than `{BASELINE}` itself on "
        f"{_of(fewer, count)}, after less time on {_of(less, count)}"
    )
    return text + (f", and never on {', '.join(never)}" if len(never) else "")


def _of(names: pd.Index, count: int) -> str:
    of = f"{len(names)} of {count} set{'s' if count > 1 else ''}"
    return f"{of} ({', '.join(names)})" if len(names) else of


def _table(left: list[str], right: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first columns are aligned to the left, the others to the right."""
    rule = ["---"] * len(left) + ["---:"] * len(right)
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (left + right, rule, *rows))


def _final_cells(dataset: str, method: str, rows: pd.DataFrame) -> list[str]:
    values = (rows[key].to_numpy() for key in ("elbo", "expected_log_likelihood", "kl"))
    return [dataset, f"`{method}`", *(f"{v.mean():.3f}±{summary.standard_error(v):.3f}" for v in values)]


def _paired_cells(row: dict[str, Any]) -> list[str]:
    pair = f"`{row['method']}` - `{row['reference']}`"
    return [row["dataset"], pair, row["verdict"], str(row["splits"]), _signed(row)]


def _speed_cells(row: dict[str, Any]) -> list[str]:
    step = "{milliseconds:.3g} ({milliseconds_low:.3g} to {milliseconds_high:.3g})".format(**row)
    cells = [row["dataset"], f"`{row['method']}`", "-" if np.isnan(row["milliseconds"]) else step]
    cells.append(_number(row["seconds"]))
    cells += [_number(row.get(key, np.nan)) for key in ("own_epochs", "own_seconds", "bbb_epochs", "bbb_seconds")]
    for key in ("sooner_epochs", "sooner_seconds"):
        known = row["method"] != BASELINE and not np.isnan(row.get(key, np.nan))
        cells.append(f"{row[key]:g}/{row['splits']}" if known else "-")
    return cells


def _number(value: float) -> str:
    """Three digits, a whole number from 100 on, a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _signed(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.3f} ± {row['error']:.3f}"
