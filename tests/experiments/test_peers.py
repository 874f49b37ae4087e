"""The methods of others: what needs no package of theirs, and each of them where it is installed."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from experiments import peers
from experiments.peer_methods import (
    EXTRA,
    PEERS,
    Budget,
    Mixture,
    Peer,
    PeerNotInstalledError,
    Prediction,
    gaussian_process,
    laplace_torch,
)
from experiments.peer_methods.map_training import train_map
from experiments.peer_methods.selection import select, take
from experiments.peer_methods.stacked import StackedMLP
from experiments.protocol import Splits

ABSENT = Peer(
    "peer-absent", "not there", PEERS["peer-ensemble"].run, distribution="absent-dist", module="absent_module"
)


@pytest.fixture
def splits() -> Splits:
    """Two splits of a noisy line, 60 training and 20 test examples, in units of 3 about 10."""
    x = torch.randn(2, 80, 2)
    y = (x[..., :1] + 0.1 * torch.randn(2, 80, 1)) / math.sqrt(1.01)
    return Splits("line", x[:, :60], y[:, :60], x[:, 60:], y[:, 60:], torch.full((2,), 10.0), torch.full((2,), 3.0))


@pytest.fixture
def budget() -> Budget:
    return Budget(epochs=150, batch_size=20, hidden=10, test_samples=40)


# ---------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------


def test_mixture_against_torch_distributions() -> None:
    mean, std, y = torch.randn(5, 7).double(), torch.rand(5, 7).double() + 0.1, torch.randn(7).double()
    weights = torch.distributions.Categorical(logits=torch.zeros(7, 5))
    expected = torch.distributions.MixtureSameFamily(weights, torch.distributions.Normal(mean.T, std.T))
    mixture = Mixture(mean, std)
    torch.testing.assert_close(mixture.log_prob(y), expected.log_prob(y))
    torch.testing.assert_close(mixture.cdf(y), expected.cdf(y))


def test_figures_by_hand() -> None:
    """One standard normal component: half of the targets at 0, half outside the central 95% at 2."""
    mixture = Mixture(torch.zeros(1, 4), torch.ones(1, 1))
    figures = mixture.figures(torch.tensor([0.0, 2.0, 0.0, -2.0]), torch.tensor(3.0))
    assert figures["rmse"] == pytest.approx(3 * math.sqrt(2))
    assert figures["log_likelihood"] == pytest.approx(-0.5 * math.log(2 * math.pi) - 1 - math.log(3))
    assert figures["coverage"] == 0.5


# ---------------------------------------------------------------------------------------------------------
# Networks trained together
# ---------------------------------------------------------------------------------------------------------


def test_a_stacked_network_by_itself() -> None:
    net, x = StackedMLP(3, 4, 6, 2, seed=1), torch.randn(3, 5, 4)
    for r in range(3):
        torch.testing.assert_close(net.single(r)(x[r]), net(x)[r])
    norms = [sum(p.square().sum() for p in net.single(r).parameters()) for r in range(3)]
    torch.testing.assert_close(net.squared_norm(), torch.stack(norms))


def test_map_of_a_linear_problem_finds_the_noise(splits: Splits) -> None:
    _, log_std = train_map(splits.x_train, splits.y_train, 10, 1.0, "learned", epochs=300, batch_size=20)
    assert ((log_std.exp() > 0.06) & (log_std.exp() < 0.14)).all()


# ---------------------------------------------------------------------------------------------------------
# Selection inside the split
# ---------------------------------------------------------------------------------------------------------


def test_taking_splits(splits: Splits) -> None:
    taken = take(splits, [1])
    assert taken.count == 1
    assert torch.equal(taken.x_test, splits.x_test[1:])
    assert torch.equal(taken.y_scale, splits.y_scale[1:])


def test_every_split_gets_the_candidate_that_predicts_its_held_out_part(splits: Splits, budget: Budget) -> None:
    centre = torch.tensor([0.0, 5.0])  # of split 0 and split 1: a candidate predicts one of the two
    shifted = replace(splits, y_train=splits.y_train + centre[:, None, None])

    def constant(given: Splits, _: Budget, *, value: float, cheap: bool = False) -> Iterator[Prediction]:
        cheap_calls.append(cheap)
        for _r in range(given.count):
            yield Prediction(Mixture(torch.full((1, given.x_test.shape[1]), value), torch.ones(1, 1)), 1.0)

    cheap_calls: list[bool] = []
    candidates = [{"value": 5.0}, {"value": float("nan")}, {"value": 0.0}]
    found = list(select(constant, shifted, budget, candidates, {"cheap": True}))
    assert [float(prediction.mixture.mean[0, 0]) for prediction in found] == [0.0, 5.0]
    assert [prediction.chosen["value"] for prediction in found] == [0.0, 5.0]
    assert [prediction.seconds for prediction in found] == [4.0, 4.0]  # three candidates and the final training
    assert cheap_calls == [True, True, True, False, False]


# ---------------------------------------------------------------------------------------------------------
# The peers
# ---------------------------------------------------------------------------------------------------------


def skip_unless_installed(peer: Peer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own imports
        reason = f"{peer.distribution} is not installed: it comes with the extra {EXTRA}"
        if importlib.util.find_spec(peer.module) is None:
            pytest.skip(reason)
        importlib.import_module(peer.module)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_learns_a_line(name: str, splits: Splits, budget: Budget, tmp_path: Path) -> None:
    peer = replace(PEERS[name], candidates=PEERS[name].candidates[:1])
    skip_unless_installed(peer)
    state = torch.get_rng_state()
    assert peers.run_one(peer, splits, budget, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    rows = pd.read_csv(tmp_path / "splits.csv")
    assert list(rows.columns) == ["dataset", "method", "split", *peers.COLUMNS]
    assert list(rows.split) == [0, 1]
    assert np.isfinite(rows[list(peers.COLUMNS)].to_numpy()).all()
    assert (rows.rmse < 3 * 0.5).all()  # the targets' standard deviation is 3
    assert (rows.log_likelihood > -2.3).all()  # that of N(10, 3^2) is about -2.5
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["name"] == name
    assert {"torch", peer.distribution or "torch"} <= set(run["packages"])


@pytest.mark.parametrize("error", ["NotPSDError", "NanError"])
def test_gaussian_process_line_search_comes_back_from_a_refusal(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_installed(PEERS["peer-gp"])
    import gpytorch
    from linear_operator.utils import errors

    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(40, dtype=torch.float64)
    _, expected = gaussian_process.fit(x, y, "rbf", 1.0, 60)
    evaluations = []
    objective = gpytorch.mlls.ExactMarginalLogLikelihood

    class Refusing(objective):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            evaluations.append(1)
            if len(evaluations) in (2, 5):  # the first one of a line search, and one later
                raise getattr(errors, error)("refused")
            return super().forward(*args, **kwargs)

    monkeypatch.setattr(gpytorch.mlls, "ExactMarginalLogLikelihood", Refusing)
    _, evidence = gaussian_process.fit(x, y, "rbf", 1.0, 60)
    assert len(evaluations) > 5
    assert evidence == pytest.approx(expected, abs=1e-4)


def test_gaussian_process_noise_is_at_least_that_of_rounding(budget: Budget) -> None:
    """Repeated rows have equal rounded targets: the marginal likelihood is for vanishing noise."""
    skip_unless_installed(PEERS["peer-gp"])
    x = torch.randn(1, 30, 3).repeat(1, 2, 1)
    y = torch.randn(1, 30, 1).round().repeat(1, 2, 1)
    splits = Splits("grades", x, y, x[:, :5], y[:, :5], torch.zeros(1), torch.ones(1))
    (prediction,) = gaussian_process.predictions(splits, budget)
    assert float(prediction.chosen["noise_std"]) > 0.999 / math.sqrt(12)


@pytest.mark.filterwarnings("ignore")  # of the package
def test_laplace_is_computed_in_float64(splits: Splits, budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no noise, the posterior precision is not positive definite in single precision."""
    skip_unless_installed(PEERS["peer-laplace-full"])

    def all_but_noiseless(*args: Any, **kwargs: Any) -> tuple[StackedMLP, Tensor]:
        nets, log_std = train_map(*args, **kwargs)
        return nets, torch.full_like(log_std, math.log(1e-6))

    monkeypatch.setattr(laplace_torch, "train_map", all_but_noiseless)
    for prediction in laplace_torch.predictions(splits, budget, tuning_steps=1):
        assert prediction.mixture.mean.dtype == prediction.mixture.std.dtype == torch.float64
        assert math.isfinite(float(prediction.chosen["log_evidence_per_datum"]))
        assert prediction.mixture.std.isfinite().all()


