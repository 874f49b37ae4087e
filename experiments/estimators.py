"""The scikit-learn estimators against scikit-learn's own, all untuned, by cross-validation.

    python -m experiments.estimators

Five sets: diabetes, boston and wine for regression, digits and breast cancer for classes. Every fold fits all models
one after the other, so that their times compare. Written to the output folder: ``<data set>/folds.csv``, a row per
fold and model, and over all ``estimators.csv`` and ``estimators.md``. A run that was stopped goes on with the fold at
which it stood.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold

import uci_data
from experiments import cli, records
from experiments.estimator_baselines import CLASSIFIERS, NETWORK, OURS, REGRESSORS, Contender
from experiments.summary import provenance_lines

_MODULE = "experiments.estimators"
_OF_SCIKIT_LEARN = {"diabetes": load_diabetes, "digits": load_digits, "breast cancer": load_breast_cancer}
DATASETS = ("diabetes", "boston", "wine", "digits", "breast cancer")
_FIGURES = {
    "log_likelihood": "log-likelihood",
    "error": "RMSE or error rate",
    "calibration_error": "calibration error",
    "seconds": "fit, s",
}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, features) and targets (N,) of a set: whole numbers from 0 where they are classes.

    Raises:
        uci_data.DatasetNotFoundError: if it is a UCI set that is not there.
    """
    if name in _OF_SCIKIT_LEARN:
        X, y = _OF_SCIKIT_LEARN[name](return_X_y=True)
        return X, y
    data = uci_data.load(name)
    return data.X, data.y


def is_of_classes(y: np.ndarray) -> bool:
    """Whether targets are classes."""
    return y.dtype.kind == "i"


def run(name: str, folds: int, seed: int, folder: Path) -> pd.DataFrame:
    """All folds of a set; those that ``folder`` has are not run again.

    Returns:
        A row per fold and model.
    """
    X, y = load(name)
    contenders = CLASSIFIERS if is_of_classes(y) else REGRESSORS
    division = (StratifiedKFold if is_of_classes(y) else KFold)(folds, shuffle=True, random_state=seed)
    path = folder / "folds.csv"
    kept = records.is_of(path, {"dataset": name, "folds": folds, "seed": seed, "models": list(contenders)})
    table = pd.read_csv(path) if kept else pd.DataFrame()
    done = set() if table.empty else set(table.fold)
    if len(done) < folds:
        for make in contenders.values():  # the first fit of a process pays for what is loaded lazily
            _fitted(make, X[:100], y[:100], seed)
    for fold, (train, test) in enumerate(division.split(X, y)):
        if fold in done:
            continue
        rows = [
            {"dataset": name, "model": model, "fold": fold, **_measured(make, X, y, train, test, seed + fold)}
            for model, make in contenders.items()
        ]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
        records.write_table(path, table)
        found = ", ".join(f"{row['model']} {row['log_likelihood']:.3f}" for row in rows)
        print(f"  fold {fold + 1}/{folds}: {found}")
    return table


def _fitted(make: Callable[[int], Contender], X: np.ndarray, y: np.ndarray, seed: int) -> tuple[Contender, float]:
    contender = make(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        started = time.perf_counter()
        contender.fit(X, y)
        return contender, time.perf_counter() - started


def _measured(
    make: Callable[[int], Contender], X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> dict[str, float]:
    contender, seconds = _fitted(make, X[train], y[train], seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        contender.calibrate(X[train], y[train])
    return {**contender.scores(X[test], y[test]), "seconds": seconds}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over folds by set and model, standard errors of the log-likelihood, its rank, and time over the network's.

    Args:
        table: rows of :func:`run`, of one or several sets.
    """
    grouped = table.groupby(["dataset", "model"], sort=False)
    means = grouped[list(_FIGURES)].mean()
    means["log_likelihood_error"] = grouped.log_likelihood.sem()
    means = means.reset_index()
    means["rank"] = means.groupby("dataset").log_likelihood.rank(ascending=False).astype(int)
    network = means[means.model == NETWORK].set_index("dataset").seconds
    means["seconds_over_network"] = means.seconds / means.dataset.map(network)
    return means


def markdown(means: pd.DataFrame, provenance: dict[str, object]) -> str:
    """The table of :func:`summary` as Markdown, set by set."""
    titles = ["data set", "model", "rank", *_FIGURES.values(), "over MLP's"]
    lines = ["# Estimators without tuning", "", f"| {' | '.join(titles)} |", "|---|---|" + "---:|" * 6]
    for row in means.itertuples():
        bold = "**" if row.model == OURS else ""
        lines.append(
            f"| {row.dataset} | {bold}{row.model}{bold} | {row.rank} "
            f"| {row.log_likelihood:.3f}±{row.log_likelihood_error:.3f} | {row.error:.4g} "
            f"| {row.calibration_error:.3f} | {row.seconds:.2f} | {row.seconds_over_network:.1f} |"
        )
    return "\n".join([*lines, "", *provenance_lines(provenance), ""])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Data sets; default: {', '.join(DATASETS)}.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/estimators"),
    seed: Annotated[int, typer.Option(help="Of the folds and models.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Fit, score and compare; finished folds are kept, a stopped run is resumed."""
    console = cli.started(threads)
    chosen = datasets or list(DATASETS)
    if unknown := [name for name in chosen if name not in DATASETS]:
        raise typer.BadParameter(f"unknown data sets {unknown}; known: {', '.join(DATASETS)}", param_hint="DATASETS")
    for name in chosen:
        if name not in _OF_SCIKIT_LEARN:
            cli.loaded(name, 1, console)  # absent data end the command before anything is fitted
    tables = []
    for name in chosen:
        console.print(f"[bold]{name}[/bold]")
        tables.append(run(name, folds, seed, output / name.replace(" ", "_")))
    means = summary(pd.concat(tables, ignore_index=True))
    records.write_table(output / "estimators.csv", means)
    text = markdown(means, records.provenance(_MODULE))
    records.write_text(output / "estimators.md", text)
    console.print(text, markup=False)
    console.print(f"written: {output / 'estimators.md'}")


if __name__ == "__main__":
    app()
