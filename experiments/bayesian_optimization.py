"""Bayesian optimization: our posteriors against Gaussian processes and chance.

    python -m experiments.bayesian_optimization branin --agents random,dense-thompson,gp-thompson

Every agent minimizes the same functions from the same first points, 20 times, by Thompson sampling or by expected
improvement; the repeats are replicas of one network, which is trained anew after every evaluation. The Gaussian
processes are gpytorch's (extra "peers"). Written to the output folder: ``<problem>/<agent>/evaluations.csv`` and, over
all, ``regret.csv``, ``bayesian_optimization.md`` and a figure. A run that was stopped goes on with the evaluation at
which it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor, nn

import noisynat
from experiments import bayesian_optimization_report as report
from experiments import cli, records
from experiments.optimization_problems import PROBLEMS, Problem
from experiments.peer_methods import PEERS
from experiments.peer_methods.optimization import gp_expected_improvement, gp_thompson
from experiments.runs import plain
from noisynat import acquisition

_MODULE = "experiments.bayesian_optimization"


@dataclass(frozen=True)
class Protocol:
    """How long to search, and how to train.

    Args:
        repeats: R, with first points of their own.
        initial: evaluations before the agents begin, per dimension.
        evaluations: by the agents.
        candidates: random points, per dimension, among which an agent looks for the best.
        hidden: units of the networks.
        steps: of each training.
        seed: of all random numbers.
    """

    repeats: int = 20
    initial: int = 3
    evaluations: int = 40
    candidates: int = 500
    hidden: int = 50
    steps: int = 300
    seed: int = 0

    def points(self, problem: Problem, salt: int, count: int) -> Tensor:
        """Random points of the unit cube, (R, count, d), float64."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + salt)
        return torch.rand(self.repeats, count, problem.dim, generator=generator, dtype=torch.float64)


Agent = Callable[[Tensor, Tensor, Tensor, Protocol, int], Tensor]
"""From points (R, n, d), values (R, n) and candidates (R, C, d) to the next point (R, d)."""


def at_random(x: Tensor, y: Tensor, candidates: Tensor, protocol: Protocol, seed: int) -> Tensor:
    """The first candidate."""
    return candidates[:, 0]


def trained(x: Tensor, y: Tensor, protocol: Protocol, dense: bool, seed: int) -> noisynat.VariationalNetwork:
    """The posterior of a network with one hidden layer, on standardized values.

    Args:
        x: points, (R, n, d).
        y: standardized values, (R, n).
        protocol: how to train.
        dense: whether the last fifth of training is with a full covariance.
        seed: of initial weights and noise.
    """
    repeats, count, dim = x.shape
    torch.manual_seed(seed)
    bnn = noisynat.VariationalNetwork(
        nn.Sequential(nn.Linear(dim, protocol.hidden), nn.Tanh(), nn.Linear(protocol.hidden, 1)),
        noisynat.GaussianLikelihood("gamma", a0=1.0, b0=0.001, initial_std=0.1, step_size=0.05),
        noisynat.GaussianPrior(4.0),
        num_data=count,
        replicas=repeats,
        initial_precision=10.0,
        seed=seed,
    )
    data = [(2 * x.float() - 1, y.float().unsqueeze(-1))]
    last = protocol.steps // 5 if dense else 0
    first = noisynat.NoisyKFAC(bnn, lr=0.02, refresh_every=10)
    schedule = noisynat.cosine_schedule(first, protocol.steps - last)
    noisynat.fit(
        bnn, first, data, protocol.steps - last, scheduler=schedule, kl_warmup=1.0, kl_start=0.1, progress=False
    )
    if dense:
        bnn = bnn.with_posterior("dense")
        second = noisynat.NoisyNaturalGradient(bnn, lr=0.01, damping=0.0, betas=(0.9, 0.96), refresh_every=10)
        noisynat.fit(bnn, second, data, last, progress=False)
    return bnn


def thompson(x: Tensor, y: Tensor, candidates: Tensor, protocol: Protocol, seed: int, *, dense: bool) -> Tensor:
    """The lowest point of a sampled function (Thompson 1933): the best candidates, moved downhill."""
    bnn = trained(x, _standardized(y), protocol, dense, seed)
    (function,) = bnn.sample_functions(1)
    with torch.no_grad():
        lowest = function(2 * candidates.float() - 1).squeeze(-1).topk(5, largest=False).indices
    start = candidates.gather(1, lowest.unsqueeze(-1).expand(-1, -1, candidates.shape[-1])).float()
    points = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        function(2 * points - 1).sum().backward()
        optimizer.step()
        with torch.no_grad():
            points.clamp_(0, 1)
    with torch.no_grad():
        best = function(2 * points - 1).squeeze(-1).argmin(1)
    return points.detach()[torch.arange(len(best)), best].double()


