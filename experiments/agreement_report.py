"""Tables and figures of the agreement with Hamiltonian Monte Carlo."""

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

from experiments import figures, records
from experiments.methods import Method

HALVES = "nuts, half against half"

_COLUMNS = {
    "mean_distance": ("mean: RMS distance", 3),
    "epistemic_ratio": ("epist. sd: ratio", 3),
    "epistemic_correlation": ("epist. sd: rank corr.", 3),
    "total_ratio": ("total sd: ratio", 3),
    "total_correlation": ("total sd: rank corr.", 3),
    "wasserstein": ("W2", 4),
    "kl": ("KL(NUTS, q)", 4),
    "rmse": ("RMSE", 3),
    "log_likelihood": ("test log-lik.", 3),
    "training_seconds": ("seconds", 0),
}

_ON_SCREEN = {
    "mean_distance": "mean\nRMS",
    "epistemic_ratio": "sd\nratio",
    "epistemic_correlation": "sd\nrank",
    "wasserstein": "\nW2",
    "kl": "\nKL",
    "log_likelihood": "test\nlog-l.",
}

_CONDITIONS = """\
Predictions of the test part against those of the exact posterior, drawn by NUTS, of the same network, prior and noise.
RMS distance: of the predictive means, in units of NUTS's epistemic standard deviation. Ratios: mean over test points of
the method's standard deviation over NUTS's. Rank correlation: Spearman's, over test points. W2: 2-Wasserstein distance
of the predictive distributions of y, in standardized targets, averaged over test points. KL(NUTS, q): from NUTS's
predictive density of y to the method's, nats, averaged over test points. RMSE and test log-likelihood are in raw units.
The row `nuts, half against half` has the same figures of NUTS's second half of chains against its first: what no method
can be expected to fall below.
"""


def reference_line(summary: dict[str, Any]) -> str:
    """One line on the reference's convergence."""
    worst = (summary["r_hat_max"], summary["r_hat_folded_max"], summary["r_hat_noise"])
    return (
        f"  {summary['chains']} x {summary['draws']} draws after {summary['warmup']}: R-hat of test predictions at "
        f"most {worst[0]:.4f}, of their spread {worst[1]:.4f}, of the noise {worst[2]:.4f}; effective draws at least "
        f"{summary['ess_min']:.0f}; {summary['divergences']} divergences; {summary['leapfrog_per_draw']:.0f} leapfrog "
        f"steps per draw; {sum(summary['seconds']):.0f} s"
    )


def write(
    table: pd.DataFrame, references: dict[str, dict[str, Any] | None], output: Path, provenance: dict[str, Any]
) -> None:
    """agreement.csv, agreement.md and provenance.json.

    Args:
        table: a row per data set, method and kind of prediction.
        references: what ``reference.json`` has, by data set.
        output: folder.
        provenance: of :func:`experiments.records.provenance`.
    """
    records.write_table(output / "agreement.csv", table)
    records.write_json(output / "provenance.json", provenance)
    header = ["data set", "split", "method", "predictive", *(title for title, _ in _COLUMNS.values())]
    versions = ", ".join(f"{name} {number}" for name, number in provenance["packages"].items())
    lines = [
        "# Agreement with Hamiltonian Monte Carlo",
        "",
        _CONDITIONS,
        "| " + " | ".join(header) + " |",
        "| " + " | ".join(["---", "---:", "---", "---", *["---:"] * len(_COLUMNS)]) + " |",
        *("| " + " | ".join(_cells(row)) + " |" for row in table.to_dict("records")),
        "",
        "The references:",
        "",
    ]
    for name, reference in references.items():
        if reference is not None:
            prior = reference["settings"]
            scale = " / inputs of the layer" if prior["prior_scale"] == "fan_in" else ""
            line = reference_line(reference["diagnostics"]).strip()
            lines.append(f"- {name}: prior variance {prior['prior_variance']:g}{scale}; {line}")
    lines += [
        "",
        f"Command: `{provenance['command']}`  ",
        f"Versions: {versions}, Python {provenance['python']}  ",
        f"Machine: {provenance['machine']}, {provenance['threads']} threads",
        "",
    ]
    records.write_text(output / "agreement.md", "\n".join(lines))


def rich_table(table: pd.DataFrame) -> Table:
    """For the screen, in 80 columns; the files have all figures."""
    shown = Table(title="agreement with NUTS on the test part", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in ("data set", "method", ""):
        shown.add_column(column, no_wrap=True)
    for title in _ON_SCREEN.values():
        shown.add_column(title, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        figures = [f"{row[key]:.{_COLUMNS[key][1]}f}" for key in _ON_SCREEN]
        shown.add_row(str(row["dataset"]), str(row["method"]), str(row["predictive"])[:3], *figures)
    return shown


def figure(folder: Path, methods: Sequence[Method], title: str, path: Path) -> None:
    """A panel per method: its epistemic standard deviation of every test point against NUTS's.

    Args:
        folder: holds a folder per method with ``points_sampled.csv``.
        methods: in the order of the panels.
        title: of the figure.
        path: of the PNG.
    """
    columns = min(len(methods), 3)
    rows = -(-len(methods) // columns)
    drawing, panels = plt.subplots(
        rows,
        columns,
        figsize=(3.6 * columns, 3.6 * rows),
        squeeze=False,
        layout="constrained",
        sharex=True,
        sharey=True,
    )
    for index, axes in enumerate(panels.flat):
        if index >= len(methods):
            axes.set_visible(False)
            continue
        table = pd.read_csv(folder / methods[index].name / "points_sampled.csv")
        axes.plot(table.nuts_epistemic_std, table.method_epistemic_std, "o", markersize=3, color="#0072b2")
        ends = [table.filter(like="epistemic").min().min(), table.filter(like="epistemic").max().max()]
        axes.plot(ends, ends, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", title=methods[index].name)
        axes.grid(alpha=0.3)
    drawing.supxlabel("NUTS: epistemic standard deviation")
    drawing.supylabel("method")
    drawing.suptitle(f"{title}: test points, raw units")
    figures.save(drawing, path)


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [f"{row[key]:.{digits}f}" for key, (_, digits) in _COLUMNS.items()]
    return [*(str(row[key]) for key in ("dataset", "split", "method", "predictive")), *figures]
