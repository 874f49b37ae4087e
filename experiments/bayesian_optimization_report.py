"""Tables and the figure of the Bayesian optimization experiment."""

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
from experiments.figures import save

_COLORS = {
    "random": "#7f7f7f",
    "kron-thompson": "#0072b2",
    "dense-thompson": "#d55e00",
    "dense-ei": "#e69f00",
    "gp-thompson": "#009e73",
    "gp-ei": "#cc79a7",
}
_QUANTILES = (0.25, 0.5, 0.75)


def final(table: pd.DataFrame) -> pd.DataFrame:
    """Regret after the last evaluation: a row per problem and agent, with quartiles over repeats.

    Args:
        table: rows with ``problem``, ``agent``, ``repeat``, ``evaluation`` and ``regret``.
    """
    last = table[table.evaluation == table.groupby("problem").evaluation.transform("max")]
    quartiles = last.groupby(["problem", "agent"], sort=False).regret.quantile(list(_QUANTILES)).unstack()
    quartiles.columns = pd.Index(["lower", "median", "upper"])
    return quartiles.reset_index()


def markdown(final: pd.DataFrame, provenance: dict[str, Any]) -> str:
    """Problems by column."""
    problems = list(final.problem.unique())
    lines = [
        "# Bayesian optimization",
        "",
        "Regret, the best value found less the lowest there is, after the last evaluation: median and quartiles over",
        "repeats.",
        "",
        "| agent | " + " | ".join(problems) + " |",
        "| --- |" + " ---: |" * len(problems),
    ]
    for agent in final.agent.unique():
        mine = final[final.agent == agent].set_index("problem")
        cells = [_cell(mine.loc[problem]) if problem in mine.index else "–" for problem in problems]
        lines.append(f"| {agent} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *summary.provenance_lines(provenance), ""])


def screen(final: pd.DataFrame) -> Table:
    """For the screen."""
    shown = Table(title="regret, median and quartiles", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("problem", "agent", "regret"):
        shown.add_column(column, justify="right" if column == "regret" else "left", no_wrap=True)
    for _, row in final.iterrows():
        shown.add_row(row.problem, row.agent, _cell(row))
    return shown


def figure(table: pd.DataFrame, path: Path) -> None:
    """A panel per problem: median regret by evaluations, logarithmic, with quartiles."""
    problems = list(table.problem.unique())
    canvas, panels = plt.subplots(
        1, len(problems), figsize=(4.0 * len(problems), 3.8), squeeze=False, layout="constrained"
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
    canvas.legend(handles, labels, loc="outside upper center", ncols=3, fontsize="small")
    canvas.supxlabel("evaluations")
    canvas.supylabel("regret (median, quartiles)")
    save(canvas, path)


def _cell(row: Any) -> str:
    return f"{row['median']:.3g} ({row['lower']:.2g} to {row['upper']:.2g})"
