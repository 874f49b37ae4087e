"""The strongest methods of others on the UCI sets, with our fixed splits, standardization and network.

    python -m experiments.peers boston yacht --peers peer-laplace-full,peer-gp

The packages of the peers come with the extra "peers". Every peer gets about twice the steps that our own methods get.
Written to the output folder, for every data set and peer: ``splits.csv`` (a row per split), ``chosen.csv`` (what was
selected inside each split) and ``run.json``; over all of them ``peers.csv`` and ``peers_summary.csv``. What is finished
is not run again.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from experiments import cli, records
from experiments.peer_methods import PEERS, Budget, Peer, PeerNotInstalledError, Prediction
from experiments.protocol import Splits

COLUMNS = ("rmse", "log_likelihood", "coverage", "training_seconds")


def run_one(peer: Peer, splits: Splits, budget: Budget, folder: Path, progress: bool = True) -> bool:
    """Train and evaluate ``peer`` into ``folder``, unless it holds this very run; whether there was work to do.

    Raises:
        PeerNotInstalledError: if its package is missing.
    """
    peer.require()
    settings = settings_of(peer, splits, budget)
    done = records.read_json(folder / "run.json")
    if done is not None and done["settings"] == settings:
        return False
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with warnings.catch_warnings(), _flushed_denormals():
        warnings.simplefilter("ignore")  # of the peers' packages
        for prediction in peer.predictions(splits, budget):
            rows.append(_row(prediction, splits, len(rows)))
            if progress:
                _report(rows[-1], splits, time.perf_counter() - started)
    _write(pd.DataFrame(rows), peer, splits, folder)
    records.write_json(folder / "run.json", {"settings": settings, **_provenance(peer)})
    return True


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Weights that decay to nothing pass through numbers with which a CPU is many times slower: those count as 0."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def settings_of(peer: Peer, splits: Splits, budget: Budget) -> dict[str, Any]:
    """All that decides the result, as JSON gives it back."""
    names = ("name", "settings", "candidates", "rehearsal")
    settings = {**{key: getattr(peer, key) for key in names}, "splits": splits.count, **asdict(budget)}
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _row(prediction: Prediction, splits: Splits, index: int) -> dict[str, Any]:
    figures = prediction.mixture.figures(splits.y_test[index, :, 0], splits.y_scale[index])
    return {"split": index, **figures, "training_seconds": prediction.seconds, **prediction.chosen}


def _report(row: dict[str, Any], splits: Splits, seconds: float) -> None:
    print(
        f"  split {row['split'] + 1}/{splits.count}: RMSE {row['rmse']:.3f}, "
        f"log-likelihood {row['log_likelihood']:.3f}, {seconds:.0f} s"
    )


def _write(table: pd.DataFrame, peer: Peer, splits: Splits, folder: Path) -> None:
    """splits.csv with the columns that all methods have, seconds being of all splits together; chosen.csv."""
    shown = table[["split", *COLUMNS]].copy()
    shown.insert(0, "dataset", splits.name)
    shown.insert(1, "method", peer.name)
    shown["training_seconds"] = table.training_seconds.sum()
    records.write_table(folder / "splits.csv", shown)
    records.write_table(folder / "chosen.csv", table.drop(columns=list(COLUMNS)))


def _provenance(peer: Peer) -> dict[str, Any]:
    found = records.provenance("experiments.peers")
    if peer.distribution is not None:
        found["packages"][peer.distribution] = version(peer.distribution)
    return found


def collect(output: Path) -> pd.DataFrame:
    """The rows per split of every finished data set and peer under ``output``, in the order of data sets and peers.

    Raises:
        FileNotFoundError: if nothing is finished there.
    """
    order = list(PEERS)
    paths = sorted(
        (path for path in output.glob("*/peer-*/splits.csv") if path.parent.name in PEERS),
        key=lambda path: (path.parts[-3], order.index(path.parent.name)),
    )
    if not paths:
        raise FileNotFoundError(f"no finished peer under {output}")
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over splits of every data set and method, and the standard errors of RMSE and log-likelihood."""
    groups = table.groupby(["dataset", "method"], sort=False)
    return groups.agg(
        splits=("split", "size"),
        rmse=("rmse", "mean"),
        rmse_error=("rmse", "sem"),
        log_likelihood=("log_likelihood", "mean"),
        log_likelihood_error=("log_likelihood", "sem"),
        coverage=("coverage", "mean"),
        training_seconds=("training_seconds", "mean"),
    ).reset_index()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help="Data sets; default: boston.")] = None,
    peers: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(PEERS)}.")] = ",".join(PEERS),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/peers"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Train, evaluate and report; what is finished is kept."""
    console = cli.started(threads)
    logging.basicConfig(format="  %(message)s", stream=sys.stdout)
    logging.getLogger("experiments").setLevel(logging.INFO)  # the progress of selections
    chosen = cli.chosen(peers, PEERS, "--peers")
    names = cli.checked_datasets(datasets or ["boston"])
    try:
        for peer in chosen:
            peer.require()
    except PeerNotInstalledError as error:
        raise typer.BadParameter(str(error), param_hint="--peers") from error
    for name in names:
        data = cli.loaded(name, splits, console)
        budget = replace(Budget.for_size(name, data.num_train), seed=seed)
        if epochs is not None:
            budget = replace(budget, epochs=epochs)
        for peer in chosen:
            print(f"{name} {peer.name}: {peer.title}, {data.count} splits")
            if peer.max_train is not None and data.num_train > peer.max_train:
                print(f"  left out: {data.num_train} training examples, it is run for up to {peer.max_train}")
            elif not run_one(peer, data, budget, output / name / peer.name):
                print("  done before")
    try:
        table = collect(output)
    except FileNotFoundError as error:
        print(error)
        return
    records.write_table(output / "peers.csv", table)
    records.write_table(output / "peers_summary.csv", summarize(table))
    print(summarize(table).round(3).to_string(index=False))
    print(f"written: {output / 'peers.csv'}, {output / 'peers_summary.csv'}")


if __name__ == "__main__":
    app()
