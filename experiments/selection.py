"""Selection of methods inside every training split: a stacked mixture, its weights fitted on a held-out part.

The test parts take no part in it. Each candidate is trained twice: on nine tenths of every training part, to be judged
on the tenth left out, and on the whole, to predict. Written into a folder beside the candidates': ``splits.csv``,
``pointwise.npz`` and ``chosen.csv``, the weights of every split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import records
from experiments.methods import Method
from experiments.protocol import Splits, inner_splits
from experiments.runs import Configuration, figures_of, run_one
from experiments.stacking import mixed, stacking_weights

NAME = "selected"
_INNER = "inner"


def select(
    candidates: Sequence[Method],
    splits: Splits,
    config: Configuration,
    folder: Path,
    module: str,
    progress: bool = True,
) -> None:
    """Train the candidates where that is not done, weight them in every split, and write the mixture's figures.

    Args:
        candidates: methods that differ in what is to be chosen: structure, noise, prior, warm-up.
        splits: the data.
        config: of all runs.
        folder: of the data set, with a folder per method; the mixture's is ``selected``.
        module: whose command this is, for the record.
        progress: whether to show that of training.
    """
    for method in candidates:
        run_one(method, splits, config, folder / method.name, progress, module)
        rehearse(method, splits, config, folder, module, progress)
    combine(candidates, splits, folder)


def rehearse(
    method: Method, splits: Splits, config: Configuration, folder: Path, module: str, progress: bool = True
) -> bool:
    """Train ``method`` on nine tenths of every training part, where that is not done; whether there was work to do.

    Candidates are only compared there, so half the epochs do, and one network where several are to predict.
    """
    alone, short = replace(method, members=1), replace(config, epochs=-(-config.epochs // 2))
    return run_one(alone, inner_splits(splits), short, folder / method.name / _INNER, progress, module)


def combine(candidates: Sequence[Method], splits: Splits, folder: Path) -> None:
    """Weight the trained and rehearsed candidates in every split, and write the mixture's figures into ``folder``."""
    held_out = [_pointwise(folder / method.name / _INNER)["log_prob"] for method in candidates]
    weights = stacking_weights(np.stack(held_out, axis=-1))
    pointwise = mixed([_pointwise(folder / method.name) for method in candidates], weights)
    seconds = [_seconds(folder / method.name / part) for method in candidates for part in ("", _INNER)]
    rows = pd.DataFrame({"dataset": splits.name, "method": NAME, "split": np.arange(splits.count)})
    rows = rows.assign(**figures_of(pointwise, splits), elbo_per_datum=np.nan, training_seconds=sum(seconds))
    chosen = pd.DataFrame(weights, columns=[method.name for method in candidates])
    chosen.insert(0, "split", np.arange(splits.count))
    records.write_table(folder / NAME / "splits.csv", rows)
    records.write_table(folder / NAME / "chosen.csv", chosen)
    records.write_arrays(folder / NAME / "pointwise.npz", pointwise)


def _pointwise(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "pointwise.npz") as arrays:
        return dict(arrays)


def _seconds(folder: Path) -> float:
    return float(pd.read_csv(folder / "splits.csv").training_seconds.iloc[0])
