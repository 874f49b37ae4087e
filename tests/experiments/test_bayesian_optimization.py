"""Bayesian optimization: the problems' minima, what agents choose, that a stopped run goes on, and the report."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from experiments import bayesian_optimization, bayesian_optimization_report
from experiments.bayesian_optimization import AGENTS, NETWORKS, Protocol, run
from experiments.optimization_agents import Networks, lowest
from experiments.optimization_problems import PROBLEMS, Problem, ackley
from experiments.peer_methods import PeerNotInstalledError
from experiments.peer_methods.optimization import log_improvement, require_botorch

CENTRE = torch.tensor([0.3, 0.8], dtype=torch.float64)
BOWL = Problem("bowl", 2, lambda x: (x - CENTRE).square().sum(-1), 0.0, ((0.3, 0.8),))
PROTOCOL = Protocol(repeats=2, initial=3, evaluations=3, candidates=40)


def known_bowl(repeats: int, count: int) -> tuple[Tensor, Tensor]:
    """Random points and standardized values of the bowl."""
    x = torch.rand(repeats, count, 2, dtype=torch.float64)
    y = BOWL.function(x)
    return x, (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True)


# --- problems ---------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
def test_the_published_minimizers_have_the_published_minimum(problem: Problem) -> None:
    """And they are minima: no point of a cloud around them is lower, nor any of the cube."""
    places = torch.tensor(problem.minimizers, dtype=torch.float64)
    assert places.shape[1] == problem.dim
    torch.testing.assert_close(
        problem.function(places), torch.full((len(places),), problem.minimum).double(), rtol=0, atol=1e-5
    )
    cloud = places.unsqueeze(1) + 0.01 * torch.randn(len(places), 5000, problem.dim).double()
    assert bool((problem.function(cloud) >= problem.minimum - 1e-6).all())
    assert bool((problem.function(torch.rand(20_000, problem.dim).double()) > problem.minimum).all())


def test_values_from_other_sources() -> None:
    """Branin at the origin of its domain, (10 + 10 - 10/(8 pi) and all), Ackley's plain, Hartmann-6 in the centre."""
    branin, hartmann = PROBLEMS["branin"].function, PROBLEMS["hartmann6"].function
    at = torch.tensor([1 / 3, 0.0], dtype=torch.float64)  # (0, 0): 36 + 10 (1 - 1 / (8 pi)) + 10
    assert branin(at).item() == pytest.approx(56 - 10 / (8 * math.pi))
    at = torch.full((4,), 6 / 15, dtype=torch.float64)  # (1, 1, 1, 1)
    assert ackley(at).item() == pytest.approx(20 * (1 - math.exp(-0.2)))
    assert hartmann(torch.full((6,), 0.5, dtype=torch.float64)).item() == pytest.approx(-0.505315, abs=1e-6)


# --- search -----------------------------------------------------------------------------------


def test_the_best_candidates_are_moved_to_the_minimum_of_their_repeat() -> None:
    """A bowl in the cube for one repeat, and for the other one with its minimum at a corner outside."""
    centres = torch.tensor([[0.35, 0.6], [-0.4, 1.7]], dtype=torch.float64)
    found = lowest(
        lambda points: (points - centres.unsqueeze(1)).square().sum(-1), torch.rand(2, 30, 2, dtype=torch.float64)
    )
    torch.testing.assert_close(found, centres.clamp(0, 1), rtol=0, atol=0.01)


def test_of_two_wells_the_deeper_one_is_found() -> None:
    def wells(points: Tensor) -> Tensor:
        x = points[..., 0]
        return -torch.exp(-((x - 0.2) / 0.05).square()) - 2 * torch.exp(-((x - 0.8) / 0.05).square())

    found = lowest(wells, torch.linspace(0, 1, 21).reshape(1, 21, 1).double())
    assert found.item() == pytest.approx(0.8, abs=0.005)


def test_candidates_are_in_the_cube_and_some_near_the_best() -> None:
    best = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    candidates = replace(PROTOCOL, candidates=4000).candidates_near(best, 7)
    assert candidates.shape == (2, 5000, 2)
    assert bool(((candidates >= 0) & (candidates <= 1)).all())
    torch.testing.assert_close(candidates[:, :4000].mean(1), torch.full((2, 2), 0.5).double(), rtol=0, atol=0.03)
    near = candidates[0, 4000:]
    torch.testing.assert_close(near.mean(0), best[0], rtol=0, atol=0.02)
    torch.testing.assert_close(near.std(0), torch.full((2,), 0.1).double(), rtol=0, atol=0.01)


