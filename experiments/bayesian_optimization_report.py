"""Tables and the figure of the Bayesian optimization experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import summary
from experiments.elbo_statistics import paired_difference
from experiments.figures import save

_COLORS = {
    "random": "#7f7f7f",
    "thompson": "#0072b2",
    "ei": "#d55e00",
    "gp-thompson": "#009e73",
    "gp-ei": "#cc79a7",
}  # Okabe and Ito 2008
_QUANTILES = (0.25, 0.5, 0.75)


def final(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Regret after the last evaluation, a row per problem and agent.

    Columns ``lower``, ``median`` and ``upper`` are quartiles over repeats; ``change``, ``error`` and ``verdict`` are of
    the decimal logarithm of the regret, less the baseline's, paired by repeat.

    Args:
        table: rows with ``problem``, ``agent``, ``repeat``, ``evaluation`` and ``regret``.
        baseline: one of the agents.
    """
    rows = []
    for problem, of_problem in table.groupby("problem", sort=False):
        last = of_problem[of_problem.evaluation == of_problem.evaluation.max()]
        regret = last.pivot(index="repeat", columns="agent", values="regret")
        for agent in last.agent.unique():
            lower, median, upper = regret[agent].quantile(list(_QUANTILES))
            change, error, verdict = paired_difference(np.log10(regret[agent]), np.log10(regret[baseline]))
            rows.append((problem, agent, lower, median, upper, change, error, verdict))
    columns = ("problem", "agent", "lower", "median", "upper", "change", "error", "verdict")
    return pd.DataFrame(rows, columns=columns)


def markdown(final: pd.DataFrame, baseline: str, provenance: dict[str, Any]) -> str:
    """Problems by column; two tables."""
    lines = [
        "# Bayesian optimization",
        "",
        "Regret, the lowest value found less the lowest there is, after the last evaluation: median and quartiles over",
        "repeats.",
        "",
        *_table(final, _regret),
        "",
        f"Its decimal logarithm less that of `{baseline}`, paired by repeat: mean ± standard error, **bold** where it",
        "exceeds two of these. Lower is better.",
        "",
        *_table(final, _change),
        "",
        *summary.provenance_lines(provenance),
    ]
    return "\n".join([*lines, ""])


def screen(final: pd.DataFrame) -> Table:
    """For the screen."""
    shown = Table(title="regret, median and quartiles", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("problem", "agent", "regret"):
        shown.add_column(column, justify="right" if column == "regret" else "left", no_wrap=True)
    for row in final.to_dict("records"):
        shown.add_row(row["problem"], row["agent"], _regret(row))
    return shown


def figure(table: pd.DataFrame, path: Path) -> None:
    """A panel per problem: median regret by evaluations, logarithmic, with quartiles."""
    problems = list(table.problem.unique())
    canvas, panels = plt.subplots(
        1, len(problems), figsize=(4.0 * max(len(problems), 2), 3.8), squeeze=False, layout="constrained"
    )
    for axes, problem in zip(panels.flat, problems, strict=True):
        of_problem = table[table.problem == problem]
        for agent, part in of_problem.groupby("agent", sort=False):
            quartiles = part.groupby("evaluation").regret.quantile(list(_QUANTILES)).unstack()
            color = _COLORS[str(agent)]
            axes.plot(quartiles.index, quartiles[0.5], color=color, label=agent)
            axes.fill_between(quartiles.index, quartiles[0.25], quartiles[0.75], color=color, alpha=0.15, linewidth=0)
        axes.set_yscale("log")
        axes.set_title(problem, fontsize="medium")
        axes.grid(alpha=0.3)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=len(_COLORS), fontsize="small")
    canvas.supxlabel("evaluations")
    canvas.supylabel("regret (median, quartiles)")
    save(canvas, path)


def _table(final: pd.DataFrame, cell: Any) -> list[str]:
    problems = list(final.problem.unique())
    lines = ["| agent | " + " | ".join(problems) + " |", "| --- |" + " ---: |" * len(problems)]
    for agent in final.agent.unique():
        mine = {row["problem"]: row for row in final[final.agent == agent].to_dict("records")}
        lines.append(f"| `{agent}` | " + " | ".join(cell(mine[p]) if p in mine else "–" for p in problems) + " |")
    return lines


def _regret(row: dict[Any, Any]) -> str:
    return f"{row['median']:.2g} ({row['lower']:.2g} to {row['upper']:.2g})"


def _change(row: dict[Any, Any]) -> str:
    shown = f"{row['change']:+.2f}±{row['error']:.2f}"
    return f"**{shown}**" if row["verdict"] in ("higher", "lower") else shown
