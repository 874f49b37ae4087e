"""What a choice of prior, noise, warm-up, lambda or structure inside every training split is worth.

    python -m experiments.model_selection boston yacht --grids prior,structure

Each grid of :mod:`experiments.grids` is trained on all splits of a data set, and the training part alone decides, by
each of four rules, how its candidates are weighted in each split: by their ELBO, by the held-out tenth's log-likelihood
(the best one, or by stacking), or all alike. The mixtures are then compared with the default candidate on the test
parts. Written to the output folder: ``<data set>/<grid>/chosen.csv`` with every split's weights, ``splits.csv`` with a
row per candidate or rule and split, ``changes.csv``, ``model_selection.md`` and a figure. A run that was stopped goes
on where it stood.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from scipy.special import softmax

from experiments import cli, records
from experiments import model_selection_report as report
from experiments.grids import GRIDS, Grid, Outcome, run_grid
from experiments.protocol import Splits
from experiments.runs import Configuration, figures_of
from experiments.stacking import best_weights, mixed, stacking_weights

_MODULE = "experiments.model_selection"
_DATASETS = ("boston", "concrete", "energy", "yacht")


def weights_of(outcome: Outcome, num_train: int, bounds: bool = True) -> dict[str, np.ndarray]:
    """The candidates' weights (R, K) by every rule; none of them looks at a test part.

    Args:
        outcome: of the grid.
        num_train: N. The weights by ELBO are softmax(N ELBO / N), those of candidates before the data were seen being
            equal; in nats of all data, differences are so large that this is mostly a choice.
        bounds: whether the ELBOs may be compared.
    """
    held_out = np.moveaxis(outcome.held_out, 0, -1)
    count = len(outcome.elbo)
    rules = {
        "held-out": best_weights(held_out),
        "stacked": stacking_weights(held_out),
        "equal": np.full((held_out.shape[0], count), 1 / count),
    }
    return {"elbo": softmax(num_train * outcome.elbo.T, axis=1), **rules} if bounds else rules


def compare(grid: Grid, outcome: Outcome, splits: Splits, folder: Path) -> pd.DataFrame:
    """Figures of all candidates and rules, a row per split; written into ``folder``, with the rules' weights."""
    labels = [candidate.label for candidate in grid.candidates]
    singles = {label: np.tile(row, (splits.count, 1)) for label, row in zip(labels, np.eye(len(labels)), strict=True)}
    rules = weights_of(outcome, splits.num_train, grid.bounds)
    each = [{key: values[k] for key, values in outcome.test.items()} for k in range(len(labels))]
    rows, chosen = [], []
    for kind, group in (("candidate", singles), ("rule", rules)):
        for name, weights in group.items():
            of_one: dict[str, Any] = {"dataset": splits.name, "grid": grid.name, "kind": kind, "name": name}
            of_one["split"] = np.arange(splits.count)
            figures = figures_of(mixed(each, weights), splits)
            elbo = (weights * outcome.elbo.T).sum(1)
            rows.append(pd.DataFrame({**of_one, **figures, "elbo_per_datum": elbo}))
            if kind == "rule":
                chosen.append(pd.DataFrame({**of_one, **dict(zip(labels, weights.T, strict=True))}))
    table = pd.concat(rows, ignore_index=True)
    records.write_table(folder / "splits.csv", table)
    records.write_table(folder / "chosen.csv", pd.concat(chosen, ignore_index=True))
    return table


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Data sets; default: {' '.join(_DATASETS)}.")] = None,
    grids: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(GRIDS)}.")] = ",".join(GRIDS),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/model_selection"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Train, weight, compare and report; finished parts are kept, a stopped one is resumed."""
    console = cli.started(threads)
    chosen = cli.chosen(grids, GRIDS, "--grids")
    names = cli.checked_datasets(datasets or _DATASETS)
    tables = []
    for name in names:
        data = cli.loaded(name, splits, console)
        config = replace(Configuration.for_size(name, data.num_train), seed=seed)
        config = config if epochs is None else replace(config, epochs=epochs)
        for grid in chosen:
            console.print(f"[bold]{name}[/bold] {grid.name}: {grid.title}, {len(grid.candidates)} candidates")
            folder = output / name / grid.name
            outcome = run_grid(grid, data, config, folder, _MODULE)
            tables.append(compare(grid, outcome, data, folder))
    weights = pd.concat([pd.read_csv(output / name / grid.name / "chosen.csv") for name in names for grid in chosen])
    changes = report.changes(pd.concat(tables), chosen)
    records.write_table(output / "changes.csv", changes)
    text = report.markdown(changes, report.mean_weights(weights), chosen, records.provenance(_MODULE))
    records.write_text(output / "model_selection.md", text)
    report.figure(changes, chosen, output / "model_selection.png")
    console.print(report.screen(changes, chosen))
    console.print(f"written: {output / 'model_selection.md'}, {output / 'changes.csv'}")


if __name__ == "__main__":
    app()
