"""What a step costs once a batch is learned by heart.

Its gradients then shrink to nothing, and statistics and averages of them to denormal numbers, with which many
processors compute many times more slowly. Whoever trains to the end should not have to wait longer for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.contenders import Contender
from benchmarks.measure import Measured, entrants
from benchmarks.networks import Network, digits
from benchmarks.rounds import Clock, Pace, interleaved, spread

NAMES = (
    "adam", "sgd", "bbb-local", "nng-ffg-local", "nng-mvg-local", "nng-kron-local", "nng-ekfac-local", "kfac",
    "peer-ivon", "peer-asdl", "peer-curvlinops", "peer-singd",
)  # fmt: skip


def one_batch(hidden: Sequence[int]) -> Network:
    """A network with only 32 examples to learn, and learning rates at which it does."""
    return replace(digits("memorized", hidden, batch=32), num_batches=1, learning_rate=0.01)


def compare(network: Network, contenders: Sequence[Contender], steps: int, pace: Pace, clock: Clock) -> Measured:
    """Seconds per step at the beginning of training and ``steps`` later.

    Args:
        network: from :func:`one_batch`.
        contenders: that train it.
        steps: between the two measurements.
        pace: of both.
        clock: of the device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' packages
        ready, skipped = entrants(network, contenders, pace, clock)
        turns = {name: entrant.turn for name, entrant in ready.items()}
        fresh = interleaved(turns, pace, clock)
        for turn in turns.values():
            for _ in range(steps):
                turn.step()
        learned = interleaved(turns, pace, clock)
    rows = [
        {
            "network_title": network.title,
            "contender": name,
            "title": entrant.contender.title,
            "steps": steps,
            "fresh": spread(fresh[name]),
            "learned": spread(learned[name]),
            "slower": spread(learned[name])[0] / spread(fresh[name])[0],
        }
        for name, entrant in ready.items()
    ]
    return Measured(rows, skipped)
