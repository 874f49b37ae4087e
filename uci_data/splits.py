"""The fixed train/test splits that published results on these sets refer to.

The twenty 90/10 splits (five for protein) were drawn with NumPy's legacy generator, whose stream
NumPy has frozen, so they are computed here rather than stored.

Source: Hernandez-Lobato and Adams, "Probabilistic Backpropagation for Scalable Learning of Bayesian
Neural Networks", ICML 2015; split files of Gal and Ghahramani, "Dropout as a Bayesian Approximation",
ICML 2016.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TRAIN_FRACTION = 0.9
SEED = 1


class Split(NamedTuple):
    """Row numbers of one split: every row is in exactly one of the two."""

    train: NDArray[np.intp]
    test: NDArray[np.intp]


def random_splits(rows: int, count: int) -> list[Split]:
    """The literature's first ``count`` random 90/10 splits of ``rows`` rows, in the literature's order."""
    rng = np.random.RandomState(SEED)
    train_rows = round(TRAIN_FRACTION * rows)
    orders = (rng.choice(rows, rows, replace=False) for _ in range(count))
    return [Split(order[:train_rows], order[train_rows:]) for order in orders]


def leading_split(rows: int, train_rows: int) -> list[Split]:
    """One split: the first ``train_rows`` rows are for training, the rest for testing."""
    order = np.arange(rows, dtype=np.intp)
    return [Split(order[:train_rows], order[train_rows:])]
