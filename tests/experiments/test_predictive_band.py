"""The picture of predictive bands is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import predictive_band


def test_figure_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pictures" / "band.png"
    predictive_band.main(path, epochs=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("ELBO per datum") == 3


def test_observations_leave_a_gap() -> None:
    x, y = predictive_band.observations()
    assert x.shape == y.shape == (200, 1)
    assert not ((x > -0.7) & (x < 0.3)).any()
