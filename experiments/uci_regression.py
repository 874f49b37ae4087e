"""Bayesian regression on the UCI sets: all fixed splits of a set trained at once as replicas.

    python -m experiments.uci_regression boston energy --methods bbb,nng-kron

The network is one hidden layer of 50 ReLU units (100 for protein and year), the prior N(0, 1) on every weight, lambda
= 1. One configuration serves all sets; only the number of epochs and the batch size follow the number of examples, by
the rule of :meth:`Configuration.for_size`. Written to the output folder: ``results.csv`` (a row per data set, method
and split), ``summary.csv``, ``results.md`` and a figure per data set. A run that was stopped goes on where it stood.
With ``--select`` some methods are also weighted inside every training part and mixed (:mod:`experiments.selection`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from experiments import cli, figures, records, selection, summary
from experiments.methods import METHODS, RECIPES
from experiments.runs import Configuration, run_one

_MODULE = "experiments.uci_regression"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help="Data sets; default: boston.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(METHODS | RECIPES)}.")] = ",".join(
        METHODS
    ),
    select: Annotated[
        str, typer.Option(help="Methods to be weighted inside every training part and mixed, as the method 'selected'.")
    ] = "",
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/uci"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; networks this small gain nothing from more.")
    ] = 1,
) -> None:
    """Train, evaluate and report; finished parts are kept, a stopped one is resumed."""
    console = cli.started(threads)
    chosen = cli.chosen(methods, METHODS | RECIPES)
    candidates = cli.chosen(select, METHODS | RECIPES, "--select") if select else []
    names = cli.checked_datasets(datasets or ["boston"])
    for name in names:
        data = cli.loaded(name, splits, console)
        config = replace(Configuration.for_size(name, data.num_train), seed=seed)
        if epochs is not None:
            config = replace(config, epochs=epochs)
        for method in chosen:
            console.print(
                f"[bold]{name}[/bold] {method.name}: {method.title}, {data.count} splits, {config.epochs} epochs"
            )
            if not run_one(method, data, config, output / name / method.name, progress=True, module=_MODULE):
                console.print("  done before")
        if candidates:
            console.print(f"[bold]{name}[/bold] {selection.NAME}: among {', '.join(m.name for m in candidates)}")
            selection.select(candidates, data, config, output / name, _MODULE)
        figures.dataset_figure(output / name, chosen, output / f"{name}.png")
    shown = [method.name for method in chosen] + [selection.NAME] * bool(candidates)
    table = summary.collect(output, names, shown)
    command = records.provenance(_MODULE)
    summary.write(table, output, command)
    console.print(summary.rich_table(table))
    console.print(
        f"written: {output / 'results.csv'}, {output / 'results.md'}, " + ", ".join(f"{output / n}.png" for n in names)
    )


if __name__ == "__main__":
    app()
