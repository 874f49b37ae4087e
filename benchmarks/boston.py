"""Twenty Boston splits by noisy K-FAC, in the time of how many trainings of one network by Adam?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

import noisynat
import uci_data
from benchmarks.networks import dense
from benchmarks.rounds import Clock, Pace, Turn, interleaved, ratios, spread
from experiments.methods import METHODS
from experiments.protocol import Splits, load_splits
from experiments.runs import Configuration, train

_COMPILED_BY = 60  # epochs: their last batches have come often enough
METHOD = replace(METHODS["nng-kron"], options={})  # with the optimizer's own intervals


def train_adam(splits: Splits, epochs: int, batch_size: int) -> None:
    """One network on the first split, by Adam on the squared error."""
    net = dense((splits.features, 50, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    batches = noisynat.TensorBatches(splits.x_train[0], splits.y_train[0], batch_size, seed=0)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            functional.mse_loss(net(x), y).backward()
            optimizer.step()


def compare(epochs: int, pace: Pace) -> list[dict[str, Any]]:
    """Seconds of all for ``epochs`` epochs, on the CPU, as experiments train; and ratios to Adam.

    Steps are compiled before, which a first training of the kind takes some seconds more for.

    Raises:
        uci_data.DatasetNotFoundError: if the data are not there.
    """
    splits = load_splits(uci_data.load("boston"))
    config = replace(Configuration.for_size("boston", splits.num_train), epochs=epochs)
    ways = {METHOD.name: False, f"{METHOD.name}, compiled": True}
    turns = {
        name: Turn(lambda compiled=compiled: train(METHOD, splits, config, compile=compiled), 1)  # type: ignore[misc]
        for name, compiled in ways.items()
    }
    turns["adam"] = Turn(lambda: train_adam(splits, epochs, config.batch_size), 1)
    for compiled in ways.values():
        train(METHOD, splits, replace(config, epochs=min(epochs, _COMPILED_BY)), compile=compiled)
    train_adam(splits, 1, config.batch_size)
    times = interleaved(turns, pace, Clock())
    return [
        {
            "method": name,
            "splits": splits.count,
            "epochs": epochs,
            "batch": config.batch_size,
            "seconds": spread(times[name]),
            "adam_seconds": spread(times["adam"]),
            "trainings": spread(ratios(times[name], times["adam"])),
        }
        for name in ways
    ]
