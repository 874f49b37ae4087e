"""The ELBO comparison: paired statistics, thresholds, what a curve shows, resumption, the command line."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments import elbo_comparison, elbo_figures, elbo_report, elbo_statistics, runs
from experiments.methods import METHODS
from experiments.protocol import Splits


@pytest.fixture
def splits() -> Splits:
    """Two splits of a line with noise: 30 examples to train on, 10 to test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40, 3, generator=generator)
    y = x[..., :1] + 0.1 * torch.randn(2, 40, 1, generator=generator)
    return Splits("small", x[:, :30], y[:, :30], x[:, 30:], y[:, 30:], torch.zeros(2), torch.ones(2))


@pytest.fixture
def quick() -> runs.Configuration:
    return runs.Configuration(epochs=4, batch_size=10, hidden=5, test_samples=20, elbo_samples=10)


@pytest.fixture
def tables() -> elbo_statistics.Tables:
    """Two runs on two splits by hand; an epoch of bbb takes a second, one of nng-mvg takes four."""
    curves = {
        "bbb": ([[-2.0, -2.0], [-1.5, -1.4], [-1.04, -1.0], [-1.0, -0.9]], 1.0, [-1.0, -0.9]),
        "nng-mvg": ([[-3.0, -3.0], [-1.03, -1.0], [-0.7, -0.8], [-0.6, -0.7]], 4.0, [-0.6, -0.7]),
    }
    tables = elbo_statistics.Tables()
    for method, (values, per_epoch, final) in curves.items():
        epoch, split = np.repeat([1, 2, 3, 4], 2), np.tile([0, 1], 4)
        columns = {"epoch": epoch, "split": split, "elbo": np.ravel(values), "seconds": per_epoch * epoch}
        last = pd.DataFrame({"split": [0, 1], "elbo": final, "kl": 0.5, "expected_log_likelihood": np.add(final, 0.5)})
        tables.add("toy", method, pd.DataFrame(columns), last, [per_epoch, 3 * per_epoch, 2 * per_epoch])
    return tables


# --- statistics -----------------------------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3).
    mean, error, verdict = elbo_statistics.paired_difference(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert (mean, verdict) == (2.0, "higher")
    assert error == pytest.approx(1 / np.sqrt(3))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-1.0, -2.0, -3.0], "lower"),
        ([1.0, 2.0], "higher"),  # mean 1.5, error 0.5
        ([1.0, 3.1], "within two standard errors"),  # mean 2.05, error 1.05
        ([-1.0, -3.1], "within two standard errors"),
        ([0.0, 0.0], "within two standard errors"),
        ([2.0], "one split: no verdict"),
    ],
)
def test_verdicts(differences: list[float], expected: str) -> None:
    reference = np.linspace(-5, 5, len(differences))  # a large spread over splits does not count: it is paired
    assert elbo_statistics.paired_difference(reference + differences, reference)[2] == expected


def test_first_within_by_hand() -> None:
    epochs = np.array([1, 5, 10])
    curves = np.array([[-3.0, -3.0, -1.0], [-1.04, -2.0, -2.0], [-1.5, -1.06, -1.0]])
    reached = elbo_statistics.first_within(epochs, curves, -1.0, 0.05)
    np.testing.assert_array_equal(reached, [5, np.nan, 1])
    np.testing.assert_array_equal(
        elbo_statistics.first_within(epochs, curves, np.array([-4, -1.9, 0]), 0.1), [1, 5, np.nan]
    )
    assert elbo_statistics.first_within(epochs, curves[:, 0], -1.0, 0.05) == 5


def test_tables_by_hand(tables: elbo_statistics.Tables) -> None:
    paired = tables.paired()
    assert list(paired[["method", "reference", "splits", "verdict"]].iloc[0]) == ["nng-mvg", "bbb", 2, "higher"]
    assert paired.difference[0] == pytest.approx(0.3)
    assert paired.error[0] == pytest.approx(0.1)
    curves = tables.curves()
    assert list(curves.elbo[:2]) == [-2.0, pytest.approx(-1.45)]
    assert curves.elbo_error[1] == pytest.approx(0.05)

    base, other = tables.speed().to_dict("records")
    assert (base["own_epochs"], base["bbb_epochs"]) == (4, 4)  # the mean is -1.02 at epoch 3, and -0.95 at the end
    assert (base["own_seconds"], other["own_seconds"]) == (4, 16)
    assert (other["bbb_epochs"], other["bbb_seconds"]) == (3, 12)  # -1.015, then -0.75 against -0.95
    # To -1.05 and -0.95: bbb after 3 and 4 epochs, nng-mvg after 2 and 3, which are 8 and 12 seconds.
    assert (other["sooner_epochs"], other["sooner_seconds"]) == (2, 0)
    assert (other["milliseconds"], other["milliseconds_low"]) == (8, 6)