def test_an_absent_package_names_the_extra(splits: Splits, budget: Budget, tmp_path: Path) -> None:
    with pytest.raises(PeerNotInstalledError, match=r"absent-dist: pip install 'noisynat\[peers\]'"):
        peers.run_one(ABSENT, splits, budget, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_finished_run_is_kept_and_other_settings_train_anew(splits: Splits, budget: Budget, tmp_path: Path) -> None:
    peer = PEERS["peer-ensemble"]
    quick = replace(budget, epochs=2)
    assert peers.run_one(peer, splits, quick, tmp_path, progress=False)
    assert not peers.run_one(peer, splits, quick, tmp_path, progress=False)
    assert peers.run_one(peer, splits, replace(quick, epochs=3), tmp_path, progress=False)
    assert set(pd.read_csv(tmp_path / "chosen.csv").prior_precision) <= {1.0, 10.0, 30.0, 100.0, 300.0}


# ---------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------


def test_command_line_writes_tables(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="boston is read from the package mlxtend")
    chosen = "peer-ensemble,peer-ensemble-mv"
    arguments = ["boston", "--peers", chosen, "--splits", "2", "--epochs", "2", "--output", str(tmp_path)]
    result = CliRunner().invoke(peers.app, arguments)
    assert result.exit_code == 0, result.output
    assert "split 2/2" in result.output
    again = CliRunner().invoke(peers.app, arguments)
    assert again.output.count("done before") == 2
    table = pd.read_csv(tmp_path / "peers.csv")
    assert list(table.groupby(["dataset", "method"]).size()) == [2, 2]
    summary = pd.read_csv(tmp_path / "peers_summary.csv")
    rmse = table[table.method == "peer-ensemble"].rmse
    assert summary.rmse[0] == pytest.approx(rmse.mean())
    assert summary.rmse_error[0] == pytest.approx(rmse.std() / math.sqrt(2))


@pytest.mark.parametrize("arguments", [["boston", "--peers", "peer-best"], ["bosten", "--peers", "peer-ensemble"]])
def test_unknown_names_fail_before_training(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(peers.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert not any(tmp_path.iterdir())


def test_command_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, ABSENT.name, ABSENT)
    result = CliRunner().invoke(peers.app, ["boston", "--peers", ABSENT.name, "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert "noisynat[peers]" in result.output
    assert not any(tmp_path.iterdir())
