"""Active learning: targets asked for where they tell most, against targets asked for at random.

    python -m experiments.active_learning boston yacht --methods bbb,nng-kron

The protocol of Hernandez-Lobato and Adams (2015): 20 rows to begin with, 100 to test on, up to 5,000 others in the
pool; nine times a network with one hidden layer of 10 units is trained, and the target of one row of the pool is
asked for; all of it 40 times. Asked for is the row where the functions' variance is highest, as there, or the one
whose target lowers the variance at 400 rows of the pool most. The repeats of all strategies are replicas of one
network, trained anew in every round. Inputs are standardized with all rows of the pool, whose targets nobody has
seen, targets with those asked for. Written to the output folder: ``<data set>/<method>/rounds.csv``, and over all
``active_learning.csv``, ``active_learning.md`` and a figure. A run that was stopped goes on with the round at which
it stood.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

import noisynat
import uci_data
from experiments import active_report as report
from experiments import cli, records
from experiments.methods import FOR_FEW, Method
from experiments.protocol import Splits
from experiments.runs import Configuration, figures_of, members_of, train, weights_of_members
from noisynat import acquisition

_MODULE = "experiments.active_learning"
_DATASETS = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "protein", "wine", "yacht")
STRATEGIES = ("random", "variance", "reduction")
_SCORED_AT_ONCE = 1000  # rows of the pool
_REFERENCE = 400  # rows of the pool that stand for all of them


@dataclass(frozen=True)
class Protocol:
    """How many rows go where.

    Args:
        repeats: divisions of the rows.
        initial: rows whose targets are known at first.
        additions: rows whose targets are asked for, one by one.
        test: rows to test on.
        pool: rows that targets can be asked for, and the initial ones; a random part of sets that have more.
        hidden: units of the network.
        steps: of each training, on all rows at once; Bayes by Backprop has its own number.
        samples: of the functions, for scores and predictions.
        seed: of divisions, initial weights and noise.
    """

    repeats: int = 40
    initial: int = 20
    additions: int = 9
    test: int = 100
    pool: int = 5000
    hidden: int = 10
    steps: int = 200
    samples: int = 200
    seed: int = 0

    def configuration(self, method: Method, asked: int) -> Configuration:
        """Of the training after a number of targets have been asked for."""
        batch_size = self.initial + self.additions
        config = Configuration(self.steps, batch_size, hidden=self.hidden, seed=self.seed + asked)
        return replace(config, **method.configuration)


class Task:
    """The repeats of a data set, and which rows each has asked for.

    Every repeat is there once for each of :data:`STRATEGIES`; together they are R = 3 * repeats replicas.

    Args:
        data: the set.
        protocol: how many rows go where.

    Raises:
        ValueError: if there are too few rows.
    """

    def __init__(self, data: uci_data.Dataset, protocol: Protocol) -> None:
        known = protocol.initial + protocol.additions
        if len(data.y) < protocol.test + known + 1:
            raise ValueError(f"{data.name} has {len(data.y)} rows, the protocol needs {protocol.test + known + 1}")
        self.data, self.protocol = data, protocol
        generator = np.random.default_rng(protocol.seed)
        order = np.stack([generator.permutation(len(data.y)) for _ in range(protocol.repeats)])
        order = np.concatenate([order] * len(STRATEGIES))
        self.test, self.pool = order[:, : protocol.test], order[:, protocol.test :][:, : protocol.pool]
        self.known = np.tile(np.arange(protocol.initial), (len(order), 1))  # places in the pool; its order is random

    @property
    def asked(self) -> int:
        """How many targets have been asked for."""
        return self.known.shape[1] - self.protocol.initial

    def splits(self) -> Splits:
        """What is known now to train on, and the rows to test on, standardized; a replica per strategy and repeat."""
        y = self.data.y[np.take_along_axis(self.pool, self.known, 1)]
        mean, scale = y.mean(1, keepdims=True), y.std(1, keepdims=True)
        scale[scale == 0] = 1.0
        inputs = self.inputs()
        x_train = np.take_along_axis(inputs, self.known[..., None], 1)
        arrays = {
            "x_train": x_train,
            "y_train": ((y - mean) / scale)[..., None],
            "x_test": self._standardized(self.data.X[self.test]),
            "y_test": ((self.data.y[self.test] - mean) / scale)[..., None],
            "y_mean": mean[:, 0],
            "y_scale": scale[:, 0],
        }
        return Splits(self.data.name, **{key: torch.as_tensor(value).float() for key, value in arrays.items()})

    def inputs(self) -> np.ndarray:
        """Standardized inputs of the pool, known rows included, (R, P, features)."""
        return self._standardized(self.data.X[self.pool])

    def _standardized(self, x: np.ndarray) -> np.ndarray:
        pool = self.data.X[self.pool]
        scale = pool.std(1, keepdims=True)
        scale[scale == 0] = 1.0
        standardized: np.ndarray = (x - pool.mean(1, keepdims=True)) / scale
        return standardized

    def ask(self, scores: Tensor) -> None:
        """Ask for one more target in every replica.

        Args:
            scores: of all rows of the pool, (R, P); the highest is asked for, but with the random strategy, whose
                replicas are the first, the next row.
        """
        scores = scores.double().scatter(1, torch.as_tensor(self.known), -torch.inf)
        best = scores.argmax(1).numpy()
        repeats = self.protocol.repeats
        best[:repeats] = self.known.shape[1]  # the pool's order is random
        self.known = np.concatenate([self.known, best[:, None]], 1)


class Answers:
    """What a trained method predicts, of every replica or mixture of replicas, by the same functions everywhere.

    Args:
        network: that was trained.
        splits: on which it was.
        protocol: says how many functions.
        seed: of the functions.
    """

    def __init__(self, network: noisynat.VariationalNetwork, splits: Splits, protocol: Protocol, seed: int = 0) -> None:
        self.network, self.splits, self.protocol, self.seed = network, splits, protocol, seed
        data = (members_of(part, network.replicas) for part in (splits.x_train, splits.y_train))
        self.weights = weights_of_members(network.elbo(*data, num_samples=100))

    def at(self, x: Tensor) -> noisynat.Predictive:
        """The prediction at inputs (R, n, features)."""
        replicas = self.network.replicas
        return self.network.predict(
            members_of(x, replicas),
            -(-self.protocol.samples // replicas[1:].numel()),  # of each member
            generator=torch.Generator().manual_seed(self.seed),
            combine=self.weights,
        )

    def scores(self, inputs: np.ndarray) -> Tensor:
        """Of the pool's inputs (R, P, features), (R, P): variance or its expected reduction, by strategy."""
        repeats = self.protocol.repeats
        reference = np.random.default_rng(self.seed).permutation(inputs.shape[1])[:_REFERENCE]
        parts = []
        for start in range(0, inputs.shape[1], _SCORED_AT_ONCE):
            candidates = inputs[:, start : start + _SCORED_AT_ONCE]
            count = candidates.shape[1]
            prediction = self.at(torch.as_tensor(np.concatenate([candidates, inputs[:, reference]], 1)).float())
            variance = acquisition.predictive_variance(prediction)
            reduction = acquisition.expected_variance_reduction(prediction, slice(count, None))
            parts.append(torch.cat([variance[: 2 * repeats], reduction[2 * repeats :]])[:, :count])
        return torch.cat(parts, 1)

    def figures(self) -> dict[str, np.ndarray]:
        """RMSE and log-likelihood of the rows to test on, raw units, (R,)."""
        prediction, y = self.at(self.splits.x_test), self.splits.y_test
        pointwise = {
            "log_prob": prediction.log_prob(y),
            "mean": prediction.mean.squeeze(-1),
            "cdf": prediction.cdf(y).squeeze(-1),
        }
        found = figures_of({key: value.double().numpy() for key, value in pointwise.items()}, self.splits)
        return {key: found[key] for key in ("rmse", "log_likelihood")}


