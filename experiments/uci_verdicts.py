"""What the UCI table is to show, checked set by set: an ordering, a comparison with others, a coverage.

Our figures and those of peers that we ran come from the same splits, so differences are taken split by split and their
standard errors are paired. Publications drew other splits, and printed two digits: ours are rounded to as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from experiments.methods import DEFAULT
from experiments.published import published_results
from experiments.selection import NAME as SELECTED
from experiments.summary import standard_error

VARIATIONAL = ("VI (Graves)", "PBP", "VMG", "SLANG", "DVI (heteroscedastic, empirical Bayes)")
_MATRIX_GAUSSIAN = "VMG"
NEAR_DEFAULT = 0.1  # nats between the default and the selected method
COVERAGE = (0.92, 0.98)
_COVERED = f"coverage of 95% intervals between {COVERAGE[0]} and {COVERAGE[1]}"


@dataclass(frozen=True)
class Verdict:
    """A claim about a data set.

    Args:
        claim: what is claimed.
        dataset: of which; "all" for one about all of them.
        ours: the figure that is to be at least (for an RMSE: at most) the other.
        other: what it is compared with.
        against: whose figure the other is.
        error: standard error of the difference, paired over splits; nan where splits differ or there is none.
        holds: whether the claim is true there.
    """

    claim: str
    dataset: str
    ours: float
    other: float
    against: str
    error: float
    holds: bool


def verdicts(ours: pd.DataFrame, peers: pd.DataFrame | None) -> pd.DataFrame:
    """Every claim about every data set, a row each, and about all of them, as far as the methods needed were run.

    Args:
        ours: rows per data set, method and split.
        peers: likewise, of peers that we ran; None for none.
    """
    found: list[Verdict] = []
    for dataset in ours.dataset.unique():
        of_set = ours[ours.dataset == dataset]
        theirs = None if peers is None else peers[peers.dataset == dataset]
        found += _elbo(dataset, of_set, "nng-full", "nng-kron")
        found += _elbo(dataset, of_set, "nng-kron", "bbb")
        found += _published_likelihood(dataset, of_set)
        if theirs is not None and len(theirs):
            found += _best_peer(dataset, of_set, theirs)
        found += _published_rmse(dataset, of_set)
        found += _default(dataset, of_set)
        found += _coverage(dataset, of_set)
    if SELECTED in set(ours.method):
        means = ours[ours.method == SELECTED].groupby("dataset").coverage.mean()
        found.append(_covered(f"{_COVERED}, averaged over the sets", "all", float(means.mean())))
    return pd.DataFrame([asdict(verdict) for verdict in found])


def paired(table: pd.DataFrame, first: str, second: str, column: str) -> tuple[float, float] | None:
    """Mean over splits of ``first`` minus ``second`` and its standard error; None where one of them is missing."""
    one, other = (table[table.method == name].set_index("split")[column] for name in (first, second))
    if not len(one) or not len(other):
        return None
    difference = (one - other).to_numpy()
    return float(difference.mean()), float(standard_error(difference))


def _elbo(dataset: str, table: pd.DataFrame, higher: str, lower: str) -> Iterator[Verdict]:
    difference = paired(table, higher, lower, "elbo_per_datum")
    if difference is not None:
        one, other = (float(_mean(table, name, "elbo_per_datum")) for name in (higher, lower))
        holds = difference[0] > 2 * difference[1]
        yield Verdict(
            f"ELBO of {higher} above that of {lower}, by two errors", dataset, one, other, lower, difference[1], holds
        )


def _published_likelihood(dataset: str, table: pd.DataFrame) -> Iterator[Verdict]:
    found = published_results()
    found = found[(found.dataset == dataset) & found.method.isin(VARIATIONAL)].dropna(subset="test_log_likelihood")
    if len(found) and SELECTED in set(table.method):
        best = found.loc[found.test_log_likelihood.idxmax()]
        one, other = float(_mean(table, SELECTED, "log_likelihood")), float(best.test_log_likelihood)
        claim = "log-likelihood at or above every published variational one"
        yield Verdict(claim, dataset, one, other, best.method, np.nan, round(one, 2) >= other)


def _best_peer(dataset: str, table: pd.DataFrame, peers: pd.DataFrame) -> Iterator[Verdict]:
    if SELECTED not in set(table.method):
        return
    means = peers.groupby("method").log_likelihood.mean()
    best = str(means.idxmax())
    both = pd.concat([table, peers])
    difference = paired(both, SELECTED, best, "log_likelihood")
    assert difference is not None
    one, other = float(_mean(table, SELECTED, "log_likelihood")), float(means.max())
    claim = "log-likelihood at or above the best peer's, within one error"
    yield Verdict(claim, dataset, one, other, best, difference[1], difference[0] >= -difference[1])


def _published_rmse(dataset: str, table: pd.DataFrame) -> Iterator[Verdict]:
    found = published_results()
    found = found[(found.dataset == dataset) & (found.method == _MATRIX_GAUSSIAN)]
    if len(found) and SELECTED in set(table.method):
        one, other = float(_mean(table, SELECTED, "rmse")), float(found.rmse.iloc[0])
        claim = f"RMSE at or below {_MATRIX_GAUSSIAN}'s"
        yield Verdict(claim, dataset, one, other, _MATRIX_GAUSSIAN, np.nan, round(one, 2) <= other)


def _default(dataset: str, table: pd.DataFrame) -> Iterator[Verdict]:
    difference = paired(table, DEFAULT, SELECTED, "log_likelihood")
    if difference is not None:
        one, other = (float(_mean(table, name, "log_likelihood")) for name in (DEFAULT, SELECTED))
        claim = f"{DEFAULT} within {NEAR_DEFAULT} nats of the selected one"
        yield Verdict(claim, dataset, one, other, SELECTED, difference[1], difference[0] >= -NEAR_DEFAULT)


def _coverage(dataset: str, table: pd.DataFrame) -> Iterator[Verdict]:
    if SELECTED in set(table.method):
        yield _covered(_COVERED, dataset, _mean(table, SELECTED, "coverage"))


def _covered(claim: str, dataset: str, share: float) -> Verdict:
    return Verdict(claim, dataset, share, 0.95, "nominal", np.nan, COVERAGE[0] <= share <= COVERAGE[1])


def _mean(table: pd.DataFrame, method: str, column: str) -> float:
    return float(table.loc[table.method == method, column].mean())
