"""In-split selection: what it looks at, and what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import runs, selection
from experiments.methods import METHODS
from experiments.protocol import Splits, inner_splits


@pytest.fixture
def splits() -> Splits:
    """Two splits of a line with noise, 40 rows to train on and 12 to test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 52, 3, generator=generator)
    y = x[..., :1] + 0.1 * torch.randn(2, 52, 1, generator=generator)
    scale = torch.tensor([2.0, 3.0])
    return Splits("line", x[:, :40], y[:, :40], x[:, 40:], y[:, 40:], torch.zeros(2), scale)


CONFIG = runs.Configuration(epochs=120, batch_size=10, hidden=5, test_samples=20, elbo_samples=10)
GOOD = METHODS["nng-kron"]
BAD = replace(GOOD, name="bad", options={"lr": 1e-6})


def test_inner_splits_divide_the_training_part_only(splits: Splits) -> None:
    inner = inner_splits(splits, 0.25)
    assert inner.x_train.shape == (2, 30, 3)
    assert inner.y_test.shape == (2, 10, 1)
    for r in range(2):
        together = torch.cat([inner.x_train[r], inner.x_test[r]])
        order = together[:, 0].argsort()
        expected = splits.x_train[r, splits.x_train[r, :, 0].argsort()]
        torch.testing.assert_close(together[order], expected)
        targets = torch.cat([inner.y_train[r], inner.y_test[r]])[order]
        torch.testing.assert_close(targets, splits.y_train[r, splits.x_train[r, :, 0].argsort()])
    assert not torch.equal(inner.x_test[0, :, 0].argsort(), inner.x_test[1, :, 0].argsort())
    assert torch.equal(inner.x_test, inner_splits(splits, 0.25).x_test)
    assert not torch.equal(inner.x_test, inner_splits(splits, 0.25, seed=1).x_test)


def test_the_better_method_gets_the_weight_and_the_table_a_row_per_split(tmp_path: Path, splits: Splits) -> None:
    selection.select([BAD, GOOD], splits, CONFIG, tmp_path, "tests", progress=False)
    chosen = pd.read_csv(tmp_path / "selected" / "chosen.csv")
    np.testing.assert_allclose(chosen.bad + chosen["nng-kron"], 1, rtol=1e-6)
    assert (chosen["nng-kron"] > 0.5).all()
    rows = pd.read_csv(tmp_path / "selected" / "splits.csv")
    assert rows.method.tolist() == ["selected"] * 2
    each = [pd.read_csv(tmp_path / name / "splits.csv") for name in ("bad", "nng-kron")]
    assert (rows.log_likelihood > np.minimum(each[0].log_likelihood, each[1].log_likelihood)).all()
    assert rows.training_seconds[0] > each[0].training_seconds[0] + each[1].training_seconds[0]


def test_selection_never_looks_at_the_test_part(tmp_path: Path, splits: Splits) -> None:
    """Other test targets change the figures, not the choice."""
    other = replace(splits, y_test=10 + splits.y_test)
    for name, data in (("one", splits), ("other", other)):
        selection.select([BAD, GOOD], data, CONFIG, tmp_path / name, "tests", progress=False)
    tables = [pd.read_csv(tmp_path / name / "selected" / "chosen.csv") for name in ("one", "other")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    rmse = [pd.read_csv(tmp_path / name / "selected" / "splits.csv").rmse for name in ("one", "other")]
    assert (rmse[1] > 5 * rmse[0]).all()


def test_finished_candidates_are_kept(tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    selection.select([GOOD], splits, CONFIG, tmp_path, "tests", progress=False)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", fail)
    selection.select([GOOD], splits, CONFIG, tmp_path, "tests", progress=False)