def test_sentences_say_what_the_numbers_say(tables: elbo_statistics.Tables) -> None:
    first, second = elbo_report.sentences(tables, [METHODS["bbb"], METHODS["nng-mvg"]])
    assert first.endswith("higher on toy (+0.300 ± 0.100).")
    assert "fewer epochs than `bbb` itself on 1 of 1 set (toy), after less time on 0 of 1 set." in second


def test_the_visible_range_shows_the_ends_and_not_the_beginning() -> None:
    progress = np.linspace(0, 1, 81)
    curves = [-1.0 - 9 * np.exp(-20 * progress), -1.3 - 9 * np.exp(-10 * progress)]
    bottom, top = elbo_figures.visible_range(curves)
    assert -2.5 < bottom < -1.3
    assert -1.0 < top < -0.8


# --- curves and clock -----------------------------------------------------------------------------


def test_epochs_of_evaluation() -> None:
    assert elbo_comparison.evaluation_epochs(17, 5) == [1, 2, 3, 4, 5, 10, 15, 17]
    assert elbo_comparison.evaluation_epochs(3, 1) == [1, 2, 3]


def test_the_curve_is_at_lambda_one_during_a_warmup(splits: Splits, quick: runs.Configuration) -> None:
    network = runs.build(METHODS["bbb"], splits, quick)  # its q does not depend on kl_weight
    bound, kl = elbo_comparison.bound_per_datum(network, splits, 3)
    generator = torch.Generator().manual_seed(3)
    samples = elbo_comparison._CURVE_SAMPLES
    elbo = network.elbo(splits.x_train, splits.y_train, num_samples=samples, generator=generator)
    np.testing.assert_allclose(bound, elbo.per_datum.numpy())
    network.kl_weight = 0.1
    warm, _ = elbo_comparison.bound_per_datum(network, splits, 3)
    np.testing.assert_allclose(warm, bound)
    np.testing.assert_allclose(kl, elbo.kl.numpy() / 30)


def test_all_methods_start_alike_and_see_the_same_batches(splits: Splits, quick: runs.Configuration) -> None:
    first, *others = [elbo_comparison.prepare(method, splits, quick) for method in METHODS.values()]
    batches = list(first.data)
    for other in others:
        for a, b in zip(first.network.layers, other.network.layers, strict=True):
            assert torch.equal(a.mean, b.mean)
        for (x, y), (x_other, y_other) in zip(batches, other.data, strict=True):
            assert torch.equal(x, x_other)
            assert torch.equal(y, y_other)


@pytest.mark.parametrize("name", ["bbb", "nng-kron", "nng-ekfac"])
def test_looking_changes_nothing(name: str, tmp_path: Path, splits: Splits, quick: runs.Configuration) -> None:
    elbo_comparison.run_one(METHODS[name], splits, quick, 1, tmp_path, progress=False)
    network, _ = runs.train(METHODS[name], splits, quick)
    expected = runs.evaluate(network, splits, quick).rows
    final = pd.read_csv(tmp_path / "final.csv")
    np.testing.assert_allclose(final.elbo, expected.elbo_per_datum, rtol=1e-6)
    np.testing.assert_allclose(final.expected_log_likelihood - final.kl, final.elbo, atol=1e-6)


