"""The whole UCI table: nine sets, every method and split, and the in-split selection, beside what others publish.

    python -m experiments.uci_table --processes 2

Runs and selections are those of :mod:`experiments.uci_regression`, the longest first, several at the same time. What is
finished is kept and what was stopped goes on, so the command may be given again at any time. Written: in the output
folder everything of every run; in the folder of the report the tables (Markdown and CSV) and figures that the
documentation shows. Peers that :mod:`experiments.peers` has run and published results appear beside ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console

import uci_data
from experiments import cli, peers, records, selection, summary, uci_figures, uci_report
from experiments.methods import CANDIDATES, METHODS, RECIPES, Method
from experiments.protocol import Splits, load_splits
from experiments.runs import Configuration, run_one

_MODULE = "experiments.uci_table"
_DATASETS = ("protein", "naval", "kin8nm", "power", "wine", "concrete", "energy", "boston", "yacht")  # longest first
# For glibc: keep what was freed. Large tensors are otherwise handed back and cleared anew, a tenth of the time.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": f"{1 << 32}", "MALLOC_TOP_PAD_": f"{1 << 26}"}


@dataclass(frozen=True)
class Task:
    """One run: a method on all splits of a data set.

    Args:
        dataset: its name.
        method: to be trained.
        rehearsal: whether on nine tenths of the training parts, for the selection.
    """

    dataset: str
    method: Method
    rehearsal: bool = False

    def __str__(self) -> str:
        return f"{self.dataset} {self.method.name}{', to select' if self.rehearsal else ''}"


@dataclass(frozen=True)
class Job:
    """What the tasks share.

    Args:
        output: folder of the runs.
        splits: only the first so many; None for all.
        epochs: instead of the rule's number.
        seed: of initial weights, batches and noise.
    """

    output: Path
    splits: int | None
    epochs: int | None
    seed: int

    def data(self, dataset: str) -> Splits:
        """The splits of a data set."""
        return load_splits(uci_data.load(dataset), self.splits)

    def configuration(self, data: Splits) -> Configuration:
        """Of all runs on ``data``."""
        config = replace(Configuration.for_size(data.name, data.num_train), seed=self.seed)
        return config if self.epochs is None else replace(config, epochs=self.epochs)

    def run(self, task: Task) -> bool:
        """Train and evaluate, unless that is done; whether there was work to do."""
        data = self.data(task.dataset)
        config, folder = self.configuration(data), self.output / task.dataset
        if task.rehearsal:
            return selection.rehearse(task.method, data, config, folder, _MODULE, progress=False)
        return run_one(task.method, data, config, folder / task.method.name, progress=False, module=_MODULE)


def tasks_of(datasets: Sequence[str], methods: Sequence[Method], candidates: Sequence[Method]) -> list[Task]:
    """Every run that the table needs; the candidates' come first, as they are the longest of a data set."""
    tasks = []
    for dataset in sorted(datasets, key=_DATASETS.index):
        tasks += [Task(dataset, method) for method in candidates]
        tasks += [Task(dataset, method) for method in methods if method not in candidates]
        tasks += [Task(dataset, method, rehearsal=True) for method in candidates]
    return tasks


def run_all(job: Job, tasks: Sequence[Task], processes: int, console: Console) -> None:
    """Run the tasks, ``processes`` at the same time with one thread each, and say when each is finished."""
    clock = WallTime(job.output / "wall_time.json", processes)
    for count, (task, worked) in enumerate(_finished(job, tasks, processes), start=1):
        minutes, kept = clock.tick(worked) / 60, "" if worked else ", done before"
        console.print(f"[{count}/{len(tasks)}] {minutes:.1f} min: {task}{kept}", markup=False)


