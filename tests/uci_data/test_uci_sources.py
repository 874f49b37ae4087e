"""The order of sources, and what a damaged or absent file leads to."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uci_data
from uci_data import archive, download
from uci_data.cache import cache_dir
from uci_data.entry import Array, DatasetInfo
from uci_data.errors import SourceUnavailableError
from uci_data.registry import REGISTRY

Save = Callable[[Path], Path]
Arrays = tuple[Array, Array]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user's."""
    path = tmp_path / "own"
    path.mkdir()
    return path


def damage(path: Path) -> bytes:
    """Change one value in an archive and return the file's new bytes."""
    with np.load(path) as arrays:
        X, y = arrays["X"], arrays["y"]
    X[3, 1] += 1e-9
    np.savez(path, X=X, y=y)
    return path.read_bytes()


def test_root_comes_first(save_tiny: Save, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOISYNAT_UCI_DIR", str(save_tiny(tmp_path / "environment").parent))
    save_tiny(cache_dir())
    save_tiny(folder)
    assert uci_data.load("tiny", root=folder).source == f"root folder: {folder / 'tiny.npz'}"


def test_environment_comes_before_the_cache(save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(cache_dir())
    save_tiny(folder)
    monkeypatch.setenv("NOISYNAT_UCI_DIR", str(folder))
    assert uci_data.load("tiny").source == f"NOISYNAT_UCI_DIR: {folder / 'tiny.npz'}"


def test_environment_without_the_set_is_passed_over(
    save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(cache_dir())
    monkeypatch.setenv("NOISYNAT_UCI_DIR", str(folder))
    assert uci_data.load("tiny").source.startswith("cache: ")


def test_environment_that_names_no_folder_warns(save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(cache_dir())
    monkeypatch.setenv("NOISYNAT_UCI_DIR", str(folder / "absent"))
    with pytest.warns(uci_data.DataWarning, match="names no folder"):
        uci_data.load("tiny")


def test_cache_comes_before_the_download(save_tiny: Save, downloadable: list[str]) -> None:
    save_tiny(cache_dir())
    assert uci_data.load("tiny").source.startswith("cache: ")
    assert downloadable == []


def test_download_is_cached(downloadable: list[str], tiny_arrays: Arrays) -> None:
    first, second = uci_data.load("tiny"), uci_data.load("tiny")
    assert first.source == "download: https://example.invalid/tiny.data"
    assert second.source.startswith("cache: ")
    assert downloadable == ["tiny"]
    for data in (first, second):
        np.testing.assert_array_equal(data.X, tiny_arrays[0])
        np.testing.assert_array_equal(data.y, tiny_arrays[1])


def test_root_without_the_set_is_an_error(save_tiny: Save, folder: Path) -> None:
    save_tiny(cache_dir())
    with pytest.raises(uci_data.DatasetNotFoundError, match=r"tiny\.npz does not exist"):
        uci_data.load("tiny", root=folder)


@pytest.mark.parametrize("by", ["root", "environment"])
def test_damaged_file_of_the_users_is_an_error_and_stays(
    by: str, save_tiny: Save, downloadable: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(cache_dir())
    path = save_tiny(folder)
    before = damage(path)
    if by == "environment":
        monkeypatch.setenv("NOISYNAT_UCI_DIR", str(folder))
    with pytest.raises(uci_data.CorruptedDataError) as caught:
        uci_data.load("tiny", root=folder if by == "root" else None)
    with np.load(path) as arrays:
        found = hash_by_definition(arrays["X"], arrays["y"])
    for part in (str(path), REGISTRY["tiny"].array_sha256, found):
        assert str(part) in str(caught.value)
    assert path.read_bytes() == before
    assert downloadable == []


def hash_by_definition(X: Array, y: Array) -> str:
    """The hash of ``[X | y]``, value after value."""
    total = hashlib.sha256()
    for row, target in zip(X, y, strict=True):
        total.update(struct.pack(f"<{len(row) + 1}d", *row, target))
    return total.hexdigest()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_unreadable_file_names_itself_and_the_hash(content: bytes, tiny: DatasetInfo, folder: Path) -> None:
    path = folder / "tiny.npz"
    path.write_bytes(content)
    with pytest.raises(uci_data.CorruptedDataError, match="not readable") as caught:
        uci_data.load("tiny", root=folder)
    assert str(path) in str(caught.value)
    assert str(tiny.array_sha256) in str(caught.value)
    assert path.read_bytes() == content


def test_flipped_byte_is_noticed(save_tiny: Save, folder: Path) -> None:
    path = save_tiny(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1
    path.write_bytes(content)
    with pytest.raises(uci_data.CorruptedDataError, match="not readable"):
        uci_data.load("tiny", root=folder)


def test_wrong_shape(save_tiny: Save, folder: Path, tiny_arrays: Arrays) -> None:
    X, y = tiny_arrays
    for wrong_X, wrong_y in [(X[:9], y[:9]), (X[:, :1], y), (X, y[:, None]), (X.T, y)]:
        np.savez(folder / "tiny.npz", X=wrong_X, y=wrong_y)
        with pytest.raises(uci_data.CorruptedDataError, match=r"X \(10, 2\), y \(10,\)"):
            uci_data.load("tiny", root=folder)


@pytest.mark.parametrize("arrays", [{"X": 1}, {"x": 1, "y": 1}, {"X": object(), "y": 1}])
def test_wrong_content(arrays: dict[str, object], tiny: DatasetInfo, folder: Path) -> None:
    contents: dict[str, Any] = {key: np.array([value]) for key, value in arrays.items()}
    np.savez(folder / "tiny.npz", **contents)
    with pytest.raises(uci_data.CorruptedDataError):
        uci_data.load("tiny", root=folder)


def test_nan_is_refused(tiny: DatasetInfo, folder: Path, tiny_arrays: Arrays) -> None:
    X, y = tiny_arrays
    y = y.copy()
    y[2] = np.nan
    np.savez(folder / "tiny.npz", X=X, y=y)
    with pytest.raises(uci_data.CorruptedDataError, match="NaN"):
        uci_data.load("tiny", root=folder)


def test_damaged_cache_is_replaced_by_a_download(save_tiny: Save, downloadable: list[str]) -> None:
    damage(save_tiny(cache_dir()))
    with pytest.warns(uci_data.DataWarning, match="damaged file from the cache"):
        assert uci_data.load("tiny").source.startswith("download: ")
    assert uci_data.load("tiny").source.startswith("cache: ")


def test_damaged_cache_without_another_source_is_an_error(save_tiny: Save) -> None:
    damage(save_tiny(cache_dir()))
    with (
        pytest.warns(uci_data.DataWarning),
        pytest.raises(uci_data.DatasetNotFoundError, match="damaged and has been removed"),
    ):
        uci_data.load("tiny", download=False)
    assert not (cache_dir() / "tiny.npz").exists()


def test_absent_set_lists_every_way(tiny: DatasetInfo) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        uci_data.load("tiny")
    for way in (
        "root=",
        "NOISYNAT_UCI_DIR",
        "cache",
        "installed package",
        tiny.url,
        "do not use the network",
    ):
        assert way in str(caught.value)


def test_download_can_be_forbidden(tiny: DatasetInfo, downloadable: list[str]) -> None:
    with pytest.raises(uci_data.DatasetNotFoundError, match="download=False"):
        uci_data.load("tiny", download=False)
    assert downloadable == []


def test_missing_extra_is_named(tiny: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dataclasses.replace(tiny, needs=("a_package_that_is_nowhere",))
    monkeypatch.setitem(REGISTRY, "tiny", entry)
    with pytest.raises(uci_data.DatasetNotFoundError, match=r"pip install noisynat\[experiments\]"):
        uci_data.load("tiny")


def test_right_download_that_parses_to_something_else_is_an_error(
    tiny: DatasetInfo, downloadable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, "tiny", dataclasses.replace(tiny, array_sha256="f" * 64))
    with pytest.raises(uci_data.CorruptedDataError, match="expected: array SHA-256 ffff"):
        uci_data.load("tiny")
    assert not (cache_dir() / "tiny.npz").exists()


def test_cache_write_is_atomic(
    tiny_arrays: Arrays, save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny(folder)
    before = path.read_bytes()

    def fail_half_way(file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        archive.write_npz(path, *tiny_arrays)
    assert path.read_bytes() == before
    assert os.listdir(folder) == ["tiny.npz"]


def test_cache_write_replaces_the_file_in_one_step(
    tiny_arrays: Arrays, save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny(folder)
    steps: list[Path] = []

    def replace(temporary: str, target: Path) -> None:
        assert target == path
        with np.load(temporary) as arrays:
            np.testing.assert_array_equal(arrays["X"], tiny_arrays[0] + 1)
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["X"], tiny_arrays[0])
        steps.append(Path(temporary))
        Path(temporary).rename(target)

    monkeypatch.setattr(os, "replace", replace)
    archive.write_npz(path, tiny_arrays[0] + 1, tiny_arrays[1])
    assert len(steps) == 1
    assert steps[0].parent == folder


def test_unwritable_cache_costs_a_warning_only(
    downloadable: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where the cache folder should be")
    monkeypatch.setenv("NOISYNAT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(uci_data.DataWarning, match="Could not keep tiny"):
        assert uci_data.load("tiny").source.startswith("download: ")


def test_set_without_a_hash_is_checked_by_range_and_says_so(
    tiny: DatasetInfo, save_tiny: Save, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(folder)
    unknown = dataclasses.replace(tiny, array_sha256=None, target_range=(-10.0, 10.0))
    monkeypatch.setitem(REGISTRY, "tiny", unknown)
    with pytest.warns(uci_data.DataWarning, match="No checksum of the tiny data set is known"):
        uci_data.load("tiny", root=folder)
    monkeypatch.setitem(REGISTRY, "tiny", dataclasses.replace(unknown, target_range=(1922, 2011)))
    with pytest.raises(uci_data.CorruptedDataError, match="between 1922 and 2011"):
        uci_data.load("tiny", root=folder)


def test_boston_from_an_installed_package() -> None:
    pytest.importorskip("mlxtend")
    data = uci_data.load("boston", download=False)
    assert data.source == "package mlxtend: data/data/boston_housing.csv"
    assert data.X.shape == (506, 13)
    assert data.X[0].tolist() == [
        *(0.00632, 18.0, 2.31, 0.0, 0.538, 6.575, 65.2),
        *(4.09, 1.0, 296.0, 15.3, 396.9, 4.98),
    ]
    assert data.y[0] == 24.0


def test_package_with_another_file_is_passed_over_with_a_warning(
    tiny: DatasetInfo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder / "made_up_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "tiny.csv").write_text("1,2,3\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(REGISTRY, "tiny", dataclasses.replace(tiny, package_file=("made_up_package", "tiny.csv")))
    with (
        pytest.warns(uci_data.DataWarning, match="Passing over"),
        pytest.raises(uci_data.DatasetNotFoundError, match="is not the set"),
    ):
        uci_data.load("tiny")


def test_offline_download_is_a_reason(tiny: DatasetInfo) -> None:
    with pytest.raises(SourceUnavailableError, match="do not use the network"):
        download.download(tiny, progress=False)