def test_a_run_stopped_before_an_evaluation_loses_no_point(
    tmp_path: Path, splits: Splits, quick: runs.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = replace(METHODS["nng-kron"], kl_warmup=0.75)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    elbo_comparison.run_one(method, splits, quick, 1, whole, progress=False)
    evaluate, calls = elbo_comparison.bound_per_datum, []

    def stop(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(elbo_comparison, "bound_per_datum", stop)
    with pytest.raises(KeyboardInterrupt):
        elbo_comparison.run_one(method, splits, quick, 1, stopped, progress=False)
    assert set(pd.read_csv(stopped / "curve.csv").epoch) == {1}
    elbo_comparison.run_one(method, splits, quick, 1, stopped, progress=False)
    assert len(calls) == 2 + 3  # epoch 2 again, 3 and 4
    for name in ("curve.csv", "final.csv"):
        one, other = (pd.read_csv(folder / name) for folder in (whole, stopped))
        timing = [column for column in one if column == "training_seconds"]
        pd.testing.assert_frame_equal(one.drop(columns=timing), other.drop(columns=timing), check_exact=True)


def test_a_finished_run_is_kept_and_other_settings_train_anew(
    tmp_path: Path, splits: Splits, quick: runs.Configuration
) -> None:
    method = METHODS["bbb"]
    listed = replace(method, options={**method.options, "betas": (0.9, 0.999)})  # JSON turns tuples into lists
    for one, epochs, work in ((listed, 4, True), (listed, 4, False), (method, 4, True), (method, 3, True)):
        assert elbo_comparison.run_one(one, splits, replace(quick, epochs=epochs), 2, tmp_path, progress=False) == work
    assert list(pd.read_csv(tmp_path / "curve.csv").epoch.unique()) == [1, 2, 3]


def test_steps_are_timed_in_rounds_and_kept(
    tmp_path: Path, splits: Splits, quick: runs.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def seconds(run: elbo_comparison.Training, batches: object) -> float:
        order.append(run.network.structure)
        return 0.01 * len(order) * len(list(batches))  # type: ignore[call-overload]

    monkeypatch.setattr(elbo_comparison, "_seconds", seconds)
    methods = [METHODS["bbb"], METHODS["nng-kron"]]
    times = elbo_comparison.timings(methods, splits, quick, 11, tmp_path / "timing.json")
    assert order == ["mean_field", "kronecker"] * 4  # three rounds of ten steps, after one that is not counted
    np.testing.assert_allclose(times["bbb"], [30, 50, 70])  # milliseconds
    assert elbo_comparison.timings(methods, splits, quick, 11, tmp_path / "timing.json") == times
    assert len(order) == 8
    elbo_comparison.timings(methods, splits, quick, 31, tmp_path / "timing.json")
    assert len(order) == 8 + 10


def test_measured_steps_take_time(splits: Splits, quick: runs.Configuration) -> None:
    started = time.perf_counter()
    times = elbo_comparison.time_steps([METHODS["bbb"], METHODS["nng-kron"]], splits, quick, 10)
    elapsed = time.perf_counter() - started
    assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in times.values())
    assert sum(10 * sum(rounds) / 1000 for rounds in times.values()) < elapsed


def test_seconds_are_steps_times_the_median_step(tmp_path: Path) -> None:
    rows = pd.DataFrame({"epoch": [1, 5], "split": 0, "elbo": -1.0, "kl": 1.0, "training_seconds": [7.0, 8.0]})
    rows.to_csv(tmp_path / "curve.csv", index=False)
    timed = elbo_comparison.load_curve(tmp_path, [20.0, 10.0, 90.0], steps_per_epoch=15)
    assert list(timed.seconds) == [pytest.approx(0.3), pytest.approx(1.5)]
    assert list(elbo_comparison.load_curve(tmp_path, None, 15).seconds) == [7.0, 8.0]


# --- the command ----------------------------------------------------------------------------------


def test_command_line_writes_tables_and_figures(tmp_path: Path, uci_dir: Path) -> None:
    arguments = ["boston", "--methods", "bbb,nng-mvg", "--splits", "2", "--epochs", "3", "--timing-steps", "10"]
    arguments += ["--warmup", "none", "--output", str(tmp_path)]
    result = CliRunner().invoke(elbo_comparison.app, arguments)
    assert result.exit_code == 0, result.output
    assert "nng-mvg - bbb" in result.output
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert list(curves.groupby("method").size()) == [3, 3]
    np.testing.assert_allclose(curves.seconds[:3] / curves.seconds[0], [1, 2, 3], rtol=1e-5)
    assert list(pd.read_csv(tmp_path / "final.csv").groupby("method").size()) == [2, 2]
    assert list(pd.read_csv(tmp_path / "paired.csv").method) == ["nng-mvg"]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "lambda = 1" in text
    assert "(`--warmup none`): `bbb` 0, `nng-mvg` 0;" in text
    for figure in ("boston.png", "overview.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(elbo_comparison.app, arguments)
    assert again.output.count("done before") == 2
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text


def test_one_method_one_split_without_timing(tmp_path: Path, uci_dir: Path) -> None:
    arguments = ["boston", "--methods", "nng-kron", "--splits", "1", "--epochs", "1", "--timing-steps", "0"]
    result = CliRunner().invoke(elbo_comparison.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "as measured in training" in (tmp_path / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bosten"],
        ["boston", "--methods", "nng-best"],
        ["boston", "--warmup", "often"],
        ["boston", "--warmup", "1.5"],
        ["boston", "--warmup", "nan"],
        ["boston", "--every", "0"],
        ["boston", "--timing-steps", "-1"],
    ],
)
def test_bad_options_fail_before_training(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(elbo_comparison.app, [*arguments, "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert not any(tmp_path.iterdir())