def run(method: Method, data: uci_data.Dataset, protocol: Protocol, folder: Path) -> pd.DataFrame:
    """All rounds of a method on a data set; those that ``folder`` has are not trained again.

    Returns:
        A row per strategy, repeat and number of targets asked for.
    """
    task, path = Task(data, protocol), folder / "rounds.csv"
    rows = pd.read_csv(path) if records.is_of(path, {**asdict(protocol), **asdict(method)}) else None
    if rows is not None:
        task.known = np.concatenate([task.known, _asked(rows)], 1)
    while (done := 0 if rows is None else rows.asked.max() + 1) <= protocol.additions:
        splits = task.splits()
        config = protocol.configuration(method, int(done))
        network, _ = train(method, splits, config)
        answers = Answers(network, splits, protocol, config.seed)
        round_rows = pd.DataFrame(
            {
                "dataset": data.name,
                "method": method.name,
                "strategy": np.repeat(STRATEGIES, protocol.repeats),
                "repeat": np.tile(np.arange(protocol.repeats), len(STRATEGIES)),
                "asked": done,
                **answers.figures(),
            }
        )
        task.ask(answers.scores(task.inputs()))
        round_rows["next"] = task.known[:, -1]
        rows = round_rows if rows is None else pd.concat([rows, round_rows], ignore_index=True)
        records.write_table(path, rows)
        print(f"  {done} asked for: {report.line(round_rows)}")
    assert rows is not None
    return rows


def _asked(rows: pd.DataFrame) -> np.ndarray:
    """Places in the pool that were asked for, (R, rounds)."""
    return np.stack([rows[rows.asked == k].next.to_numpy() for k in sorted(rows.asked.unique())], axis=1)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Data sets; default: {' '.join(_DATASETS)}.")] = None,
    methods: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(FOR_FEW)}.")] = ",".join(FOR_FEW),
    repeats: Annotated[int, typer.Option(min=2, help="Divisions of the rows.")] = 40,
    additions: Annotated[int, typer.Option(min=1, help="Targets asked for.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 200,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/active_learning"),
    seed: Annotated[int, typer.Option(help="Of divisions, initial weights and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Ask, train, compare and report; finished rounds are kept, a stopped run is resumed."""
    console = cli.started(threads)
    chosen = cli.chosen(methods, FOR_FEW)
    names = cli.checked_datasets(datasets or _DATASETS)
    protocol = Protocol(repeats=repeats, additions=additions, steps=steps, seed=seed)
    tables = []
    for name in names:
        cli.loaded(name, 1, console)  # absent data end the command before anything is trained
    for name in names:
        data = uci_data.load(name)
        for method in chosen:
            console.print(f"[bold]{name}[/bold] {method.name}: {method.title}, {repeats} repeats")
            tables.append(run(method, data, protocol, output / name / method.name))
    table = pd.concat(tables, ignore_index=True).drop(columns="next")
    gains = report.gains(table)
    records.write_table(output / "active_learning.csv", table)
    records.write_text(output / "active_learning.md", report.markdown(gains, records.provenance(_MODULE)))
    report.figure(table, output / "active_learning.png")
    console.print(report.screen(gains))
    console.print(f"written: {output / 'active_learning.md'}, {output / 'active_learning.png'}")


if __name__ == "__main__":
    app()