# --- agents -----------------------------------------------------------------------------------


def test_networks_learn_values_without_noise() -> None:
    x, y = known_bowl(2, 20)
    network = Networks(members=2).trained(x, y, seed=0)
    inputs = Networks(members=2)._inputs(x)
    assert inputs.shape == (2, 2, 20, 2)
    mean = network.predict(inputs, 50, combine="equal").mean.squeeze(-1)
    assert float((mean - y).square().mean().sqrt()) < 0.1
    far = network.predict(inputs + 4, 50, combine="equal").stddev.mean()
    assert far > 3 * network.predict(inputs, 50, combine="equal").stddev.mean()


def test_improvement_is_highest_where_brute_force_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[max(best - f, 0)] by a loop over the functions that the agent draws, best being each one's own."""
    agent = Networks(members=2, samples=8, hidden=10)
    x, y = known_bowl(2, 8)
    candidates = torch.rand(2, 30, 2, dtype=torch.float64)
    networks, calls = [], []
    original = Networks.trained

    def kept(self: Networks, *args: Any) -> Any:
        network = original(self, *args)
        stream = network.evaluation_stream.state()
        networks.append(network.sample_functions(agent.samples))
        network.evaluation_stream.load_state(stream)
        return network

    def best_candidate(score: Any, given: Tensor) -> Tensor:
        calls.append(score(given))
        return given[:, 0]

    monkeypatch.setattr(Networks, "trained", kept)
    monkeypatch.setattr("experiments.optimization_agents.lowest", best_candidate)
    agent.improvement(x, y, candidates, 3)
    f, known = (networks[0](agent._inputs(points)).squeeze(-1) for points in (candidates, x))  # (S, R, M, N)
    for r in range(2):
        for n in range(30):
            gains = [max(float(known[s, r, m].min() - f[s, r, m, n]), 0.0) for s in range(8) for m in range(2)]
            assert -float(calls[0][r, n]) == pytest.approx(np.mean(gains), abs=1e-5)


def test_log_improvement_of_a_gaussian_is_that_of_many_draws() -> None:
    mean, std, best = torch.tensor([-1.0, 0.0, 1.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double(), 0.2
    draws = (best - mean - std * torch.randn(400_000, 3).double()).clamp(min=0)
    error = draws.std(0) / 400_000**0.5
    found = log_improvement(mean, std, torch.tensor(best).double()).exp()
    assert bool(((found - draws.mean(0)).abs() < 4 * error).all())
    far = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)  # a useful slope where the improvement is 1e-90
    log_improvement(far, torch.ones(()).double(), torch.zeros(()).double()).backward()
    assert far.grad is not None
    assert far.grad.item() == pytest.approx(-20, rel=0.05)


def skip_unless_there(name: str) -> None:
    if name.startswith("gp-") and importlib.util.find_spec("botorch") is None:
        pytest.skip("botorch is not installed: it comes with the extra peers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package botorch and what it imports
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "random"])
def test_agents_come_closer_to_the_minimum_than_chance(name: str, tmp_path: Path) -> None:
    skip_unless_there(name)
    centre = torch.tensor([0.3, 0.8, 0.6, 0.2], dtype=torch.float64)
    bowl = Problem("bowl", 4, lambda x: (x - centre).square().sum(-1), 0.0, ((0.3, 0.8, 0.6, 0.2),))
    protocol = Protocol(repeats=4, initial=3, evaluations=7, candidates=100)
    chance, found = (run(bowl, agent, protocol, tmp_path / agent) for agent in ("random", name))
    final = [table[table.evaluation == 19].regret.median() for table in (chance, found)]
    assert final[1] < 0.5 * final[0]
    first = [table[table.evaluation <= 12].value.to_numpy() for table in (chance, found)]
    np.testing.assert_array_equal(*first)


# --- a run ------------------------------------------------------------------------------------


def test_regret_is_the_lowest_value_so_far_less_the_minimum(tmp_path: Path) -> None:
    shifted = replace(BOWL, function=lambda x: 5 + BOWL.function(x), minimum=5.0)
    table = run(shifted, "random", PROTOCOL, tmp_path)
    for _, rows in table.groupby("repeat"):
        assert list(rows.evaluation) == list(range(1, 10))
        expected = [min(rows.value[: k + 1]) - 5 for k in range(9)]
        np.testing.assert_allclose(rows.regret, expected)
    x = np.load(tmp_path / "evaluations.npz")["x"]
    np.testing.assert_allclose(table.value, shifted.function(torch.as_tensor(x)).flatten())


