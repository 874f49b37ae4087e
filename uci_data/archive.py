"""Reading and writing the ``<name>.npz`` files that hold the arrays ``X`` and ``y``."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from .entry import Array, DatasetInfo
from .errors import corrupted_data
from .integrity import verify


def read_npz(info: DatasetInfo, path: Path) -> tuple[Array, Array]:
    """Read X (N, D) and y (N,) and verify them. The file is only read, never changed.

    Raises:
        CorruptedDataError: the file cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            X = np.asarray(arrays["X"], dtype=np.float64)
            y = np.asarray(arrays["y"], dtype=np.float64)
    except (BadZipFile, EOFError, IndexError, KeyError, OSError, TypeError, ValueError, zlib.error) as error:
        raise corrupted_data(
            info.name,
            str(path),
            expected=f"arrays X and y, array SHA-256 {info.array_sha256}",
            found=f"not readable ({type(error).__name__}: {error})",
        ) from error
    verify(info, X, y, str(path))
    return X, y


def write_npz(path: Path, X: Array, y: Array) -> None:
    """Write X and y so that ``path`` is, at every moment, absent, the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, X=X, y=y)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
