"""Fixtures: no network, a cache of its own for every test, and a small made-up set to play with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from uci_data import parsers
from uci_data.entry import Array, DatasetInfo
from uci_data.integrity import array_sha256
from uci_data.registry import REGISTRY

REAL_SETS = os.environ.get("NOISYNAT_UCI_DIR")


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the user's folders nor the network play a part, unless a test says so."""

    def no_network(*_: object) -> Path:
        raise OSError("tests do not use the network")

    monkeypatch.delenv("NOISYNAT_UCI_DIR", raising=False)
    monkeypatch.setenv("NOISYNAT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("uci_data.download.fetch", no_network)


@pytest.fixture
def real_sets() -> Path:
    """The folder with the nine real sets as ``<name>.npz``."""
    if not REAL_SETS:
        pytest.skip("NOISYNAT_UCI_DIR does not name a folder with the real sets")
    return Path(REAL_SETS)


@pytest.fixture
def tiny_arrays() -> tuple[Array, Array]:
    """X (10, 2) and y (10,) of the set ``tiny``."""
    table = np.round(np.random.default_rng(0).normal(size=(10, 3)), 3)
    return table[:, :2], table[:, 2]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tiny_arrays: tuple[Array, Array]) -> DatasetInfo:
    """A registry entry named ``tiny`` that exists for one test."""
    entry = DatasetInfo(
        name="tiny",
        rows=10,
        feature_names=("a", "b"),
        target_name="c",
        url="https://example.invalid/tiny.data",
        download_sha256="0" * 64,
        array_sha256=array_sha256(*tiny_arrays),
        parse=parsers.yacht,
    )
    monkeypatch.setitem(REGISTRY, "tiny", entry)
    return entry


@pytest.fixture
def save_tiny(tiny: DatasetInfo, tiny_arrays: tuple[Array, Array]) -> Callable[[Path], Path]:
    """Writes an intact ``tiny.npz`` into a folder and returns its path."""

    def save(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tiny.npz"
        np.savez(path, X=tiny_arrays[0], y=tiny_arrays[1])
        return path

    return save


@pytest.fixture
def downloadable(monkeypatch: pytest.MonkeyPatch, tiny: DatasetInfo, tiny_arrays: tuple[Array, Array]) -> list[str]:
    """Makes the download of ``tiny`` succeed; returns the list of names fetched so far."""
    fetched: list[str] = []

    def fetch(info: DatasetInfo, folder: Path, progress: bool) -> Path:
        fetched.append(info.name)
        path = folder / "tiny.data"
        np.savetxt(path, np.column_stack(tiny_arrays), fmt="%.17g")
        return path

    monkeypatch.setattr("uci_data.download.fetch", fetch)
    return fetched
