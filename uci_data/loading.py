"""load: a data set by its name."""

from __future__ import annotations

import os
from pathlib import Path

from .dataset import Dataset
from .registry import info
from .sources import find


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a benchmark set: X (N, D) and y (N,), float64, raw units, in the benchmark's row order.

    Whatever the source, shape and SHA-256 of the arrays are checked first (``year`` has no known hash:
    shape and range are checked, and a ``DataWarning`` says so).

    Args:
        name: one of ``names()``.
        root: a folder that holds ``<name>.npz`` with the arrays X and y; no other source is asked.
            Without it: the folder in ``NOISYNAT_UCI_DIR``, the cache, an installed package, download.
        download: whether the network may be used.
        progress: whether a download reports to standard error, as a bar on a terminal or as plain lines.

    Raises:
        UnknownDatasetError: no set has this name.
        DatasetNotFoundError: no source has the set; the message lists every way to get it.
        CorruptedDataError: the set was found, but is damaged; the message names the file.
    """
    return find(info(name), root=None if root is None else Path(root), allow_download=download, progress=progress)
