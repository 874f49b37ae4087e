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
from benchmarks.rounds import Clock, Pace, interleaved, ratios, spread

NAMES = (
    "adam", "sgd", "bbb-local", "nng-ffg", "nng-mvg", "nng-kron", "nng-ekfac", "kfac", "peer-ivon", "peer-asdl",
    "peer-curvlinops", "peer-singd",
)  # fmt: skip


def one_batch(hidden: Sequence[int]) -> Network:
    """A network with only 32 examples to learn, and learning rates at which it does."""
    return replace(digits("memorized", hidden, batch=32), num_batches=1, learning_rate=0.01)


def compare(network: Network, contenders: Sequence[Contender], steps: int, pace: Pace, clock: Clock) -> Measured:
    """Seconds per step of networks that have learned the batch, and of others that do not learn, in the same rounds.

    Args:
        network: from :func:`one_batch`.
        contenders: that train it.
        steps: of learning.
        pace: of the rounds.
        clock: of the device.
    """
    other = replace(network, num_batches=Network.num_batches, learning_rate=Network.learning_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' packages
        learning, skipped = entrants(network, contenders, pace, clock)
        fresh, _ = entrants(other, [entrant.contender for entrant in learning.values()], pace, clock)
        for entrant in learning.values():
            for _ in range(steps):
                entrant.turn.step()
        turns = {f"{name}, learned": entrant.turn for name, entrant in learning.items() if name in fresh}
        turns |= {f"{name}, fresh": entrant.turn for name, entrant in fresh.items()}
        times = interleaved(turns, pace, clock)
    rows = [
        {
            "network_title": network.title,
            "contender": name,
            "title": entrant.contender.title,
            "steps": steps,
            "fresh": spread(times[f"{name}, fresh"]),
            "learned": spread(times[f"{name}, learned"]),
            "slower": spread(ratios(times[f"{name}, learned"], times[f"{name}, fresh"])),
        }
        for name, entrant in fresh.items()
    ]
    return Measured(rows, skipped)
