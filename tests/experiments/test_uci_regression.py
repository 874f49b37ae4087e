"""The UCI experiment: standardization, figures in raw units, resumption, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import noisynat
import uci_data
from experiments import runs, summary, uci_regression
from experiments.methods import METHODS, Method
from experiments.protocol import Splits, load_splits


class SmallSet:
    """Stands in for a loaded data set: 40 rows, 3 features of which one is constant, 2 splits."""

    name = "small"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.X = np.column_stack([rng.normal(5, 2, 40), rng.normal(-1, 0.1, 40), np.ones(40)])
        self.y = 100 + 7 * self.X[:, 0] + rng.normal(0, 1, 40)

    def splits(self) -> list[uci_data.Split]:
        order = np.arange(40)
        return [uci_data.Split(order[:30], order[30:]), uci_data.Split(order[10:], order[:10])]


@pytest.fixture
def splits() -> Splits:
    return load_splits(SmallSet())  # type: ignore[arg-type]


@pytest.fixture
def quick() -> runs.Configuration:
    return runs.Configuration(epochs=3, batch_size=10, hidden=5, test_samples=50, elbo_samples=10)


def test_standardization_uses_the_training_part_only(splits: Splits) -> None:
    data = SmallSet()
    for r, split in enumerate(data.splits()):
        torch.testing.assert_close(splits.x_train[r, :, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(splits.x_train[r, :, :2].std(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
        train = data.y[split.train]
        expected = (data.y[split.test] - train.mean()) / train.std()
        np.testing.assert_allclose(splits.y_test[r, :, 0].numpy(), expected, rtol=1e-5)


def test_a_constant_feature_becomes_zero(splits: Splits) -> None:
    assert torch.equal(splits.x_train[..., 2], torch.zeros_like(splits.x_train[..., 2]))


def test_figures_are_in_raw_units(splits: Splits, quick: runs.Configuration) -> None:
    network, _ = runs.train(METHODS["nng-kron"], splits, quick)
    result = runs.evaluate(network, splits, quick)
    rows, predictions = result.rows, result.first
    observed = SmallSet().y[30:]
    np.testing.assert_allclose(predictions.observed, observed, rtol=1e-5)
    rmse = np.sqrt(np.mean((predictions.predicted - observed) ** 2))
    assert rows.rmse[0] == pytest.approx(rmse, rel=1e-4)
    # A change of units y -> c y moves the log-likelihood by -log c and the RMSE by c, and nothing else.
    scaled = replace(splits, y_scale=10 * splits.y_scale)
    torch.manual_seed(0)
    network, _ = runs.train(METHODS["nng-kron"], splits, quick)
    again = runs.evaluate(network, scaled, quick).rows
    np.testing.assert_allclose(again.rmse, 10 * rows.rmse, rtol=1e-4)
    np.testing.assert_allclose(again.log_likelihood, rows.log_likelihood - np.log(10), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, splits: Splits, quick: runs.Configuration) -> None:
    network, history = runs.train(METHODS[method], splits, quick)
    rows = runs.evaluate(network, splits, quick).rows
    assert len(history) == 3
    assert np.isfinite(rows.select_dtypes("number").to_numpy()).all()


TWO_PHASES = replace(METHODS["nng-full"], start=METHODS["nng-kron"], share=0.34, noise_warmup=(0.2, 0.9), members=2)


@pytest.mark.parametrize(("method", "last"), [(METHODS["nng-kron"], 2), (TWO_PHASES, 1), (TWO_PHASES, 3)])
def test_a_stopped_run_goes_on_to_the_same_result(
    method: Method,
    last: int,
    tmp_path: Path,
    splits: Splits,
    quick: runs.Configuration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs.run_one(method, splits, quick, tmp_path / "whole", progress=False)

    fit, epochs = noisynat.fit, 0

    def stopped(*args: Any, **kwargs: Any) -> noisynat.History:
        def stop(epoch: int, _: noisynat.History) -> None:
            nonlocal epochs
            epochs += 1
            if epochs == last:
                raise KeyboardInterrupt

        return fit(*args, **{**kwargs, "on_epoch": stop})

    monkeypatch.setattr(noisynat, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run_one(method, splits, quick, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(noisynat, "fit", fit)
    assert list((tmp_path / "stopped").glob("checkpoint-*.pt"))
    runs.run_one(method, splits, quick, tmp_path / "stopped", progress=False)
    assert not list((tmp_path / "stopped").glob("checkpoint-*.pt"))

    timing = ["training_seconds"]
    whole, resumed = (pd.read_csv(tmp_path / name / "splits.csv").drop(columns=timing) for name in ("whole", "stopped"))
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)


@pytest.mark.parametrize(("epochs", "expected"), [(1, [1, 1]), (2, [1, 1]), (30, [20, 10])])
def test_every_phase_has_an_epoch(epochs: int, expected: list[int]) -> None:
    assert [own for _, own in TWO_PHASES.phases(epochs)] == expected


def test_a_method_with_a_start_has_two_phases(splits: Splits, quick: runs.Configuration) -> None:
    """Kronecker first, dense from its posterior; one history, at lambda = 1 in the end."""
    seen: list[tuple[str, int]] = []
    network, history = runs.train(
        TWO_PHASES, splits, quick, on_epoch=lambda network, history: seen.append((network.structure, len(history)))
    )
    assert seen == [("kronecker", 1), ("kronecker", 2), ("dense", 3)]
    assert history["epoch"] == [1, 2, 3]
    assert history["seconds"] == sorted(history["seconds"])
    assert network.replicas == (2, 2)
    assert network.kl_weight == 1.0


def test_members_predict_as_one_mixture(splits: Splits, quick: runs.Configuration) -> None:
    """The mixture's density and mean are averages of its members', weighted by exp(10 ELBO / N)."""
    network, _ = runs.train(TWO_PHASES, splits, quick)
    state = network.evaluation_stream.state()
    result = runs.evaluate(network, splits, quick)
    network.evaluation_stream.load_state(state)
    x, y = (runs.members_of(values, network.replicas) for values in (splits.x_test, splits.y_test))
    training = (runs.members_of(values, network.replicas) for values in (splits.x_train, splits.y_train))
    weights = (10 * network.elbo(*training, num_samples=10).per_datum).softmax(-1).unsqueeze(-1)
    apart = network.predict(x, quick.test_samples // 2)  # members share the samples
    expected = (weights * apart.log_prob(y).exp()).sum(1).log()
    np.testing.assert_allclose(result.pointwise["log_prob"], expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        result.pointwise["mean"], (weights * apart.mean[..., 0]).sum(1).numpy(), rtol=1e-4, atol=1e-5
    )
    raw = (expected - splits.y_scale.log()[:, None]).mean(1)
    np.testing.assert_allclose(result.rows.log_likelihood, raw.numpy(), rtol=1e-4)
    assert len(result.rows) == 2


def test_settings_with_tuples_are_recognized(tmp_path: Path, splits: Splits, quick: runs.Configuration) -> None:
    method = replace(METHODS["nng-kron"], options={"betas": (0.9, 0.98)})
    assert runs.run_one(method, splits, quick, tmp_path, progress=False)
    assert not runs.run_one(method, splits, quick, tmp_path, progress=False)


def test_a_finished_run_is_kept_and_other_settings_train_anew(
    tmp_path: Path, splits: Splits, quick: runs.Configuration
) -> None:
    method = METHODS["bbb"]
    assert runs.run_one(method, splits, quick, tmp_path, progress=False)
    assert not runs.run_one(method, splits, quick, tmp_path, progress=False)
    assert runs.run_one(method, splits, replace(quick, epochs=4), tmp_path, progress=False)


def test_command_line_writes_tables_and_figure(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="boston is read from the package mlxtend")
    arguments = ["boston", "--methods", "bbb,nng-kron", "--splits", "2", "--epochs", "2", "--output", str(tmp_path)]
    result = CliRunner().invoke(uci_regression.app, arguments)
    assert result.exit_code == 0, result.output
    assert "nng-kron" in result.output
    rows = pd.read_csv(tmp_path / "results.csv")
    assert list(rows.groupby(["dataset", "method"]).size()) == [2, 2]
    assert "lambda = 1" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "boston.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["boston", "--methods", "nng-best"], ["bosten"]])
def test_unknown_names_fail_before_training(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(uci_regression.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert not any(tmp_path.iterdir())


def test_standard_error_by_hand() -> None:
    table = pd.DataFrame({"dataset": "a", "method": "b", "rmse": [1.0, 2.0, 3.0]})
    for column in ("log_likelihood", "elbo_per_datum", "coverage", "training_seconds"):
        table[column] = 0.0
    shown = summary.summarize(table)
    assert shown.rmse[0] == 2.0
    assert shown.rmse_error[0] == pytest.approx(1 / np.sqrt(3))
