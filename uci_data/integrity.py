"""Are these arrays the data set? Shape, finiteness and hash are checked before anyone sees them."""

from __future__ import annotations

import warnings
from hashlib import sha256

import numpy as np

from .entry import Array, DatasetInfo
from .errors import DataWarning, corrupted_data


def array_sha256(X: Array, y: Array) -> str:
    """SHA-256 of the (N, D + 1) table ``[X | y]``: little-endian float64, row after row."""
    table = np.ascontiguousarray(np.column_stack([X, y]), dtype="<f8")
    return sha256(table.data).hexdigest()


def verify(info: DatasetInfo, X: Array, y: Array, where: str) -> None:
    """Check that X (N, D) and y (N,) are the set that ``info`` describes.

    A set without a known hash is checked by shape and range only, and a ``DataWarning`` says so.

    Raises:
        CorruptedDataError: they are not; the message names ``where``, the expected and the found.
    """
    _check_shape(info, X, y, where)
    _check_finite(info, X, y, where)
    if info.array_sha256 is None:
        _check_range(info, y, where)
        warnings.warn(
            f"No checksum of the {info.name} data set is known: {where} was checked by shape and range only.",
            DataWarning,
            stacklevel=2,
        )
        return
    found = array_sha256(X, y)
    if found != info.array_sha256:
        raise corrupted_data(
            info.name, where, expected=f"array SHA-256 {info.array_sha256}", found=f"array SHA-256 {found}"
        )


def _check_shape(info: DatasetInfo, X: Array, y: Array, where: str) -> None:
    expected = (info.rows, info.features), (info.rows,)
    if (X.shape, y.shape) != expected:
        raise corrupted_data(
            info.name,
            where,
            expected=f"X {expected[0]}, y {expected[1]}, array SHA-256 {info.array_sha256}",
            found=f"X {X.shape}, y {y.shape}",
        )


def _check_finite(info: DatasetInfo, X: Array, y: Array, where: str) -> None:
    if not (np.isfinite(X).all() and np.isfinite(y).all()):
        raise corrupted_data(
            info.name,
            where,
            expected=f"finite numbers, array SHA-256 {info.array_sha256}",
            found="NaN or infinite values",
        )


def _check_range(info: DatasetInfo, y: Array, where: str) -> None:
    if info.target_range is None:
        return
    low, high = info.target_range
    if y.min() < low or y.max() > high:
        raise corrupted_data(
            info.name,
            where,
            expected=f"{info.target_name} between {low:g} and {high:g}",
            found=f"between {y.min():g} and {y.max():g}",
        )
