"""What a peer yields for every split, and what all peers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.peer_methods.mixture import Mixture

_LARGE_SETS = ("protein", "year")


@dataclass(frozen=True)
class Budget:
    """What all peers share.

    Args:
        epochs: passes over the training part; the Gaussian process has a number of iterations of its own.
        batch_size: B.
        hidden: units of the one hidden layer.
        test_samples: of the weights for a prediction, where a peer draws any.
        seed: of initial weights, batches and noise.
    """

    epochs: int
    batch_size: int
    hidden: int
    test_samples: int = 500
    seed: int = 0

    @classmethod
    def for_size(cls, name: str, num_train: int) -> Budget:
        """About 8,000 steps of 32 examples, of 256 from 4,000 examples on: twice what our own methods have."""
        batch_size = 32 if num_train < 4000 else 256
        return cls(max(round(8000 * batch_size / num_train), 1), batch_size, 100 if name in _LARGE_SETS else 50)


@dataclass(frozen=True)
class Prediction:
    """Of one split's test part.

    Args:
        mixture: predictive distribution of the standardized targets.
        seconds: of training, tuning and selection included; an equal share where all splits were trained together.
        chosen: what was selected or learned inside the split, by name.
    """

    mixture: Mixture
    seconds: float
    chosen: Mapping[str, float | str] = field(default_factory=dict)