def _finished(job: Job, tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, bool]]:
    if processes == 1:
        for task in tasks:
            yield task, job.run(task)
        return
    for name, value in _ALLOCATOR.items():
        os.environ.setdefault(name, value)  # read when a process begins
    # Forked processes would share torch's threads with this one. The pool ends its processes when this one is left,
    # also by a signal: nothing may go on writing where the next invocation writes.
    with (
        _terminable(),
        get_context("spawn").Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield from pool.imap_unordered(partial(_run, job), tasks)


def _run(job: Job, task: Task) -> tuple[Task, bool]:
    return task, job.run(task)


@contextmanager
def _terminable() -> Iterator[None]:
    """Have the request to terminate unwind the stack, as an interrupt from the keyboard does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class WallTime:
    """The time that all invocations with something to do took together, kept in a file.

    Args:
        path: of the file.
        processes: that run at the same time in this invocation, for the record.
    """

    def __init__(self, path: Path, processes: int) -> None:
        self._path, self._started = path, time.perf_counter()
        before = records.read_json(path) or {"seconds": 0.0, "invocations": 0}
        self._seconds, self._record = (
            before["seconds"],
            {
                "invocations": before["invocations"] + 1,
                "processes": processes,
            },
        )

    def tick(self, worked: bool) -> float:
        """Return how many seconds it has been, and write that down if there was work."""
        seconds = self._seconds + time.perf_counter() - self._started
        if worked:
            records.write_json(self._path, {"seconds": seconds, **self._record})
        return seconds


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Default: {', '.join(_DATASETS[::-1])}.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(METHODS | RECIPES)}.")] = ",".join(
        METHODS
    ),
    select: Annotated[str, typer.Option(help="Methods that are selected from.")] = ",".join(CANDIDATES),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("results/uci"),
    peers_output: Annotated[Path, typer.Option("--peers", help="Where experiments.peers wrote its results.")] = Path(
        "results/peers"
    ),
    report: Annotated[Path, typer.Option(help="Folder of the tables and figures.")] = Path("results/uci/report"),
    processes: Annotated[int, typer.Option(min=1, help="Runs at the same time, of one thread each.")] = 2,
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
) -> None:
    """Train what is missing, select, and write the report."""
    console = cli.started(1)
    chosen = cli.chosen(methods, METHODS | RECIPES)
    candidates = cli.chosen(select, METHODS | RECIPES, "--select")
    names = cli.checked_datasets(datasets or list(_DATASETS))
    if unknown := [name for name in names if name not in _DATASETS]:
        raise typer.BadParameter(f"not in this table: {', '.join(unknown)}", param_hint="DATASETS")
    job = Job(output, splits, epochs, seed)
    for name in names:
        cli.loaded(name, 1, console)  # absent data end the command before anything is trained
    run_all(job, tasks_of(names, chosen, candidates), processes, console)
    for name in names:
        selection.combine(candidates, job.data(name), output / name)
    wall = records.read_json(output / "wall_time.json")
    assert wall is not None
    names = sorted(names, key=_DATASETS[::-1].index)
    shown = list(dict.fromkeys([*(m.name for m in chosen), *(m.name for m in candidates), selection.NAME]))
    ours = summary.collect(output, names, shown)
    weights = {name: pd.read_csv(output / name / selection.NAME / "chosen.csv") for name in names}
    others = peers_of(peers_output, names)
    uci_report.write(ours, others, weights, wall, report, records.provenance(_MODULE))
    uci_figures.calibration(output, names, report / "uci_calibration.png")
    uci_figures.elbo(ours, report / "uci_elbo.png")
    uci_figures.log_likelihood(ours, others, report / "uci_log_likelihood.png")
    console.print(uci_report.rich_verdicts(ours, others, wall))
    console.print(f"written: {report}")


def peers_of(folder: Path, datasets: Sequence[str]) -> pd.DataFrame | None:
    """The rows per split of the peers that were run on ``datasets``; None if there are none."""
    try:
        table = peers.collect(folder)
    except FileNotFoundError:
        return None
    table = table[table.dataset.isin(datasets)]
    return None if table.empty else table


if __name__ == "__main__":
    app()
