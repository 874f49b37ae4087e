"""Active learning: which rows are asked for, what is compared, and that a stopped run goes on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import noisynat
from experiments import active_learning, active_report
from experiments.active_learning import Answers, Protocol, Task, run
from experiments.methods import FOR_FEW

PROTOCOL = Protocol(repeats=3, initial=5, additions=2, test=10, hidden=3, steps=5, samples=10)


def made_up(rows: int = 40) -> Any:
    generator = np.random.default_rng(0)
    x = 5 + 3 * generator.normal(size=(rows, 2))
    return SimpleNamespace(name="made-up", X=x, y=x[:, 0] + 0.1 * generator.normal(size=rows))


def test_rows_are_for_testing_or_in_the_pool_and_all_strategies_begin_alike() -> None:
    task = Task(made_up(), PROTOCOL)
    for test, pool in zip(task.test, task.pool, strict=True):
        assert sorted([*test, *pool]) == list(range(40))
    assert task.pool.shape == (9, 30)
    np.testing.assert_array_equal(task.pool[:3], task.pool[3:6])
    np.testing.assert_array_equal(task.pool[:3], task.pool[6:])
    np.testing.assert_array_equal(task.known, np.tile(np.arange(5), (9, 1)))
    assert not np.array_equal(task.pool[0], task.pool[1])


def test_a_pool_has_no_more_rows_than_it_may() -> None:
    small, large = (Task(made_up(), replace(PROTOCOL, pool=pool)) for pool in (12, 1000))
    np.testing.assert_array_equal(small.pool, large.pool[:, :12])
    np.testing.assert_array_equal(small.test, large.test)


def test_standardization_by_the_pool_s_inputs_and_the_known_targets() -> None:
    data = made_up()
    task = Task(data, PROTOCOL)
    splits = task.splits()
    inputs = task.inputs()
    np.testing.assert_allclose(inputs.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(inputs.std(1), 1)
    np.testing.assert_allclose(splits.x_train.numpy(), inputs[:, :5], rtol=1e-5)
    np.testing.assert_allclose(splits.y_train.mean(1), 0, atol=1e-6)
    raw = splits.y_test[2, :, 0] * splits.y_scale[2] + splits.y_mean[2]
    np.testing.assert_allclose(raw, data.y[task.test[2]], rtol=1e-4)
    back = splits.x_test[1].numpy() * data.X[task.pool[1]].std(0) + data.X[task.pool[1]].mean(0)
    np.testing.assert_allclose(back, data.X[task.test[1]], rtol=1e-4)


def test_the_highest_score_that_is_not_known_is_asked_for() -> None:
    task = Task(made_up(), PROTOCOL)
    scores = torch.zeros(9, 30)
    scores[:, 2] = 9.0  # known already
    scores[4, 17] = 1.0
    scores[8, 29] = 1.0
    task.ask(scores)
    assert task.known[:3, -1].tolist() == [5, 5, 5]
    assert task.known[[4, 8], -1].tolist() == [17, 29]
    task.ask(scores + torch.arange(30) / 100)
    assert task.known[:3, -1].tolist() == [6, 6, 6]
    assert task.known[[4, 8], -1].tolist() == [29, 28]
    assert task.asked == 2
    assert task.splits().num_train == 7


@pytest.mark.parametrize("members", [1, 2])
def test_scores_are_variance_or_its_reduction_whatever_is_scored_at_once(
    members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(made_up(), PROTOCOL)
    replicas = 9 if members == 1 else (9, members)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.1), num_data=5, replicas=replicas)
    answers = Answers(bnn, task.splits(), PROTOCOL, seed=3)
    whole = answers.scores(task.inputs())
    monkeypatch.setattr(active_learning, "_SCORED_AT_ONCE", 4)
    torch.testing.assert_close(answers.scores(task.inputs()), whole)

    prediction = answers.at(torch.as_tensor(task.inputs()).float())
    spread = prediction.means - prediction.mean
    weights = torch.full((10, 9), 0.1) if prediction.weights is None else prediction.weights
    covariance = torch.einsum("sr,srm,srn->rmn", weights, spread[..., 0], spread[..., 0])
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(whole[:6], variance[:6])
    reduction = covariance.square().mean(1) / (variance + 0.1**2)  # the pool is smaller than the reference
    torch.testing.assert_close(whole[6:], reduction[6:])


def test_a_stopped_run_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = FOR_FEW["nng-kron"], made_up()
    whole = run(method, data, PROTOCOL, tmp_path / "whole")
    original, trained = active_learning.train, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        trained.append(args[1].num_train)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(active_learning, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(method, data, PROTOCOL, tmp_path / "stopped")
    again = run(method, data, PROTOCOL, tmp_path / "stopped")
    assert trained == [5, 6, 6, 7]
    pd.testing.assert_frame_equal(again, whole, rtol=1e-5)
    assert len(whole) == 3 * 3 * 3


def test_other_settings_start_anew(tmp_path: Path) -> None:
    first = run(FOR_FEW["nng-kron"], made_up(), PROTOCOL, tmp_path)
    other = run(FOR_FEW["nng-ffg"], made_up(), PROTOCOL, tmp_path)
    assert set(first.method) == {"nng-kron"}
    assert set(other.method) == {"nng-ffg"}


def test_gains_are_paired_by_repeat_after_the_last_addition() -> None:
    def rows(strategy: str, asked: int, rmse: list[float]) -> pd.DataFrame:
        columns = {"repeat": range(len(rmse)), "rmse": rmse, "log_likelihood": 0.0}
        return pd.DataFrame({"dataset": "d", "method": "m", "strategy": strategy, "asked": asked, **columns})

    table = pd.concat(
        [
            rows("random", 0, [9, 9, 9]), rows("variance", 0, [1, 1, 1]),
            rows("random", 1, [3, 4, 5]), rows("variance", 1, [2, 3.5, 4]),
        ]
    )  # fmt: skip
    (gain,) = active_report.gains(table).to_dict("records")
    difference = np.array([-1, -0.5, -1])
    assert gain["strategy"] == "variance"
    assert gain["rmse_random"] == 4
    assert gain["rmse_change"] == pytest.approx(difference.mean())
    assert gain["rmse_error"] == pytest.approx(difference.std(ddof=1) / 3**0.5)
    assert gain["rmse_verdict"] == "lower"


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="has 17 rows, the protocol needs 18"):
        Task(made_up(17), PROTOCOL)


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
def test_the_command_writes_its_tables_and_figure(tmp_path: Path) -> None:
    arguments = ["yacht", "--methods", "bbb,nng-kron", "--repeats", "2", "--additions", "1", "--steps", "3"]
    result = CliRunner().invoke(active_learning.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "active_learning.csv")
    assert table.groupby(["method", "strategy", "asked"]).size().tolist() == [2] * 12
    assert "| yacht | nng-kron | reduction |" in (tmp_path / "active_learning.md").read_text()
    assert (tmp_path / "active_learning.png").stat().st_size > 10_000
