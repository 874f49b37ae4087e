"""ELBO per datum against epochs and against seconds, for every posterior family on UCI sets.

    python -m experiments.elbo_comparison boston energy --methods bbb,nng-mvg,nng-kron

Zhang et al. (2018) report that noisy Adam reaches about the ELBO of Bayes by Backprop, and noisy K-FAC a higher one in
less training. This command tests it: all methods have the network, prior, likelihood, initial means and batches of
:mod:`experiments.uci_regression`, and the ELBO reported is the lambda = 1 bound of the posterior as it stands, also
during a KL warm-up. It is evaluated outside the clock, by sampling: with few samples along the curve, with many at the
end. Seconds are steps times the median time of a step, measured for all methods in turn before training; on one thread
it is processor time, so that other programs on the machine disturb it little. Written to the output folder:
``curves.csv``, ``final.csv``, ``paired.csv``, ``speed.csv``, ``results.md``, a figure per data set and
``overview.png``. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch.optim import Optimizer

import noisynat
from experiments import cli, elbo_figures, elbo_report, records
from experiments.elbo_statistics import BASELINE, Tables
from experiments.methods import METHODS, Method
from experiments.protocol import Splits
from experiments.runs import Configuration, Training, build, evaluate, plain, prepare

_MODULE = "experiments.elbo_comparison"
_DATASETS = ("boston", "concrete", "energy", "wine", "yacht")
_CURVE_SAMPLES = 32
_CURVE_POINTS = 80
_STEPS_PER_ROUND = 10
_ROUNDS = 3  # for quartiles, where a round takes more steps than were asked for


# --- the curve ------------------------------------------------------------------------------------


def evaluation_epochs(epochs: int, every: int) -> list[int]:
    """Each of the first ``every`` epochs, then every ``every``-th, and the last: from 1, ascending."""
    return [e for e in range(1, epochs + 1) if e <= every or e % every == 0 or e == epochs]


def bound_per_datum(network: noisynat.VariationalNetwork, splits: Splits, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The lambda = 1 ELBO of the posterior as it stands and its KL, nats per datum, (R,) each.

    The random numbers are the call's own, so that looking changes no training run and no later evaluation.
    """
    generator = torch.Generator().manual_seed(seed)
    elbo = network.elbo(splits.x_train, splits.y_train, num_samples=_CURVE_SAMPLES, generator=generator)
    bound = elbo.expected_log_likelihood - elbo.kl  # elbo.total has the warm-up's kl_weight in place of 1
    return (bound / elbo.num_data).numpy(), (elbo.kl / elbo.num_data).numpy()


class Curve:
    """The ELBO of every split at some epochs, kept in a file so that a stopped run loses none.

    Args:
        path: of a CSV file with the columns ``epoch``, ``split``, ``elbo``, ``kl`` (nats per datum) and
            ``training_seconds`` (of the training run so far, evaluation excluded).
        splits: what the ELBO is evaluated on.
        epochs: at which it is evaluated.
        seed: of the random numbers, with the epoch.
    """

    def __init__(self, path: Path, splits: Splits, epochs: Sequence[int], seed: int) -> None:
        self.path, self._splits, self._epochs, self._seed = path, splits, frozenset(epochs), seed
        self._parts: list[pd.DataFrame] = []

    def resume(self, checkpoint: Path, build: Callable[[], noisynat.VariationalNetwork]) -> None:
        """Keep the rows up to the checkpoint's epoch; evaluate that epoch if the run was stopped before it could.

        Args:
            checkpoint: of :func:`noisynat.fit`.
            build: makes a network to load the checkpoint's state into.
        """
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=True)
        reached = state["position"]["epoch"]
        rows = pd.read_csv(self.path) if self.path.exists() else pd.DataFrame({"epoch": []})
        if (rows.epoch <= reached).any():
            self._parts = [rows[rows.epoch <= reached]]
        if reached in self._epochs and not (rows.epoch == reached).any():
            network = build()
            network.load_state_dict(state["network"])
            self._evaluate(network, reached, state["position"]["seconds"])

    def observer(self, network: noisynat.VariationalNetwork) -> Callable[[int, noisynat.History], None]:
        """For ``on_epoch`` of :func:`noisynat.fit`."""
        return lambda epoch, history: self._evaluate(network, epoch, history["seconds"][-1])

    def _evaluate(self, network: noisynat.VariationalNetwork, epoch: int, seconds: float) -> None:
        if epoch not in self._epochs:
            return
        elbo, kl = bound_per_datum(network, self._splits, 1_000_003 * self._seed + epoch)
        row = {"epoch": epoch, "split": np.arange(len(elbo)), "elbo": elbo, "kl": kl, "training_seconds": seconds}
        self._parts.append(pd.DataFrame(row))
        records.write_table(self.path, pd.concat(self._parts, ignore_index=True))


