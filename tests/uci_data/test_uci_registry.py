"""The registry's entries and the real sets that they describe."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import uci_data
from uci_data.parsers import round_half_up

# Measured apart from this package: rows, features, mean and standard deviation of y.
FACTS = {
    "boston": (506, 13, 22.532806324110677, 9.188011545278203),
    "concrete": (1030, 8, 35.817961165048544, 16.697630409134263),
    "energy": (768, 8, 22.307200520833334, 10.08362445437526),
    "kin8nm": (8192, 8, 0.714283492357422, 0.2635907059246763),
    "naval": (11934, 16, 0.9750000000000001, 0.014719601443879758),
    "power": (9568, 4, 454.36500940635455, 17.066103097579205),
    "protein": (45730, 9, 7.748528427727969, 6.118244779017878),
    "wine": (1599, 11, 5.6360225140712945, 0.8073168769639513),
    "yacht": (308, 6, 10.495357142857143, 15.135858907655322),
}


def test_names() -> None:
    assert uci_data.names() == (*FACTS, "year")


@pytest.mark.parametrize("name", [*FACTS, "year"])
def test_entry_is_complete(name: str) -> None:
    entry = uci_data.info(name)
    assert entry.name == name
    assert len(set(entry.feature_names)) == entry.features
    assert entry.url.startswith("https://")
    if name == "year":
        assert (entry.rows, entry.features, entry.array_sha256) == (515345, 90, None)
        return
    assert (entry.rows, entry.features) == FACTS[name][:2]
    for checksum in (entry.download_sha256, entry.array_sha256):
        assert checksum is not None
        assert re.fullmatch("[0-9a-f]{64}", checksum)


@pytest.mark.parametrize("name", [*FACTS, "year"])
def test_licence(name: str) -> None:
    entry = uci_data.info(name)
    if name in ("boston", "kin8nm"):
        assert (entry.licence, entry.doi) == ("no licence statement found", None)
    else:
        assert entry.licence == "CC BY 4.0"
        assert entry.doi is not None
        assert entry.doi.startswith("10.24432/C5")


@pytest.mark.parametrize("name", FACTS)
def test_real_set(name: str, real_sets: Path) -> None:
    data = uci_data.load(name, root=real_sets)
    rows, features, mean, std = FACTS[name]
    assert data.X.shape == (rows, features)
    assert data.y.shape == (rows,)
    assert data.X.dtype == data.y.dtype == np.float64
    assert len(data.feature_names) == features
    np.testing.assert_allclose([data.y.mean(), data.y.std()], [mean, std], rtol=1e-12)


def test_constant_columns_of_naval(real_sets: Path) -> None:
    X = uci_data.load("naval", root=real_sets).X
    assert np.flatnonzero(np.ptp(X, axis=0) == 0).tolist() == [8, 11]


def test_real_concrete_has_rounded_values(real_sets: Path) -> None:
    data = uci_data.load("concrete", root=real_sets)
    np.testing.assert_array_equal(data.X, round_half_up(data.X, decimals=1))
    np.testing.assert_array_equal(data.y, round_half_up(data.y, decimals=2))


@pytest.mark.parametrize(("wrong", "right"), [("Boston", "boston"), ("yatch", "yacht"), ("wine-quality-red", "wine")])
def test_unknown_name_suggests_the_closest(wrong: str, right: str) -> None:
    with pytest.raises(uci_data.UnknownDatasetError, match=f"Did you mean '{right}'") as caught:
        uci_data.load(wrong)
    assert all(name in str(caught.value) for name in uci_data.names())


def test_unknown_name_without_a_close_one() -> None:
    with pytest.raises(ValueError, match="Known names: boston, concrete"):
        uci_data.load("zzz")


def test_errors_travel_between_processes() -> None:
    with pytest.raises(uci_data.UnknownDatasetError) as caught:
        uci_data.load("zzz")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