def test_a_stopped_run_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(BOWL, "thompson", PROTOCOL, tmp_path / "whole")
    asked = []

    def stopping(x: Tensor, *args: Any) -> Tensor:
        asked.append(x.shape[1])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return NETWORKS["thompson"].thompson(x, *args)

    monkeypatch.setitem(AGENTS, "thompson", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(BOWL, "thompson", PROTOCOL, tmp_path / "stopped")
    again = run(BOWL, "thompson", PROTOCOL, tmp_path / "stopped")
    assert asked == [6, 7, 8, 8]
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_other_settings_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = replace(PROTOCOL, evaluations=1)
    run(BOWL, "thompson", protocol, tmp_path)
    seen = []

    def counting(x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
        seen.append(seed)
        return candidates[:, 0]

    monkeypatch.setitem(AGENTS, "thompson", counting)
    run(BOWL, "thompson", protocol, tmp_path)
    assert seen == []
    run(BOWL, "thompson", replace(protocol, seed=5), tmp_path)
    assert seen == [11]
    monkeypatch.setitem(NETWORKS, "thompson", Networks(steps=10))
    run(BOWL, "thompson", replace(protocol, seed=5), tmp_path)
    assert seen == [11, 11]


# --- the report -------------------------------------------------------------------------------


def table_of(regrets: dict[str, list[float]]) -> pd.DataFrame:
    """A first evaluation that says nothing, and the regrets after the second."""
    rows = []
    for agent, values in regrets.items():
        for evaluation in (1, 2):
            columns = {"repeat": range(len(values)), "regret": values if evaluation == 2 else 99.0}
            rows.append(pd.DataFrame({"problem": "p", "agent": agent, "evaluation": evaluation, **columns}))
    return pd.concat(rows).sample(frac=1, random_state=0)  # in any order


def test_final_figures_by_hand() -> None:
    table = table_of({"gp-ei": [1.0, 10.0, 100.0, 1.0], "random": [10.0, 1000.0, 1000.0, 100.0]})
    final = bayesian_optimization_report.final(table, "gp-ei").set_index("agent")
    ours = final.loc["random"]
    assert (ours.lower, ours["median"], ours.upper) == (77.5, 550.0, 1000.0)
    assert ours.change == pytest.approx((1 + 2 + 1 + 2) / 4)
    assert ours.error == pytest.approx(math.sqrt(4 * 0.25 / 3) / 2)  # deviations of 0.5, four repeats
    assert ours.verdict == "higher"
    assert final.loc["gp-ei"].change == 0
    text = bayesian_optimization_report.markdown(
        final.reset_index(), "gp-ei", {"command": "c", "packages": {}, "python": "3", "machine": "m", "threads": 1}
    )
    assert "| `random` | 5.5e+02 (78 to 1e+03) |" in text
    assert "| `random` | **+1.50±0.29** |" in text


def test_the_command_writes_its_tables_and_figure(tmp_path: Path) -> None:
    arguments = ["branin", "ackley4", "--agents", "random,thompson", "--repeats", "2", "--evaluations", "1"]
    result = CliRunner().invoke(bayesian_optimization.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "regret.csv")
    assert list(zip(table.problem, table.agent, strict=True)) == [
        (problem, agent) for problem in ("branin", "ackley4") for agent in ("random", "thompson")
    ]
    own = pd.read_csv(tmp_path / "ackley4" / "thompson" / "evaluations.csv")
    assert len(own) == 2 * 13
    median = own[own.evaluation == 13].regret.median()
    assert table["median"].iloc[3] == pytest.approx(median)
    assert "| `thompson` |" in (tmp_path / "bayesian_optimization.md").read_text()
    assert (tmp_path / "bayesian_optimization.png").stat().st_size > 10_000


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.peer_methods.optimization.find_spec", lambda name: None)
    with pytest.raises(PeerNotInstalledError, match=r"botorch: pip install 'noisynat\[peers\]'"):
        require_botorch()
    result = CliRunner().invoke(bayesian_optimization.app, ["--agents", "gp-ei", "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert not any(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for arguments in (["bowl"], ["branin", "--agents", "clever"]):
        result = CliRunner().invoke(bayesian_optimization.app, [*arguments, "--output", str(tmp_path)])
        assert result.exit_code == 2
    assert not any(tmp_path.iterdir())
