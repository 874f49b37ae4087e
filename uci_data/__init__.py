"""Loader of the UCI regression benchmark: ten sets, verified, with the literature's fixed splits.

Example::

    data = uci_data.load("boston")
    for train, test in data.splits():
        fit(data.X[train], data.y[train])
"""

from .dataset import Dataset
from .entry import DatasetInfo
from .errors import (
    CorruptedDataError,
    DatasetNotFoundError,
    DataWarning,
    MissingExtraError,
    UnknownDatasetError,
)
from .loading import load
from .registry import info, names
from .splits import Split

__all__ = [
    "CorruptedDataError",
    "DataWarning",
    "Dataset",
    "DatasetInfo",
    "DatasetNotFoundError",
    "MissingExtraError",
    "Split",
    "UnknownDatasetError",
    "info",
    "load",
    "names",
]
