"""The ELBO comparison's statistics: differences paired by split, and epochs and seconds to a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments import summary

BASELINE = "bbb"
TOLERANCE = 0.05  # nats per datum
HIGHER, LOWER, WITHIN, UNKNOWN = "higher", "lower", "within two standard errors", "one split: no verdict"
_PAIRS = (
    ("nng-ffg", BASELINE),
    ("nng-mvg", BASELINE),
    ("nng-kron", BASELINE),
    ("nng-ekfac", "nng-kron"),
    ("nng-full", "nng-kron"),
)


def paired_difference(values: np.ndarray, reference: np.ndarray) -> tuple[float, float, str]:
    """Mean of ``values - reference`` over splits, its standard error, and whether it exceeds two of them.

    Args:
        values: of each split, (R,).
        reference: of the same splits in the same order, (R,).

    Returns:
        Mean, standard error (NaN for one split) and verdict.
    """
    difference = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    mean, error = float(difference.mean()), float(summary.standard_error(difference))
    if np.isnan(error):
        return mean, error, UNKNOWN
    if abs(mean) <= 2 * error:
        return mean, error, WITHIN
    return mean, error, HIGHER if mean > 0 else LOWER


def first_within(axis: np.ndarray, values: np.ndarray, target: np.ndarray | float, tolerance: float) -> np.ndarray:
    """Where on the axis each curve is first at ``target - tolerance`` or above; NaN where it never is.

    Args:
        axis: epochs or seconds, ascending, (T,).
        values: curves (T, *shape).
        target: one number, or one for each curve, (*shape).
        tolerance: in the unit of ``values``.

    Returns:
        Points of the axis, (*shape).
    """
    reached = values >= np.asarray(target) - tolerance
    return np.where(reached.any(0), np.asarray(axis, dtype=float)[reached.argmax(0)], np.nan)


class Tables:
    """Gathers finished runs, and makes tables of them; in the order in which they came."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, str], pd.DataFrame] = {}
        self._final: dict[tuple[str, str], pd.DataFrame] = {}
        self._milliseconds: dict[tuple[str, str], Sequence[float] | None] = {}

    def add(
        self, dataset: str, method: str, curve: pd.DataFrame, final: pd.DataFrame, milliseconds: Sequence[float] | None
    ) -> None:
        """Take in a run.

        Args:
            dataset: its name.
            method: its name.
            curve: rows with ``epoch``, ``split``, ``elbo`` (nats per datum), ``seconds``.
            final: rows with ``split`` and ``elbo``, ``expected_log_likelihood``, ``kl`` (nats per datum).
            milliseconds: of a training step, one number per round of timing; None if it was not timed.
        """
        key = (dataset, method)
        self._curves[key], self._final[key], self._milliseconds[key] = curve, final, milliseconds

    def curves(self) -> pd.DataFrame:
        """A row per data set, method and evaluated epoch: mean over splits and its standard error."""
        parts = []
        for dataset, method in self._curves:
            axes, elbo = self._axes(dataset, method)
            columns = {"dataset": dataset, "method": method, "epoch": axes["epochs"], "seconds": axes["seconds"]}
            error = summary.standard_error(elbo, axis=1)
            parts.append(pd.DataFrame({**columns, "elbo": elbo.mean(1), "elbo_error": error}))
        return pd.concat(parts, ignore_index=True)

    def final(self) -> pd.DataFrame:
        """A row per data set, method and split."""
        parts = []
        for (dataset, method), rows in self._final.items():
            part = rows.copy()
            part.insert(0, "dataset", dataset)
            part.insert(1, "method", method)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def paired(self, pairs: Sequence[tuple[str, str]] = _PAIRS) -> pd.DataFrame:
        """A row per data set and pair (method, reference) of which both were run: difference of the final ELBO."""
        rows = []
        for dataset in self.datasets():
            for method, reference in pairs:
                if (dataset, method) in self._final and (dataset, reference) in self._final:
                    mine, other = (self._final[dataset, name].elbo.to_numpy() for name in (method, reference))
                    difference, error, verdict = paired_difference(mine, other)
                    rows.append((dataset, method, reference, len(mine), difference, error, verdict))
        return pd.DataFrame(
            rows, columns=["dataset", "method", "reference", "splits", "difference", "error", "verdict"]
        )

    def speed(self) -> pd.DataFrame:
        """A row per data set and method: cost of a step, epochs and seconds until near its own and bbb's final ELBO.

        ``own_*`` and ``bbb_*`` are read off the mean over splits, NaN if never; ``sooner_*`` counts the splits in which
        the method is near bbb's final ELBO of that split before bbb itself is.
        """
        rows = []
        for (dataset, method), final in self._final.items():
            axes, elbo = self._axes(dataset, method)
            times = self._milliseconds[dataset, method]
            low, middle, high = np.quantile(times, [0.25, 0.5, 0.75]) if times else [np.nan] * 3
            row: dict[str, Any] = {"dataset": dataset, "method": method, "splits": elbo.shape[1]}
            row |= {"milliseconds": middle, "milliseconds_low": low, "milliseconds_high": high}
            row |= {key: axis[-1] for key, axis in axes.items()}
            targets = {"own": final.elbo.to_numpy()}
            if (dataset, BASELINE) in self._final:
                targets["bbb"] = self._final[dataset, BASELINE].elbo.to_numpy()
            for whose, target in targets.items():
                for key, axis in axes.items():
                    row[f"{whose}_{key}"] = float(first_within(axis, elbo.mean(1), target.mean(), TOLERANCE))
            if "bbb" in targets:
                base_axes, base_elbo = self._axes(dataset, BASELINE)
                for key, axis in axes.items():
                    mine = first_within(axis, elbo, targets["bbb"], TOLERANCE)
                    theirs = first_within(base_axes[key], base_elbo, targets["bbb"], TOLERANCE)
                    row[f"sooner_{key}"] = int((mine < np.nan_to_num(theirs, nan=np.inf)).sum())
            rows.append(row)
        return pd.DataFrame(rows)

    def datasets(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(dataset for dataset, _ in self._final))

    def clock(self) -> str:
        """What the seconds are, in words."""
        timed = all(self._milliseconds.values())
        return "steps × median time of a step" if timed else "as measured in training"

    def _axes(self, dataset: str, method: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The evaluated epochs (T,) and the seconds until then (T,); and the ELBO (T, R)."""
        rows = self._curves[dataset, method]
        elbo = rows.pivot(index="epoch", columns="split", values="elbo")
        axes = {"epochs": elbo.index.to_numpy(), "seconds": rows.groupby("epoch").seconds.first().to_numpy()}
        return axes, elbo.to_numpy()