def run_one(
    method: Method, splits: Splits, config: Configuration, every: int, folder: Path, progress: bool = True
) -> bool:
    """Train ``method`` into ``folder``, unless it holds this very run; whether there was work to do."""
    points = {"splits": splits.count, "every": every, "curve_samples": _CURVE_SAMPLES}
    settings = plain({**asdict(config), **asdict(method), **points})
    done = records.read_json(folder / "run.json")
    if done is not None and done["settings"] == settings:
        return False
    checkpoint = folder / "checkpoint.pt"
    if records.read_json(folder / "started.json") != settings:
        checkpoint.unlink(missing_ok=True)
        records.write_json(folder / "started.json", settings)
    curve = Curve(folder / "curve.csv", splits, evaluation_epochs(config.epochs, every), config.seed)
    curve.resume(checkpoint, lambda: build(method, splits, config))
    run = prepare(method, splits, config)
    noisynat.fit(
        run.network,
        run.optimizer,
        run.data,
        config.epochs,
        scheduler=run.scheduler,
        kl_warmup=method.kl_warmup,
        progress=progress,
        on_epoch=curve.observer(run.network),
        checkpoint=checkpoint,
    )
    records.write_table(folder / "final.csv", _final(run.network, splits, config))
    records.write_json(folder / "run.json", {"settings": settings, **records.provenance(_MODULE)})
    checkpoint.unlink(missing_ok=True)
    return True


def _final(network: noisynat.VariationalNetwork, splits: Splits, config: Configuration) -> pd.DataFrame:
    """A row per split: the ELBO and its parts in nats per datum, and the test figures in raw units."""
    rows = evaluate(network, splits, config).rows[
        ["split", "elbo_per_datum", "elbo_error", "kl", "rmse", "log_likelihood"]
    ]
    rows = rows.rename(columns={"elbo_per_datum": "elbo"})
    rows["kl"] /= splits.num_train
    rows.insert(3, "expected_log_likelihood", rows.elbo + rows.kl)
    return rows


# --- the clock ------------------------------------------------------------------------------------


