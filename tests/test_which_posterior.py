"""The page "Which posterior when" cites figures of the results pages as they are there."""

from __future__ import annotations

import csv
import re
from decimal import Decimal
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "which_posterior.md").read_text(encoding="utf-8")
ROWS = {
    cells[1].strip("`"): cells[2:]
    for line in PAGE.splitlines()
    if line.startswith("| ") and len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 8
    if cells[1].startswith("`")
}
SINGLE = ["bbb", "nng-ffg", "nng-mvg", "nng-kron", "nng-ekfac", "nng-full"]


def table(name: str) -> list[dict[str, str]]:
    with (DOCS / "results" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rounded(value: str | float, digits: int) -> str:
    return str(round(Decimal(str(value)), digits))


def step_ratios(method: str) -> list[float]:
    """Time of a step over that of bbb, per data set."""
    text = (DOCS / "results" / "elbo_tables.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (\w+) \| `([\w-]+)` \| ([\d.]+) \(", text, flags=re.MULTILINE)
    times = {(dataset, name): float(time) for dataset, name, time in found}
    return [time / times[dataset, "bbb"] for (dataset, name), time in times.items() if name == method]


def test_the_table_has_a_row_for_every_method() -> None:
    assert list(ROWS) == [*SINGLE, "mix-full-het"]


@pytest.mark.parametrize("method", [*SINGLE, "mix-full-het"])
def test_elbo_and_log_likelihoods(method: str) -> None:
    rows = {row["dataset"]: row for row in table("uci.csv") if row["method"] == method}
    _, elbo, *log_likelihoods, _ = ROWS[method]
    expected = [rounded(rows[name]["log_likelihood"], 3) for name in ("boston", "energy", "kin8nm")]
    assert log_likelihoods == expected
    if method in SINGLE:
        assert elbo == rounded(rows["boston"]["elbo_per_datum"], 3)


@pytest.mark.parametrize("method", SINGLE)
def test_time_of_a_step_and_order_of_doubt(method: str) -> None:
    step, *_, correlation = ROWS[method]
    ratios = step_ratios(method)
    assert len(ratios) == 4
    shown = [rounded(min(ratios), 1), rounded(max(ratios), 1)]
    assert step == ("1" if method == "bbb" else "–".join(shown))
    (row,) = (r for r in table("hmc_agreement.csv") if (r["method"], r["predictive"]) == (method, "sampled"))
    assert correlation == rounded(row["epistemic_correlation"], 2)


def test_the_mixture_s_time_and_correlation() -> None:
    seconds = {(row["dataset"], row["method"]): float(row["training_seconds"]) for row in table("uci.csv")}
    ratios = [time / seconds[name, "bbb"] for (name, method), time in seconds.items() if method == "mix-full-het"]
    assert len(ratios) == 9
    assert f"took {min(ratios):.1f} to {max(ratios):.1f} times the seconds" in PAGE
    (row,) = (r for r in table("hmc_agreement.csv") if (r["method"], r["predictive"]) == ("mix-full", "sampled"))
    assert f"`mix-full`, has {rounded(row['epistemic_correlation'], 2)}" in PAGE
