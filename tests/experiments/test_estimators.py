"""The comparison of estimators: scores against their definitions, ranks and times, and that a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import BayesianRidge, LinearRegression
from typer.testing import CliRunner

from experiments import estimators
from experiments.estimator_baselines import (
    CLASSIFIERS,
    NETWORK,
    OURS,
    REGRESSORS,
    Classifier,
    PointRegressor,
    Regressor,
    interval_error,
)

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(400, 2))
Y = 5 + 3 * X[:, 0] + 0.5 * GENERATOR.normal(size=400)


class Fixed:
    """A classifier that knows the probabilities."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [1.0, 0.0]])


def test_scores_of_a_normal_distribution() -> None:
    contender = Regressor(BayesianRidge())
    contender.fit(X[:300], Y[:300])
    mean, std = contender.estimator.predict(X[300:], return_std=True)
    errors = Y[300:] - mean
    scores = contender.scores(X[300:], Y[300:])
    density = -0.5 * np.log(2 * np.pi * std**2) - errors**2 / (2 * std**2)
    assert scores["log_likelihood"] == pytest.approx(density.mean())
    assert scores["error"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert scores["calibration_error"] < 0.1


def test_the_spread_of_a_point_estimator_is_that_on_rows_it_has_not_seen() -> None:
    few = slice(0, 12)
    wide = np.concatenate([X, GENERATOR.normal(size=(400, 8))], axis=1)
    contender = PointRegressor(LinearRegression())
    contender.fit(wide[few], Y[few])
    contender.calibrate(wide[few], Y[few])
    own = np.sqrt(np.mean((contender.estimator.predict(wide[few]) - Y[few]) ** 2))
    assert contender._std > 2 * own  # 11 coefficients for 12 rows: residuals of the fit say nothing


def test_scores_of_classes() -> None:
    scores = Classifier(Fixed()).scores(np.zeros((4, 1)), np.array([0, 1, 1, 1]))
    assert scores["log_likelihood"] == pytest.approx((np.log([0.9, 0.4, 0.8]).sum() + np.log(1e-15)) / 4)
    assert scores["error"] == 0.5
    # Every row has a bin to itself: |confidence - right| is 0.1, 0.6, 0.2 and 1.
    assert scores["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2 + 1.0) / 4, abs=1e-6)


def test_interval_error_is_small_for_uniform_and_large_for_certain() -> None:
    uniform = (np.arange(1000) + 0.5) / 1000
    assert interval_error(uniform) < 0.002
    assert interval_error(np.full(10, 0.5)) == pytest.approx(0.5)  # all inside every interval: mean of 1 - level


PROVENANCE: dict[str, Any] = {"command": "c", "machine": "m", "packages": {}, "python": "3", "threads": 1}


def table() -> pd.DataFrame:
    rows = [
        {"dataset": "a", "model": model, "fold": fold, "log_likelihood": value + fold, "error": 1.0,
         "calibration_error": 0.1, "seconds": seconds}
        for model, value, seconds in ((OURS, -1.0, 6.0), (NETWORK, -2.0, 2.0), ("forest", -0.5, 1.0))
        for fold in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_summary_ranks_and_compares_times() -> None:
    means = estimators.summary(table()).set_index("model")
    assert means["rank"].to_dict() == {OURS: 2, NETWORK: 3, "forest": 1}
    assert means.seconds_over_network.to_dict() == {OURS: 3.0, NETWORK: 1.0, "forest": 0.5}
    assert means.log_likelihood[OURS] == pytest.approx(-0.5)
    assert means.log_likelihood_error[OURS] == pytest.approx(0.5)  # standard deviation of 0 and 1 over root 2
    text = estimators.markdown(estimators.summary(table()), PROVENANCE)
    assert f"| a | **{OURS}** | 2 | -0.500±0.500 | 1 | 0.100 | 6.00 | 3.0 |" in text


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick: dict[str, Any] = {"ridge": REGRESSORS["Bayesian ridge"], NETWORK: REGRESSORS["Bayesian ridge"]}
    monkeypatch.setattr(estimators, "REGRESSORS", quick)
    whole = estimators.run("diabetes", 3, 0, tmp_path)
    whole[whole.fold < 2].to_csv(tmp_path / "folds.csv", index=False)
    resumed = estimators.run("diabetes", 3, 0, tmp_path)
    assert len(whole) == len(resumed) == 6
    np.testing.assert_allclose(resumed.log_likelihood, whole.log_likelihood)
    np.testing.assert_allclose(resumed.seconds[:4], whole.seconds[:4], rtol=1e-6)
    other = estimators.run("diabetes", 3, 1, tmp_path)
    assert (other.log_likelihood != whole.log_likelihood).all()  # another seed, other folds


def test_the_command_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "CLASSIFIERS", {k: CLASSIFIERS[k] for k in ("logistic regression", NETWORK)})
    result = CliRunner().invoke(
        estimators.app, ["breast cancer", "--folds", "2", "--output", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    means = pd.read_csv(tmp_path / "estimators.csv")
    assert set(means.model) == {"logistic regression", NETWORK}
    assert (means.log_likelihood > np.log(0.5)).all()  # better than a coin
    assert "breast cancer" in (tmp_path / "estimators.md").read_text()


def test_unknown_sets_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(estimators.app, ["bostn", "--output", str(tmp_path)])
    assert result.exit_code == 2