def time_steps(methods: Sequence[Method], splits: Splits, config: Configuration, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a training step on all splits together, by method: one number for each of the timed rounds.

    In every round each method takes its turn of a few steps, a multiple of every optimizer's refresh interval; the
    first round is not counted. With one thread processor time is measured, which is time on an idle machine.

    Args:
        methods: to be timed.
        splits: the data.
        config: of the training run.
        steps: timed steps of each method, at least; rounded up to whole rounds, three or more.
    """
    runs = {method.name: prepare(method, splits, config) for method in methods}
    interval = math.lcm(*(_interval(run.optimizer) for run in runs.values()))
    block = interval * -(-_STEPS_PER_ROUND // interval)
    streams = {name: _endless(run.data) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + max(-(-steps // block), _ROUNDS)):
        for name, run in runs.items():
            times[name].append(1000 * _seconds(run, islice(streams[name], block)) / block)
    return {name: milliseconds[1:] for name, milliseconds in times.items()}


def _seconds(run: Training, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Time that training on ``batches`` takes, their making included."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    objective = run.network.loss if run.network.is_natural else run.network.negative_elbo
    started = clock()
    for x, y in batches:
        run.optimizer.zero_grad()
        objective(x, y).backward()
        run.optimizer.step()
        run.scheduler.step()
    return clock() - started


def _interval(optimizer: Optimizer) -> int:
    """Steps after which the optimizer's costs repeat."""
    return math.lcm(getattr(optimizer, "stats_every", 1), getattr(optimizer, "refresh_every", 1))


def _endless(data: noisynat.TensorBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from data


def timings(methods: Sequence[Method], splits: Splits, config: Configuration, steps: int, path: Path) -> dict[str, Any]:
    """:func:`time_steps`, kept in the file ``path``; measured anew if methods or settings are others."""
    conditions = {"splits": splits.count, "steps": steps, "threads": torch.get_num_threads()}
    settings = plain({**conditions, "config": asdict(config), "methods": [asdict(method) for method in methods]})
    kept = records.read_json(path)
    if kept is None or kept["settings"] != settings:
        measured = time_steps(methods, splits, config, steps)
        kept = {"settings": settings, "milliseconds": measured, **records.provenance(_MODULE)}
        records.write_json(path, kept)
    milliseconds: dict[str, Any] = kept["milliseconds"]
    return milliseconds


def load_curve(folder: Path, milliseconds: Sequence[float] | None, steps_per_epoch: int) -> pd.DataFrame:
    """A finished run's curve with ``seconds``: steps times the median step, or the run's own if there is none."""
    rows = pd.read_csv(folder / "curve.csv")
    if milliseconds:
        rows["seconds"] = rows.epoch * steps_per_epoch * float(np.median(milliseconds)) / 1000
    else:
        rows["seconds"] = rows.training_seconds
    return rows


# --- the command ----------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Data sets; default: {' '.join(_DATASETS)}.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(METHODS)}.")] = ",".join(METHODS),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    warmup: Annotated[
        str, typer.Option(help="KL warm-up: 'own' of each method, 'none', or a fraction of the epochs for all.")
    ] = "own",
    every: Annotated[
        int | None, typer.Option(min=1, help="Epochs between two points of a curve; default: an 80th of the run.")
    ] = None,
    timing_steps: Annotated[
        int, typer.Option(min=0, help="Steps of each method to be timed in turn; 0: take the training runs' own time.")
    ] = 100,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/elbo_comparison"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; networks this small gain nothing from more.")
    ] = 1,
) -> None:
    """Train, evaluate and report; finished parts are kept, a stopped one is resumed."""
    console = cli.started(threads)
    families = [replace(method, start=None, share=1.0) for method in cli.chosen(methods, METHODS)]  # each on its own
    chosen = _with_warmup(families, warmup)
    names = cli.checked_datasets(datasets or _DATASETS)
    tables = Tables()
    for name in names:
        data = cli.loaded(name, splits, console)
        config = replace(Configuration.for_size(name, data.num_train), seed=seed)
        config = config if epochs is None else replace(config, epochs=epochs)
        spacing = every or max(round(config.epochs / _CURVE_POINTS), 1)
        milliseconds: dict[str, Any] = {}
        if timing_steps:
            console.print(f"[bold]{name}[/bold]: timing {len(chosen)} methods")
            milliseconds = timings(chosen, data, config, timing_steps, output / name / "timing.json")
        for method in chosen:
            console.print(
                f"[bold]{name}[/bold] {method.name}: {method.title}, {data.count} splits, {config.epochs} epochs"
            )
            folder = output / name / method.name
            if not run_one(method, data, config, spacing, folder):
                console.print("  done before")
            curve = load_curve(folder, milliseconds.get(method.name), -(-data.num_train // config.batch_size))
            tables.add(name, method.name, curve, pd.read_csv(folder / "final.csv"), milliseconds.get(method.name))
        elbo_figures.dataset_figure(tables.curves(), name, chosen, output / f"{name}.png", tables.clock())
        elbo_report.write(tables, chosen, warmup, _CURVE_SAMPLES, output, records.provenance(_MODULE))
    first = BASELINE if BASELINE in {method.name for method in chosen} else chosen[0].name
    differences = tables.paired([(method.name, first) for method in chosen if method.name != first])
    elbo_figures.overview_figure(tables.curves(), differences, names, chosen, output / "overview.png")
    console.print(elbo_report.rich_table(tables))
    console.print(
        f"written: {output / 'results.md'}, {output / 'overview.png'}, " + ", ".join(f"{n}.png" for n in names)
    )


def _with_warmup(methods: Sequence[Method], warmup: str) -> list[Method]:
    if warmup == "own":
        return list(methods)
    try:
        fraction = 0.0 if warmup == "none" else float(warmup)
    except ValueError:
        fraction = math.nan
    if not 0 <= fraction <= 1:
        raise typer.BadParameter(f"'own', 'none' or a fraction from 0 to 1, not {warmup!r}", param_hint="--warmup")
    return [replace(method, kl_warmup=fraction) for method in methods]


if __name__ == "__main__":
    app()
