"""Published figures of the UCI regression benchmark, with their sources."""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

COLUMNS = (
    "method",
    "dataset",
    "rmse",
    "rmse_error",
    "test_log_likelihood",
    "ll_error",
    "error_kind",
    "network",
    "source",
)


def published_results() -> pd.DataFrame:
    """A row per published method and data set, in the order of the table's sources.

    ``rmse`` and ``test_log_likelihood`` are means over the publications' splits in raw units, NaN where a publication
    gives none. ``rmse_error`` and ``ll_error`` are what ``error_kind`` says, "standard error" or "standard deviation";
    they are NaN where none was printed. Publications drew their splits by one recipe, but not always the same ones.
    """
    with (files("experiments") / "published_uci.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)[list(COLUMNS)]
