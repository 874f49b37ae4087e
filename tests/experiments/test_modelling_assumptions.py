"""The experiment on modelling assumptions writes its tables and figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments import modelling_assumptions
from noisynat.diagnostics import APPROXIMATIONS


def test_the_command_writes_its_files(tmp_path: Path) -> None:
    arguments = ["--epochs", "2", "--threads", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(modelling_assumptions.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    table = pd.read_csv(tmp_path / "errors.csv")
    assert table.network.tolist() == ["dense"] * 2 + ["convolutional"] * 2
    assert table.epoch.tolist() == [0, 2] * 2
    assert (table[list(APPROXIMATIONS)] < 1).all(axis=None)
    assert (table.block_diagonal <= table.kronecker).all()
    text = (tmp_path / "errors.md").read_text()
    assert f"| dense | 0 | {table.accuracy[0]:.3f} | {table.block_diagonal[0]:.3f} |" in text
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("fisher", "space", "precision"))


@pytest.mark.parametrize(("name", "weights"), [("dense", 298), ("convolutional", 512)])
def test_sizes_are_those_of_the_report(name: str, weights: int) -> None:
    assert sum(p.numel() for p in modelling_assumptions.NETWORKS[name]().parameters()) == weights
