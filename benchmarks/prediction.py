"""Prediction with many posterior samples, against a loop over sampled networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import noisynat
from benchmarks.networks import Network
from benchmarks.rounds import Clock, Pace, Turn, interleaved, ratios, spread

STRUCTURES = ("diagonal", "kronecker")
PRECISIONS = {"predict": None, "predict, bfloat16": torch.bfloat16}


def looped(bnn: noisynat.VariationalNetwork, x: Tensor, num_samples: int) -> Tensor:
    """Outputs (S, N, K) of S networks sampled one after the other, what one would write without ``predict``."""
    bnn.eval()
    outputs = []
    with torch.no_grad():
        for _ in range(num_samples):
            with bnn.sampled_weights():
                outputs.append(bnn(x))
    return torch.stack(outputs)


def compare(
    network: Network, points: int, num_samples: int, pace: Pace, clock: Clock, structures: tuple[str, ...] = STRUCTURES
) -> list[dict[str, Any]]:
    """Seconds of ``predict`` and of the loop, by posterior and precision, and how many times faster ``predict`` is.

    Args:
        network: which is not trained: draws cost the same.
        points: N.
        num_samples: S.
        pace: of the rounds.
        clock: of the device.
        structures: of the posteriors.
    """
    x = torch.randn(points, *network.input_shape, generator=torch.Generator().manual_seed(0)).to(clock.device)
    rows = []
    for structure in structures:
        bnn = noisynat.VariationalNetwork(
            network.make().to(clock.device),
            network.likelihood(),
            posterior=structure,  # type: ignore[arg-type]
            num_data=network.num_data,
            seed=0,
        )
        turns = {
            **{
                name: Turn(lambda bnn=bnn, dtype=dtype: bnn.predict(x, num_samples, precision=dtype), 1)  # type: ignore[misc]
                for name, dtype in PRECISIONS.items()
            },
            "loop": Turn(lambda bnn=bnn: looped(bnn, x, num_samples), 1),  # type: ignore[misc]
        }
        for turn in turns.values():
            turn()
        times = interleaved(turns, pace, clock)
        rows += [
            {
                "network_title": network.title,
                "structure": structure,
                "way": name,
                "points": points,
                "samples": num_samples,
                "predict": spread(times[name]),
                "loop": spread(times["loop"]),
                "faster": spread(ratios(times["loop"], times[name])),
            }
            for name in PRECISIONS
        ]
    return rows
