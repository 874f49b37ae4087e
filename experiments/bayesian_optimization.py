"""Bayesian optimization: our posteriors against Gaussian processes and chance.

    python -m experiments.bayesian_optimization branin hartmann6 --agents random,thompson,gp-thompson

Every agent minimizes the same functions from the same first points, 20 times, by Thompson sampling or by expected
improvement; the repeats are replicas of one network, which is trained anew after every evaluation. The Gaussian
processes are botorch's (extra "peers"). Written to the output folder: ``<problem>/<agent>/evaluations.csv`` and, over
all, ``regret.csv``, ``bayesian_optimization.md`` and a figure. A run that was stopped goes on with the evaluation at
which it stood.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor

from experiments import bayesian_optimization_report as report
from experiments import cli, records
from experiments.optimization_agents import Agent, Networks, at_random
from experiments.optimization_problems import PROBLEMS, Problem
from experiments.peer_methods.optimization import gp_improvement, gp_thompson, require_botorch

_MODULE = "experiments.bayesian_optimization"


@dataclass(frozen=True)
class Protocol:
    """How long to search.

    Args:
        repeats: R, with first points of their own.
        initial: random points before the agents begin, per dimension.
        evaluations: by the agents.
        candidates: random points among which an agent begins to look for the next one; as many as a fourth of them
            are near the best so far.
        seed: of all random numbers.
    """

    repeats: int = 20
    initial: int = 3
    evaluations: int = 40
    candidates: int = 500
    seed: int = 0

    def generator(self, salt: int) -> torch.Generator:
        """Random numbers of their own for every ``salt``."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)

    def first_points(self, problem: Problem) -> Tensor:
        """Random points of the unit cube, (R, n, d), float64; the same for all agents."""
        shape = self.repeats, self.initial * problem.dim, problem.dim
        return torch.rand(shape, generator=self.generator(0), dtype=torch.float64)

    def candidates_near(self, best: Tensor, salt: int) -> Tensor:
        """Points of the unit cube, (R, C, d): uniform ones, and then ones near ``best`` (R, d)."""
        generator, (repeats, dim) = self.generator(salt), best.shape
        uniform = torch.rand(repeats, self.candidates, dim, generator=generator, dtype=best.dtype)
        steps = torch.randn(repeats, self.candidates // 4, dim, generator=generator, dtype=best.dtype)
        return torch.cat([uniform, (best.unsqueeze(1) + 0.1 * steps).clamp(0, 1)], 1)


NETWORKS = {"thompson": Networks(), "ei": Networks(members=3)}
AGENTS: dict[str, Agent] = {
    "random": at_random,
    "thompson": NETWORKS["thompson"].thompson,
    "ei": NETWORKS["ei"].improvement,
    "gp-thompson": gp_thompson,
    "gp-ei": gp_improvement,
}


def run(problem: Problem, name: str, protocol: Protocol, folder: Path) -> pd.DataFrame:
    """All evaluations of an agent; those that ``folder`` has are not made again.

    Returns:
        A row per repeat and evaluation: the value, and the regret of the lowest so far.
    """
    network = asdict(NETWORKS[name]) if name in NETWORKS else None
    settings = {**asdict(protocol), "problem": problem.name, "agent": name, "network": network}
    path = folder / "evaluations.npz"
    x = first = protocol.first_points(problem)
    if records.is_of(path, settings):
        with np.load(path) as arrays:
            x = torch.as_tensor(arrays["x"])
    total = first.shape[1] + protocol.evaluations
    for done in range(x.shape[1], total):
        y = problem.function(x)
        best = x[torch.arange(len(x)), y.argmin(1)]
        standardized = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)
        found = AGENTS[name](x, standardized, protocol.candidates_near(best, done), protocol.seed + done)
        x = torch.cat([x, found.double().unsqueeze(1)], 1)
        records.write_arrays(path, {"x": x.numpy()})
        if done % 10 == 9:
            regret = problem.function(x).amin(1) - problem.minimum
            print(f"  {done + 1}/{total} evaluations: median regret {float(regret.median()):.4g}")
    y = problem.function(x)
    table = pd.DataFrame(
        {
            "problem": problem.name,
            "agent": name,
            "repeat": np.repeat(np.arange(protocol.repeats), total),
            "evaluation": np.tile(np.arange(1, total + 1), protocol.repeats),
            "value": y.flatten().numpy(),
            "regret": (y.cummin(1).values - problem.minimum).flatten().numpy(),
        }
    )
    records.write_table(folder / "evaluations.csv", table)
    return table


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    problems: Annotated[list[str] | None, typer.Argument(help=f"Default: {' '.join(PROBLEMS)}.")] = None,
    agents: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(AGENTS)}.")] = ",".join(AGENTS),
    repeats: Annotated[int, typer.Option(min=2, help="With first points of their own.")] = 20,
    evaluations: Annotated[int, typer.Option(min=1, help="By the agents.")] = 40,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/bayesian_optimization"),
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Search, compare and report; finished evaluations are kept, a stopped run is resumed."""
    console = cli.started(threads)
    names = cli.chosen(agents, {name: name for name in AGENTS}, "--agents")
    chosen = cli.chosen(",".join(problems or PROBLEMS), PROBLEMS, "PROBLEMS")
    if any(name.startswith("gp-") for name in names):
        require_botorch()
    protocol = Protocol(repeats=repeats, evaluations=evaluations, seed=seed)
    tables = []
    for problem in chosen:
        for name in names:
            console.print(f"[bold]{problem.name}[/bold] {name}, {repeats} repeats")
            tables.append(run(problem, name, protocol, output / problem.name / name))
    table = pd.concat(tables, ignore_index=True)
    baseline = "gp-ei" if "gp-ei" in names else names[0]
    final = report.final(table, baseline)
    records.write_table(output / "regret.csv", final)
    records.write_text(
        output / "bayesian_optimization.md", report.markdown(final, baseline, records.provenance(_MODULE))
    )
    report.figure(table, output / "bayesian_optimization.png")
    console.print(report.screen(final))
    console.print(f"written: {output / 'bayesian_optimization.md'}, {output / 'bayesian_optimization.png'}")


if __name__ == "__main__":
    app()
