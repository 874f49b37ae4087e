"""Choices inside the training part: the rules' weights, the comparison and the command."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments import model_selection
from experiments import model_selection_report as report
from experiments.grids import Candidate, Grid, Outcome
from experiments.model_selection import compare, weights_of
from experiments.protocol import Splits

GRID = Grid("coins", "coins", (Candidate("fair"), Candidate("bent")))


def outcome() -> Outcome:
    """Two candidates, two splits, three test and two held-out points."""
    log_prob = np.log([[[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]], [[0.1, 0.1, 0.1], [0.8, 0.8, 0.8]]])
    mean = np.stack([np.zeros((2, 3)), np.ones((2, 3))])
    held_out = np.log([[[0.4, 0.4], [0.1, 0.1]], [[0.2, 0.2], [0.3, 0.3]]])
    elbo = np.array([[-1.0, -1.0], [-1.0, -1.0 + np.log(3) / 10]])
    return Outcome({"log_prob": log_prob, "mean": mean, "cdf": 0.5 + 0 * mean}, held_out, elbo)


def splits() -> Splits:
    targets = torch.zeros(2, 3, 1)
    return Splits("toss", torch.zeros(2, 10, 1), torch.zeros(2, 10, 1), targets, targets, torch.zeros(2), torch.ones(2))


def test_weights_by_every_rule() -> None:
    """By ELBO: 10 data, so exp(10 * 0.1 log 3) = 3 to 1 on the second split."""
    weights = weights_of(outcome(), num_train=10)
    np.testing.assert_allclose(weights["elbo"], [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_array_equal(weights["held-out"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(weights["equal"], np.full((2, 2), 0.5))
    assert weights["stacked"][0, 0] > 0.5 > weights["stacked"][1, 0]


def test_bounds_on_other_evidences_are_not_compared() -> None:
    assert "elbo" not in weights_of(outcome(), num_train=10, bounds=False)


def test_the_mixtures_figures_are_those_of_their_weights(tmp_path: Path) -> None:
    table = compare(GRID, outcome(), splits(), tmp_path).set_index(["kind", "name", "split"])
    assert table.log_likelihood["candidate", "fair", 0] == pytest.approx(np.log(0.5))
    assert table.log_likelihood["rule", "elbo", 0] == pytest.approx(np.log(0.3))
    assert table.log_likelihood["rule", "elbo", 1] == pytest.approx(np.log(0.25 * 0.2 + 0.75 * 0.8))
    assert table.log_likelihood["rule", "held-out", 1] == pytest.approx(np.log(0.8))
    assert table.rmse["rule", "elbo", 1] == pytest.approx(0.75)
    chosen = pd.read_csv(tmp_path / "chosen.csv").set_index(["name", "split"])
    assert chosen.bent["elbo", 1] == pytest.approx(0.75)
    assert len(chosen) == 8


def test_the_report_pairs_with_the_default_and_averages_weights(tmp_path: Path) -> None:
    changes = report.changes(compare(GRID, outcome(), splits(), tmp_path), [GRID]).set_index(["kind", "name"])
    difference = np.array([np.log(0.1 / 0.5), np.log(0.8 / 0.2)])
    assert changes.log_likelihood_change["candidate", "bent"] == pytest.approx(difference.mean())
    assert changes.log_likelihood_error["candidate", "bent"] == pytest.approx(difference.std(ddof=1) / 2**0.5)
    assert changes.log_likelihood_change["candidate", "fair"] == 0
    weights = report.mean_weights(pd.read_csv(tmp_path / "chosen.csv"))
    provenance = {"command": "c", "packages": {}, "python": "3", "machine": "m", "threads": 1}
    text = report.markdown(changes.reset_index(), weights, [GRID], provenance)
    assert f"| fair | {(np.log(0.5) + np.log(0.2)) / 2:.3f} |" in text
    held_out = np.array([0.0, np.log(4)])
    assert f"| *best on held-out tenth* | {held_out.mean():+.3f}±{held_out.std(ddof=1) / 2**0.5:.3f} |" in text
    assert "| bent | 0.62 0.50 0." in text  # by ELBO (0.5 + 0.75) / 2, on the held-out tenth (0 + 1) / 2


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
def test_the_command_writes_its_tables_and_resumes(tmp_path: Path) -> None:
    arguments = ["yacht", "--grids", "restarts,lambda", "--splits", "2", "--epochs", "2", "--output", str(tmp_path)]
    changes = []
    for _ in range(2):
        result = CliRunner().invoke(model_selection.app, arguments)
        assert result.exit_code == 0, result.output
        changes.append(pd.read_csv(tmp_path / "changes.csv"))
    pd.testing.assert_frame_equal(*changes)
    assert set(changes[0].name) >= {"start 1", "0.25", "elbo", "held-out", "stacked", "equal"}
    assert "elbo" not in set(changes[0][changes[0].grid == "lambda"].name)
    assert (tmp_path / "model_selection.md").exists()
    assert (tmp_path / "model_selection.png").stat().st_size > 10_000


def test_unknown_grids_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(model_selection.app, ["yacht", "--grids", "luck", "--output", str(tmp_path)])
    assert result.exit_code == 2
