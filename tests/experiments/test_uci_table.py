"""The whole UCI table: the verdicts by hand, the report, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments import records, uci_report, uci_table
from experiments.methods import CANDIDATES, DEFAULT, METHODS, RECIPES
from experiments.published import published_results
from experiments.uci_table import Task, WallTime, tasks_of
from experiments.uci_verdicts import VARIATIONAL, paired, verdicts


def rows(method: str, log_likelihood: list[float], rmse: float = 1.0, elbo: float = 0.0) -> pd.DataFrame:
    """A method's rows on boston, with ELBOs that rise by 0.1 from split to split."""
    count = len(log_likelihood)
    return pd.DataFrame(
        {
            "dataset": "boston",
            "method": method,
            "split": np.arange(count),
            "rmse": rmse,
            "log_likelihood": log_likelihood,
            "elbo_per_datum": elbo + 0.1 * np.arange(count),
            "coverage": 0.95,
            "training_seconds": 3.0,
        }
    )


def by_claim(ours: pd.DataFrame, peers: pd.DataFrame | None = None) -> pd.DataFrame:
    return verdicts(ours, peers).set_index("claim")


def test_differences_are_paired_by_split() -> None:
    """1 and 2 more in two splits: mean 1.5, standard error 0.5; the order of rows does not matter."""
    table = pd.concat([rows("a", [5.0, 3.0]), rows("b", [4.0, 1.0])]).sample(frac=1, random_state=1)
    assert paired(table, "a", "b", "log_likelihood") == pytest.approx((1.5, 0.5))
    assert paired(table, "a", "missing", "log_likelihood") is None


def test_an_elbo_is_above_only_beyond_two_standard_errors() -> None:
    claim = "ELBO of nng-kron above that of bbb, by two errors"
    bbb = rows("bbb", [0.0] * 4)
    assert by_claim(pd.concat([rows("nng-kron", [0.0] * 4, elbo=0.01), bbb])).holds[claim]
    noisy = rows("nng-kron", [0.0] * 4).assign(elbo_per_datum=bbb.elbo_per_datum + np.array([0.0, 0.0, 0.0, 0.04]))
    found = by_claim(pd.concat([noisy, bbb])).loc[claim]  # 0.01 +- 0.01
    assert not found.holds
    assert found.error == pytest.approx(0.01)


def test_published_figures_are_compared_in_their_own_precision() -> None:
    """Boston: DVI has the best published variational log-likelihood, -2.41; VMG an RMSE of 2.81."""
    published = published_results()
    assert set(VARIATIONAL) <= set(published.method)
    likelihood, rmse = "log-likelihood at or above every published variational one", "RMSE at or below VMG's"
    good = by_claim(rows("selected", [-2.414], rmse=2.814))
    assert good.holds[likelihood]
    assert good.holds[rmse]
    assert good.other[likelihood] == -2.41
    assert good.against[likelihood].startswith("DVI")
    bad = by_claim(rows("selected", [-2.416], rmse=2.816))
    assert not bad.holds[likelihood]
    assert not bad.holds[rmse]


def test_the_best_peer_may_be_ahead_by_one_paired_standard_error() -> None:
    claim = "log-likelihood at or above the best peer's, within one error"
    peers = pd.concat([rows("peer-gp", [1.0, 3.0]), rows("peer-ivon", [0.0, 0.0])])
    close = by_claim(rows("selected", [1.0, 2.0]), peers).loc[claim]  # 0.5 +- 0.5 behind
    assert close.holds
    assert close.against == "peer-gp"
    assert not by_claim(rows("selected", [0.4, 2.4]), peers).holds[claim]  # 0.6 behind in both
    assert claim not in by_claim(rows("selected", [1.0, 2.0])).index


def test_the_default_may_be_a_tenth_of_a_nat_behind() -> None:
    claim = f"{DEFAULT} within 0.1 nats of the selected one"
    for behind, holds in ((0.09, True), (0.11, False)):
        table = pd.concat([rows("selected", [0.0, 1.0]), rows(DEFAULT, [-behind, 1 - behind])])
        assert by_claim(table).holds[claim] is np.bool_(holds)


def test_coverage() -> None:
    claim = "coverage of 95% intervals between 0.92 and 0.98"
    for coverage, holds in ((0.919, False), (0.92, True), (0.981, False)):
        assert by_claim(rows("selected", [0.0]).assign(coverage=coverage)).holds[claim] is np.bool_(holds)


