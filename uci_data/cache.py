"""The user's cache: sets that were downloaded before, as ``<name>.npz`` files that this package owns."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from .archive import read_npz, write_npz
from .entry import Array, DatasetInfo
from .errors import CorruptedDataError, DataWarning, SourceUnavailableError

CACHE_VARIABLE = "NOISYNAT_CACHE_DIR"


def cache_dir() -> Path:
    """The folder of cached sets: ``$NOISYNAT_CACHE_DIR/uci``, or below the platform's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return (Path(chosen).expanduser() if chosen else _platform_cache() / "noisynat") / "uci"


def cached_file(info: DatasetInfo) -> Path:
    """Where the cache keeps a set, whether or not it is there."""
    return cache_dir() / f"{info.name}.npz"


def read_cached(info: DatasetInfo) -> tuple[Array, Array]:
    """Read a set from the cache. A damaged file is removed with a ``DataWarning``: it can be had again.

    Raises:
        SourceUnavailableError: the set is not cached, or its file was damaged.
    """
    path = cached_file(info)
    if not path.is_file():
        raise SourceUnavailableError(f"{path} does not exist")
    try:
        return read_npz(info, path)
    except CorruptedDataError as error:
        warnings.warn(f"Removing a damaged file from the cache: {error}", DataWarning, stacklevel=2)
        path.unlink(missing_ok=True)
        raise SourceUnavailableError(f"{path} was damaged and has been removed") from error


def keep(info: DatasetInfo, X: Array, y: Array) -> None:
    """Store a verified set. A cache that cannot be written costs a ``DataWarning``, not the data."""
    path = cached_file(info)
    try:
        write_npz(path, X, y)
    except OSError as error:
        warnings.warn(f"Could not keep {info.name} at {path}: {error}", DataWarning, stacklevel=2)


def _platform_cache() -> Path:
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
