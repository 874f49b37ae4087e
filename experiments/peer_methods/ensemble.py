"""Deep ensembles (Lakshminarayanan et al. 2017): networks from several initial weights, averaged as a mixture.

The members are trained to the maximum a posteriori with Adam, all members of all splits at once. Their prior precision
(a weight decay) decides how far they overfit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.map_training import Noise, train_map
from experiments.peer_methods.mixture import Mixture
from experiments.protocol import Splits


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    noise: Noise = "learned",
    members: int = 5,
    prior_precision: float = 1.0,
    lr: float = 0.01,
) -> Iterator[Prediction]:
    """Predictions of ensembles with noise of one learned size per member, or of a size predicted per input.

    Args:
        splits: R of them.
        budget: of every member.
        noise: "learned" or "per_input".
        members: of an ensemble.
        prior_precision: of every weight and bias.
        lr: of Adam at the beginning.
    """
    started = time.perf_counter()
    net, log_std = train_map(
        splits.x_train.repeat(members, 1, 1),
        splits.y_train.repeat(members, 1, 1),
        budget.hidden,
        prior_precision,
        noise,
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        lr=lr,
        seed=budget.seed,
    )
    seconds = (time.perf_counter() - started) / splits.count
    with torch.no_grad():
        output = net(splits.x_test.repeat(members, 1, 1)).double()
    std = output[..., 1].exp() if noise == "per_input" else log_std[:, None].double().exp()
    mean, std = (value.reshape(members, splits.count, -1) for value in (output[..., 0], std))
    for r in range(splits.count):
        yield Prediction(Mixture(mean[:, r], std[:, r]), seconds)