def test_coverage_is_averaged_over_sets_of_any_size() -> None:
    """Boston 0.99 with two splits and yacht 0.93 with one: 0.96, where the mean of all rows is 0.97."""
    both = pd.concat(
        [
            rows("selected", [0.0, 0.0]).assign(coverage=0.99),
            rows("selected", [0.0]).assign(coverage=0.93, dataset="yacht"),
        ]
    )
    found = by_claim(both).loc["coverage of 95% intervals between 0.92 and 0.98, averaged over the sets"]
    assert (found.dataset, found.ours, found.holds) == ("all", pytest.approx(0.96), True)


def test_the_report_has_every_method_and_says_where_a_claim_fails(tmp_path: Path) -> None:
    ours = pd.concat([rows("bbb", [-2.7, -2.5]), rows("nng-kron", [-2.5, -2.5], elbo=-1.0), rows("selected", [-3, -3])])
    ours.loc[ours.method == "selected", "elbo_per_datum"] = np.nan
    peers = rows("peer-gp", [-2.4, -2.2])
    weights = {"boston": pd.DataFrame({"split": [0, 1], "nng-kron": [0.5, 0.7], "bbb": [0.5, 0.3]})}
    about = {"command": "c", "packages": {}, "python": "3", "machine": "m", "threads": 1}
    wall = {"seconds": 120.0, "processes": 2, "invocations": 1}
    uci_report.write(ours, peers, weights, wall, tmp_path, about)
    text = (tmp_path / "uci_tables.md").read_text()
    assert "| ELBO of nng-kron above that of bbb, by two errors | 0 of 1 | boston: -0.950, 0.050±0.000 (bbb) |" in text
    assert "| `bbb` Bayes by Backprop | -2.600±0.100 |" in text
    assert "| `peer-gp` " in text
    assert "| *VMG* (standard error) | -2.54±0.08 |" in text
    assert "| boston | 0.60 | 0.40 |" in text
    assert "took 2 minutes with 2 processes" in text
    assert list(pd.read_csv(tmp_path / "uci.csv").method) == ["bbb", "nng-kron", "selected", "peer-gp"]
    assert list(pd.read_csv(tmp_path / "uci_chosen.csv").columns) == ["dataset", "split", "nng-kron", "bbb"]
    elbo = text[text.index("## ELBO per datum") : text.index("## Coverage")]
    assert "selected" not in elbo  # a mixture of methods has none


def test_every_candidate_is_trained_and_rehearsed_and_nothing_twice() -> None:
    candidates = [RECIPES[name] for name in CANDIDATES]
    tasks = tasks_of(["yacht", "protein"], [METHODS["bbb"], *candidates], candidates)
    assert len(tasks) == len({str(task) for task in tasks}) == 2 * (1 + 2 * len(candidates))
    assert tasks[0] == Task("protein", candidates[0])
    assert str(tasks[-1]) == f"yacht {CANDIDATES[-1]}, to select"


def test_wall_time_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    first = WallTime(tmp_path / "wall.json", 2)
    for now[0] in (104.0, 110.0):
        first.tick(worked=True)
    idle = WallTime(tmp_path / "wall.json", 2)
    now[0] = 110.5
    assert idle.tick(worked=False) == 10.5
    second = WallTime(tmp_path / "wall.json", 1)
    now[0] = 115.5
    assert second.tick(worked=True) == 15.0
    assert records.read_json(tmp_path / "wall.json") == {"seconds": 15.0, "invocations": 2, "processes": 1}


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
def test_the_command_writes_its_report_and_resumes(tmp_path: Path) -> None:
    arguments = ["yacht", "boston", "--methods", "bbb,nng-kron", "--splits", "2", "--epochs", "2"]
    folders = ["--output", str(tmp_path / "runs"), "--peers", str(tmp_path), "--report", str(tmp_path / "report")]
    for processes in ("2", "1"):
        result = CliRunner().invoke(uci_table.app, [*arguments, *folders, "--processes", processes])
        assert result.exit_code == 0, result.output
    assert result.output.count("done before") == 2 * (2 + 2 * len(CANDIDATES))
    written = {path.name for path in (tmp_path / "report").iterdir()}
    figures = {f"uci_{name}.png" for name in ("calibration", "elbo", "log_likelihood")}
    assert written == figures | {"uci.csv", "uci_chosen.csv", "uci_tables.md", "uci_verdicts.csv"}
    assert pd.read_csv(tmp_path / "report" / "uci.csv").dataset.unique().tolist() == ["yacht", "boston"]


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_terminated_command_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.uci_table", "yacht", "--methods", "bbb", "--epochs", "100000"]
    running = subprocess.Popen([*command, "--output", str(tmp_path)], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(tmp_path.rglob("checkpoint-0.pt")))
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert len(children) >= 2
    running.terminate()
    assert running.wait(60) != 0
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_data_sets_outside_the_table_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(uci_table.app, ["year", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert "not in this table" in result.output
