"""Selection of settings inside each split: train on 80% of the training part, predict the other 20%, keep the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from experiments.peer_methods.base import Budget, Prediction
from experiments.protocol import Splits, inner_splits

_LOG = logging.getLogger(__name__)

Run = Callable[..., Iterator[Prediction]]


def take(splits: Splits, indices: Sequence[int]) -> Splits:
    """Only the given splits."""
    index = torch.as_tensor(indices)
    names = ("x_train", "y_train", "x_test", "y_test", "y_mean", "y_scale")
    return Splits(splits.name, **{name: getattr(splits, name)[index] for name in names})


def select(
    run: Run,
    splits: Splits,
    budget: Budget,
    candidates: Sequence[Mapping[str, Any]],
    rehearsal: Mapping[str, Any],
    fraction: float = 0.2,
) -> Iterator[Prediction]:
    """Predictions of every split with the candidate that has its highest held-out log-likelihood.

    Args:
        run: ``run(splits, budget, **settings)`` yields a prediction per split.
        splits: R of them.
        budget: of every training, those for the selection included.
        candidates: settings to choose from.
        rehearsal: further settings for the selection only, to make it cheaper.
        fraction: of the training part that is held out.
    """
    inner = inner_splits(splits, fraction, budget.seed)
    scores = torch.full((len(candidates), splits.count), -torch.inf, dtype=torch.float64)
    seconds = torch.zeros(splits.count, dtype=torch.float64)
    for c, candidate in enumerate(candidates):
        for r, prediction in enumerate(run(inner, budget, **{**candidate, **rehearsal})):
            scores[c, r] = prediction.mixture.log_prob(inner.y_test[r, :, 0].double()).mean()
            seconds[r] += prediction.seconds
        _LOG.info("%s: held-out log-likelihood %.3f (standardized)", _text(candidate), float(scores[c].mean()))
    best = scores.nan_to_num(nan=-torch.inf).argmax(0)
    found: dict[int, Prediction] = {}
    for c, candidate in enumerate(candidates):
        indices = (best == c).nonzero()[:, 0].tolist()
        if indices:
            for r, prediction in zip(indices, run(take(splits, indices), budget, **candidate), strict=True):
                found[r] = replace(
                    prediction,
                    seconds=prediction.seconds + float(seconds[r]),
                    chosen={**candidate, **prediction.chosen},
                )
    for r in range(splits.count):
        yield found[r]


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())
