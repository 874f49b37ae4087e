"""DatasetInfo: all that is known about a data set before a file is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parser = Callable[[Path], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One entry of the registry.

    Attributes:
        name: the name that ``load`` takes.
        rows: number of rows N.
        feature_names: names of the D columns of X, with units where the donor gives them.
        target_name: name and unit of y.
        url: where the donor's file is downloaded from.
        download_sha256: SHA-256 of that file; None where it is not known.
        array_sha256: SHA-256 of the (N, D + 1) table ``[X | y]`` as little-endian float64 in row order;
            None where it is not known.
        parse: reads the donor's file into X (N, D) and y (N,).
        needs: optional packages that ``parse`` imports.
        split_count: number of fixed splits.
        train_rows: when the donor fixed one split, the number of leading rows for training.
        target_range: smallest and largest value that y may take, where there is no ``array_sha256``.
        package_file: an installed package that ships the set, and the file inside it
            (comma-separated, no header, target last).
        licence: licence of the data as their source states it.
        doi: digital object identifier of the set, where it has one.
    """

    name: str
    rows: int
    feature_names: tuple[str, ...]
    target_name: str
    url: str
    download_sha256: str | None
    array_sha256: str | None
    parse: Parser
    needs: tuple[str, ...] = ()
    split_count: int = 20
    train_rows: int | None = None
    target_range: tuple[float, float] | None = None
    package_file: tuple[str, str] | None = None
    licence: str = "CC BY 4.0"
    doi: str | None = None

    @property
    def features(self) -> int:
        """Number of columns of X."""
        return len(self.feature_names)
