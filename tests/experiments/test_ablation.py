"""One thing changed at a time: the paired differences, the report and the command."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments import ablation
from experiments.ablation import BASE, VARIANTS


def table() -> pd.DataFrame:
    """Two methods on four splits; the variant's rows are out of order."""
    base = pd.DataFrame({"split": [0, 1, 2, 3], "log_likelihood": [-1.0, -2.0, -3.0, -4.0]})
    other = pd.DataFrame({"split": [3, 2, 1, 0], "log_likelihood": [-3.9, -2.8, -1.9, -0.8]})
    both = pd.concat([base.assign(method=BASE.name), other.assign(method="cold")], ignore_index=True)
    return both.assign(dataset="boston", rmse=1.0, elbo_per_datum=np.arange(8.0), coverage=0.95)


def test_differences_are_paired_by_split() -> None:
    """0.1, 0.2, 0.1, 0.2: mean 0.15, standard error 0.0577 / 2."""
    changes = ablation.differences(table()).set_index("method")
    assert changes.log_likelihood["cold"] == pytest.approx(-2.35)
    assert changes.log_likelihood_change["cold"] == pytest.approx(0.15)
    assert changes.log_likelihood_error["cold"] == pytest.approx(np.std([0.1, 0.2, 0.1, 0.2], ddof=1) / 2)
    assert changes.log_likelihood_verdict["cold"] == "higher"
    assert changes.rmse_verdict["cold"] == "within two standard errors"
    assert changes.log_likelihood_change[BASE.name] == 0


def test_the_report_marks_what_differs() -> None:
    provenance = {"command": "c", "packages": {}, "python": "3", "machine": "m", "threads": 1}
    text = ablation.markdown(ablation.differences(table()), [BASE, VARIANTS["cold"]], provenance)
    assert "| cold posterior, lambda = 0.3 | **+0.150±0.029** | +0.000±0.000 |" in text
    assert f"| {BASE.title} | -2.500 | 1.000 |" in text


def test_variants_change_what_their_names_say_and_nothing_else() -> None:
    for name, method in VARIANTS.items():
        base = asdict(VARIANTS["members"] if name == "prior-grid" else BASE)
        changed = {key for key, value in asdict(method).items() if value != base[key]} - {"name", "title"}
        if name not in ("base", "dense", "dense-long", "dense-last"):
            assert len(changed - {"kl_start"}) == 1 or changed == {"kl_start"}, (name, changed)


@pytest.mark.skipif("NOISYNAT_UCI_DIR" not in os.environ, reason="needs the UCI files: set NOISYNAT_UCI_DIR")
def test_the_command_writes_its_tables_and_resumes(tmp_path: Path) -> None:
    arguments = ["yacht", "--variants", "fan-in,linearized,varying-noise", "--splits", "2", "--epochs", "2"]
    for _ in range(2):
        result = CliRunner().invoke(ablation.app, [*arguments, "--output", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert result.output.count("done before") == 4
    changes = pd.read_csv(tmp_path / "differences.csv")
    assert changes.method.tolist() == ["base", "fan-in", "linearized", "varying-noise"]
    assert changes.loc[2, "elbo_per_datum_change"] == 0  # the same posterior, another prediction
    assert changes.loc[2, "log_likelihood_change"] != 0
    assert (tmp_path / "ablation.md").exists()


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(ablation.app, ["yacht", "--variants", "luck", "--output", str(tmp_path)])
    assert result.exit_code == 2
