"""Bayesian regression on the UCI sets: all fixed splits of a set trained at once as replicas.

    python -m experiments.uci_regression boston energy --methods bbb,nng-kron

The network is one hidden layer of 50 ReLU units (100 for protein and year), the prior N(0, 1) on every weight, lambda
= 1. One configuration serves all sets; only the number of epochs and the batch size follow the number of examples, by
the rule of :meth:`Configuration.for_size`. Written to the output folder: ``results.csv`` (a row per data set, method
and split), ``summary.csv``, ``results.md`` and a figure per data set. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from torch import nn

import noisynat
import uci_data
from experiments import figures, records, summary
from experiments.methods import METHODS, Method
from experiments.protocol import Splits, load_splits

_LARGE_SETS = ("protein", "year")
_LEVEL = 0.95


@dataclass(frozen=True)
class Configuration:
    """What all methods share. The noise prior is weak: Gamma(1, 0.001) on standardized targets."""

    epochs: int
    batch_size: int
    hidden: int = 50
    prior_variance: float = 1.0
    a0: float = 1.0
    b0: float = 0.001
    initial_noise: float = 0.1
    noise_step: float = 0.05
    initial_precision: float = 10.0
    kl_weight: float = 1.0
    elbo_samples: int = 100
    test_samples: int = 500
    seed: int = 0

    @classmethod
    def for_size(cls, name: str, num_train: int) -> Configuration:
        """400 epochs of batches of 32; from 4,000 examples on, about 12,000 steps of batches of 256."""
        hidden = 100 if name in _LARGE_SETS else 50
        if num_train < 4000:
            return cls(400, 32, hidden)
        batch_size = 256
        return cls(max(round(12_000 * batch_size / num_train), 1), batch_size, hidden)


def build(method: Method, splits: Splits, config: Configuration) -> noisynat.VariationalNetwork:
    """The network of ``method``, one replica per split; the same initial means for every method."""
    torch.manual_seed(config.seed)
    net = nn.Sequential(nn.Linear(splits.features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
    return noisynat.VariationalNetwork(
        net,
        likelihood=noisynat.GaussianLikelihood(
            noise="gamma",
            a0=config.a0,
            b0=config.b0,
            initial_std=config.initial_noise,
            step_size=config.noise_step,
        ),
        prior=noisynat.GaussianPrior(variance=config.prior_variance),
        posterior=method.structure,
        num_data=splits.num_train,
        kl_weight=config.kl_weight,
        replicas=splits.count,
        initial_precision=config.initial_precision,
        seed=config.seed,
    )


def train(
    method: Method, splits: Splits, config: Configuration, checkpoint: Path | None, progress: bool
) -> tuple[noisynat.VariationalNetwork, noisynat.History]:
    """Train ``method`` on all splits at once, resuming from ``checkpoint`` where it exists."""
    network = build(method, splits, config)
    optimizer = method.optimizer(network)
    data = noisynat.TensorBatches(
        splits.x_train, splits.y_train, config.batch_size, replicas=network.replicas, seed=config.seed
    )
    history = noisynat.fit(
        network,
        optimizer,
        data,
        config.epochs,
        scheduler=noisynat.cosine_schedule(
            optimizer, config.epochs * len(data), curvature_final=method.curvature_final
        ),
        kl_warmup=method.kl_warmup,
        progress=progress,
        checkpoint=checkpoint,
    )
    return network, history


def evaluate(
    network: noisynat.VariationalNetwork, splits: Splits, config: Configuration
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures of every split, in raw units, and the first split's test predictions."""
    elbo = network.elbo(splits.x_train, splits.y_train, num_samples=config.elbo_samples)
    prediction = network.predict(splits.x_test, num_samples=config.test_samples)
    scale = splits.y_scale
    error = (prediction.mean - splits.y_test).square().mean((-2, -1)).sqrt() * scale
    log_likelihood = prediction.log_prob(splits.y_test).mean(-1) - scale.log()
    level = prediction.cdf(splits.y_test)
    inside = ((level - 0.5).abs() <= _LEVEL / 2).to(scale.dtype)
    per_split = {
        "split": torch.arange(splits.count),
        "rmse": error,
        "log_likelihood": log_likelihood,
        "elbo_per_datum": elbo.per_datum,
        "elbo_error": elbo.standard_error / splits.num_train,
        "kl": elbo.kl,
        "coverage": inside.mean((-2, -1)),
        "epistemic_std": prediction.epistemic_variance.mean((-2, -1)).sqrt() * scale,
        "noise_std": (prediction.aleatoric_variance[:, 0, 0].sqrt()) * scale,
    }
    rows = pd.DataFrame({key: value.double().numpy() for key, value in per_split.items()}).astype({"split": int})
    return rows, _first_split(prediction, splits)


