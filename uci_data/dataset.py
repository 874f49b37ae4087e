"""Dataset: verified arrays, where they came from, and how the literature splits them."""

from __future__ import annotations

from dataclasses import dataclass

from .entry import Array, DatasetInfo
from .splits import Split, leading_split, random_splits


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A regression data set in raw units.

    Attributes:
        info: the registry's entry.
        X: features, float64, shape (N, D).
        y: target, float64, shape (N,).
        source: how and where the arrays were read.
    """

    info: DatasetInfo
    X: Array
    y: Array
    source: str

    @property
    def name(self) -> str:
        """The name in the registry."""
        return self.info.name

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of X, with units where the donor gives them."""
        return self.info.feature_names

    @property
    def target_name(self) -> str:
        """Name and unit of y."""
        return self.info.target_name

    @property
    def licence(self) -> str:
        """Licence of the data as their source states it."""
        return self.info.licence

    @property
    def doi(self) -> str | None:
        """Digital object identifier, where the set has one."""
        return self.info.doi

    def splits(self) -> list[Split]:
        """The literature's fixed splits, as pairs ``(train, test)`` of row numbers.

        Twenty 90/10 splits; five for protein; for year the donor's one split.
        """
        if self.info.train_rows is not None:
            return leading_split(self.info.rows, self.info.train_rows)
        return random_splits(self.info.rows, self.info.split_count)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, X {self.X.shape}, y {self.y.shape}, source={self.source!r})"
