"""The pictures of the how-tos are drawn, and their data are what the captions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments import pictures


@pytest.mark.slow
def test_pictures_are_written(tmp_path: Path) -> None:
    pictures.main(tmp_path / "pictures", epochs=5)
    for name in ("regression", "training", "classification"):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_wave_is_noisier_on_the_right() -> None:
    x, y = pictures.wave(4000, seed=0)
    assert x.shape == y.shape == (4000, 1)
    assert not ((x > -0.2) & (x < 0.6)).any()
    residual = y - torch.sin(2 * x)
    assert residual[x > 1.5].std() == pytest.approx(0.4, rel=0.1)
    assert residual[x < -1.5].std() == pytest.approx(0.05, rel=0.1)


def test_the_moons_are_half_circles() -> None:
    x, y = pictures.moons(4000, seed=0)
    for number, centre in ((0, (-0.5, -0.25)), (1, (0.5, 0.25))):
        radius = (x[y == number] - torch.tensor(centre)).norm(dim=-1)
        assert radius.mean() == pytest.approx(1.0, abs=0.06)
        assert radius.std() == pytest.approx(0.25, rel=0.1)
