"""The published figures: complete, typed, and credited."""

from __future__ import annotations

import math

import pytest

import uci_data
from experiments.published import COLUMNS, published_results


def test_every_row_names_its_method_network_and_source() -> None:
    table = published_results()
    assert tuple(table.columns) == COLUMNS
    assert not table[["method", "dataset", "error_kind", "network", "source"]].isna().any().any()
    assert not table.duplicated(["method", "dataset"]).any()
    assert set(table.error_kind) <= {"standard error", "standard deviation"}
    for name in table.dataset.unique():
        uci_data.info(name)  # raises for an unknown set


def test_figures_are_numbers_or_missing() -> None:
    table = published_results()
    for column in ("rmse", "rmse_error", "test_log_likelihood", "ll_error"):
        assert table[column].dtype == float
    for column in ("rmse_error", "ll_error"):
        assert (table[column].dropna() >= 0).all()
    assert table.test_log_likelihood.notna().mean() > 0.9


def test_a_row_as_printed() -> None:
    table = published_results().set_index(["method", "dataset"])
    row = table.loc[("PBP", "boston")]
    assert row.rmse == pytest.approx(3.014)
    assert row.rmse_error == pytest.approx(0.18)
    assert row.test_log_likelihood == pytest.approx(-2.574)
    assert row.source == "Hernandez-Lobato and Adams 2015, table 1"
    assert math.isnan(table.loc[("SLANG", "protein")].test_log_likelihood)