def improvement(x: Tensor, y: Tensor, candidates: Tensor, protocol: Protocol, seed: int, *, dense: bool) -> Tensor:
    """The candidate of highest expected improvement."""
    y = _standardized(y)
    bnn = trained(x, y, protocol, dense, seed)
    prediction = bnn.predict(2 * candidates.float() - 1, 200)
    scores = acquisition.expected_improvement(prediction, y.min(1, keepdim=True).values.float())
    return candidates[torch.arange(len(y)), scores.argmax(1)]


def _standardized(y: Tensor) -> Tensor:
    return (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)


AGENTS: dict[str, Agent] = {
    "random": at_random,
    "kron-thompson": partial(thompson, dense=False),
    "dense-thompson": partial(thompson, dense=True),
    "dense-ei": partial(improvement, dense=True),
    "gp-thompson": gp_thompson,
    "gp-ei": gp_expected_improvement,
}


def run(problem: Problem, name: str, protocol: Protocol, folder: Path) -> pd.DataFrame:
    """All evaluations of an agent; those that ``folder`` has are not made again.

    Returns:
        A row per repeat and evaluation: the value, and the regret of the best so far.
    """
    settings, path = plain({**asdict(protocol), "problem": problem.name, "agent": name}), folder / "evaluations.npz"
    first = protocol.points(problem, 0, protocol.initial * problem.dim)
    x = _kept(path, folder, settings, first)
    total = first.shape[1] + protocol.evaluations
    for done in range(x.shape[1], total):
        candidates = protocol.points(problem, done, protocol.candidates * problem.dim)
        found = AGENTS[name](x, problem.function(x), candidates, protocol, protocol.seed + done)
        x = torch.cat([x, found.unsqueeze(1)], 1)
        records.write_arrays(path, {"x": x.numpy()})
        best = problem.function(x).amin(1) - problem.minimum
        print(f"  {done + 1}/{total} evaluations: median regret {float(best.median()):.4f}")
    values = problem.function(x)
    regret = values.cummin(1).values - problem.minimum
    repeats, count = values.shape
    table = pd.DataFrame(
        {
            "problem": problem.name,
            "agent": name,
            "repeat": np.repeat(np.arange(repeats), count),
            "evaluation": np.tile(np.arange(1, count + 1), repeats),
            "value": values.flatten().numpy(),
            "regret": regret.flatten().numpy(),
        }
    )
    records.write_table(folder / "evaluations.csv", table)
    return table


def _kept(path: Path, folder: Path, settings: dict[str, Any], first: Tensor) -> Tensor:
    """The points evaluated with these very settings, (R, n, d), or else the first ones."""
    if records.read_json(folder / "run.json") == settings and path.exists():
        with np.load(path) as arrays:
            return torch.as_tensor(arrays["x"])
    path.unlink(missing_ok=True)
    records.write_json(folder / "run.json", settings)
    return first


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    problems: Annotated[list[str] | None, typer.Argument(help=f"Default: {' '.join(PROBLEMS)}.")] = None,
    agents: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(AGENTS)}.")] = ",".join(AGENTS),
    repeats: Annotated[int, typer.Option(min=2, help="With first points of their own.")] = 20,
    evaluations: Annotated[int, typer.Option(min=1, help="By the agents.")] = 40,
    steps: Annotated[int, typer.Option(min=5, help="Of each training.")] = 300,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/bayesian_optimization"),
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Search, compare and report; finished evaluations are kept, a stopped run is resumed."""
    console = cli.started(threads)
    names = cli.chosen(agents, {name: name for name in AGENTS}, "--agents")
    chosen = cli.chosen(",".join(problems or PROBLEMS), PROBLEMS, "PROBLEMS")
    if any(name.startswith("gp-") for name in names):
        PEERS["peer-gp"].require()
    protocol = Protocol(repeats=repeats, evaluations=evaluations, steps=steps, seed=seed)
    tables = []
    for problem in chosen:
        for name in names:
            console.print(f"[bold]{problem.name}[/bold] {name}, {repeats} repeats")
            tables.append(run(problem, name, protocol, output / problem.name / name))
    table = pd.concat(tables, ignore_index=True)
    final = report.final(table)
    records.write_table(output / "regret.csv", final)
    records.write_text(output / "bayesian_optimization.md", report.markdown(final, records.provenance(_MODULE)))
    report.figure(table, output / "bayesian_optimization.png")
    console.print(report.screen(final))
    console.print(f"written: {output / 'bayesian_optimization.md'}, {output / 'bayesian_optimization.png'}")


if __name__ == "__main__":
    app()
