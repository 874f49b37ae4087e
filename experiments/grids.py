"""Grids of settings, trained on every split: what a choice inside the training part can be made from.

Candidates that differ in their prior alone are one program, with a replica per candidate and split; others are trained
one after the other. Every candidate is trained twice: on the whole training part, to predict, and on nine tenths of it,
to be judged on the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.methods import METHODS, RECIPES, Method
from experiments.protocol import Splits, inner_splits, rescaled, side_by_side
from experiments.relevance import input_relevance
from experiments.runs import Configuration, run_one

BASE = replace(RECIPES["mix-kron-het"], name="base", title="Kronecker, varying noise", members=1)
"""What all candidates are, but for what their grid is about."""


@dataclass(frozen=True)
class Candidate:
    """One setting.

    Args:
        label: in tables.
        method: how it is trained.
        variances: of the prior, in the first and in the last layer.
        relevance: to which power inputs are scaled by their relevance, see :func:`input_relevance`; 0 for not.
    """

    label: str
    method: Method = BASE
    variances: tuple[float, float] = (1.0, 1.0)
    relevance: float = 0.0


@dataclass(frozen=True)
class Grid:
    """What is to be chosen from; the first candidate is the default.

    Args:
        name: on the command line.
        title: in tables.
        candidates: those of one method beside each other.
        bounds: whether the candidates' ELBOs bound evidences that may be compared.
    """

    name: str
    title: str
    candidates: tuple[Candidate, ...]
    bounds: bool = True


def _with(label: str, **changes: Any) -> Candidate:
    return Candidate(label, replace(BASE, name=label.replace(" ", "-"), **changes))


_GRIDS = (
    Grid("restarts", "the same three times", tuple(Candidate(f"start {i}") for i in (1, 2, 3))),
    Grid("prior", "prior variance", tuple(Candidate(f"{v:g}", variances=(v, v)) for v in (1, 0.1, 0.3, 3, 10))),
    Grid(
        "layers", "prior variances of first and last layer",
        tuple(
            Candidate(f"{first:g}, {last:g}", variances=(first, last))
            for first, last in ((1, 1), (0.25, 4), (4, 0.25), (1, 4), (4, 1))
        ),
    ),
    Grid(
        "relevance", "inputs scaled by relevance to the power",
        tuple(Candidate(f"{power:g}", relevance=power) for power in (0, 0.5, 1)),
    ),
    Grid(
        "noise", "prior of the noise precision",
        (
            Candidate("Gamma(1, 0.001)"),
            _with("Gamma(1, 0.1)", configuration={"a0": 1.0, "b0": 0.1}),
            _with("Gamma(6, 6)", configuration={"a0": 6.0, "b0": 6.0}),
        ),
    ),
    Grid(
        "warm-up", "KL warm-up",
        (
            Candidate("half, from 0.1"),
            _with("none", kl_warmup=0.0, kl_start=None),
            _with("all, from 0.1", kl_warmup=1.0),
            _with("all, from 0.03", kl_warmup=1.0, kl_start=0.03),
        ),
    ),
    Grid(
        "lambda", "weight of the KL",
        (
            Candidate("1"),
            _with("0.5", configuration={"kl_weight": 0.5}),
            _with("0.25", configuration={"kl_weight": 0.25}),
        ),
        bounds=False,
    ),
    Grid(
        "structure", "structure of the posterior",
        (
            Candidate("Kronecker"),
            _with("factored", structure="matrix_normal"),
            Candidate("dense finish", replace(RECIPES["mix-full-het"], name="dense-finish", members=1)),
            Candidate("dense half", replace(METHODS["nng-full"], name="dense-half", noise_warmup=BASE.noise_warmup)),
        ),
    ),
)  # fmt: skip
GRIDS = {grid.name: grid for grid in _GRIDS}


@dataclass(frozen=True)
class Outcome:
    """What K trained candidates say of all R splits.

    Args:
        test: ``log_prob``, ``mean`` and ``cdf`` of the test points, each (K, R, n), standardized units.
        held_out: log densities of the held-out tenth of the training part, (K, R, m).
        elbo: nats per datum, (K, R).
    """

    test: dict[str, np.ndarray]
    held_out: np.ndarray
    elbo: np.ndarray


def run_grid(
    grid: Grid, splits: Splits, config: Configuration, folder: Path, module: str, progress: bool = True
) -> Outcome:
    """Train what is not trained yet, and collect what all candidates say.

    Args:
        grid: the candidates.
        splits: the data.
        config: of all runs; those on nine tenths have half the epochs.
        folder: with a folder per program, and within it one for the nine tenths.
        module: whose command this is, for the record.
        progress: whether to show that of training.
    """
    inner, short = inner_splits(splits), replace(config, epochs=-(-config.epochs // 2))
    whole = _run_all(grid.candidates, splits, config, folder, module, progress)
    parts = _run_all(grid.candidates, inner, short, folder / "inner", module, progress)
    return Outcome(whole[0], parts[0]["log_prob"], whole[1])


def _run_all(
    candidates: Sequence[Candidate], splits: Splits, config: Configuration, folder: Path, module: str, progress: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Points' figures, each (K, R, n), and ELBOs (K, R), of the candidates in their order."""
    points: list[dict[str, np.ndarray]] = []
    bounds: list[np.ndarray] = []
    for _, group in groupby(candidates, key=lambda candidate: candidate.method.name):
        same = list(group)
        where = folder / same[0].method.name
        _run_batch(same, splits, config, where, module, progress)
        with np.load(where / "pointwise.npz") as arrays:
            points.append({key: values.reshape(len(same), splits.count, -1) for key, values in arrays.items()})
        elbo = pd.read_csv(where / "splits.csv").elbo_per_datum.to_numpy()
        bounds.append(elbo.reshape(len(same), splits.count))
    return {key: np.concatenate([p[key] for p in points]) for key in points[0]}, np.concatenate(bounds)


def _run_batch(
    candidates: Sequence[Candidate], splits: Splits, config: Configuration, folder: Path, module: str, progress: bool
) -> None:
    """Train candidates of one method as one program: replica k R + r is candidate k on split r."""
    first, last = (
        tuple(candidate.variances[i] for candidate in candidates for _ in range(splits.count)) for i in (0, 1)
    )
    copies = [splits] * len(candidates)
    if any(candidate.relevance for candidate in candidates):
        relevance = input_relevance(splits, config, folder)
        copies = [rescaled(splits, relevance**candidate.relevance) for candidate in candidates]
    config = replace(config, prior_variance=first, last_prior_variance=last)
    run_one(candidates[0].method, side_by_side(copies), config, folder, progress, module)