def _first_split(prediction: noisynat.Predictive, splits: Splits) -> pd.DataFrame:
    """Observed and predicted targets of the first split's test part with a 95% interval, in raw units."""
    lower, upper = prediction.replica(0).interval(_LEVEL)
    columns = {
        "observed": splits.y_test[0],
        "predicted": prediction.mean[0],
        "lower": lower,
        "upper": upper,
        "epistemic_std": prediction.epistemic_variance[0].sqrt(),
    }
    offset, scale = splits.y_mean[0], splits.y_scale[0]
    raw = {key: value[:, 0] * scale + (0 if key == "epistemic_std" else offset) for key, value in columns.items()}
    return pd.DataFrame({key: value.numpy() for key, value in raw.items()})


def run_one(method: Method, splits: Splits, config: Configuration, folder: Path, progress: bool) -> bool:
    """Train and evaluate ``method`` into ``folder``, unless it holds this very run; whether there was work to do."""
    settings = {**asdict(config), **asdict(method), "splits": splits.count}
    done = records.read_json(folder / "run.json")
    if done is not None and done["settings"] == settings:
        return False
    checkpoint = folder / "checkpoint.pt"
    before = records.read_json(folder / "started.json")
    if before != settings:
        checkpoint.unlink(missing_ok=True)
        records.write_json(folder / "started.json", settings)
    started = time.perf_counter()
    network, history = train(method, splits, config, checkpoint, progress)
    rows, predictions = evaluate(network, splits, config)
    rows.insert(0, "dataset", splits.name)
    rows.insert(1, "method", method.name)
    rows["training_seconds"] = history["seconds"][-1]
    records.write_table(folder / "splits.csv", rows)
    records.write_table(folder / "predictions.csv", predictions)
    records.write_table(folder / "history.csv", summary.history_table(history))
    total = time.perf_counter() - started
    records.write_json(
        folder / "run.json",
        {"settings": settings, "seconds": total, **records.provenance("experiments.uci_regression")},
    )
    checkpoint.unlink(missing_ok=True)
    return True


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help="Data sets; default: boston.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(METHODS)}.")] = ",".join(METHODS),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/uci"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; networks this small gain nothing from more.")
    ] = 1,
) -> None:
    """Train, evaluate and report; finished parts are kept, a stopped one is resumed."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # lines appear as they come when piped
    console = Console(soft_wrap=True)
    torch.set_num_threads(threads)
    chosen = _methods(methods)
    names = datasets or ["boston"]
    for name in names:
        try:
            uci_data.info(name)  # an unknown name fails before anything is trained
        except uci_data.UnknownDatasetError as error:
            raise typer.BadParameter(str(error), param_hint="DATASETS") from error
    for name in names:
        try:
            data = load_splits(uci_data.load(name), splits)
        except uci_data.DatasetNotFoundError as error:
            console.print(str(error), markup=False)
            raise typer.Exit(1) from error
        config = replace(Configuration.for_size(name, data.num_train), seed=seed)
        if epochs is not None:
            config = replace(config, epochs=epochs)
        for method in chosen:
            console.print(
                f"[bold]{name}[/bold] {method.name}: {method.title}, {data.count} splits, {config.epochs} epochs"
            )
            if not run_one(method, data, config, output / name / method.name, progress=True):
                console.print("  done before")
        figures.dataset_figure(output / name, chosen, output / f"{name}.png")
    table = summary.collect(output, names, chosen)
    command = records.provenance("experiments.uci_regression")
    summary.write(table, output, command)
    console.print(summary.rich_table(table))
    console.print(
        f"written: {output / 'results.csv'}, {output / 'results.md'}, " + ", ".join(f"{output / n}.png" for n in names)
    )


def _methods(names: str) -> list[Method]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or not chosen:
        raise typer.BadParameter(f"unknown methods {unknown}; known: {', '.join(METHODS)}", param_hint="--methods")
    return [METHODS[name] for name in chosen]


if __name__ == "__main__":
    app()
