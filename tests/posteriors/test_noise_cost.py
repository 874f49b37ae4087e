"""What ``noise="auto"`` chooses by counting multiplications is the cheaper one by the clock, where it matters."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import noisynat

ROUNDS = 15
MODES = ("local", "separable")
TOLERATED = 1.3  # times the cheaper one's time that the chosen one may take: the count ignores all but multiplications


def training_pass(mode: str, posterior: str, size: int, batch: int) -> Callable[[], None]:
    """Forward and backward pass of a network whose second layer is (size, size + 1)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, size), nn.Tanh(), nn.Linear(size, size))
    bnn = noisynat.VariationalNetwork(
        net,
        noisynat.GaussianLikelihood(0.1),
        posterior=posterior,  # type: ignore[arg-type]
        num_data=1000,
        noise=mode,  # type: ignore[arg-type]
        seed=0,
    ).train()
    x, y = torch.randn(batch, 8), torch.randn(batch, size)
    return lambda: bnn.loss(x, y).backward()


def seconds(passes: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The fastest of several turns, which alternate."""
    best = dict.fromkeys(passes, float("inf"))
    for _ in range(ROUNDS):
        for mode, run in passes.items():
            started = time.perf_counter()
            run()
            best[mode] = min(best[mode], time.perf_counter() - started)
    return best


@pytest.mark.parametrize("posterior", ["matrix_normal", "kronecker"])
@pytest.mark.parametrize(("size", "batch"), [(20, 32), (60, 256), (120, 512), (240, 1024), (700, 256), (1000, 128)])
def test_the_choice_is_the_faster_one(posterior: str, size: int, batch: int) -> None:
    net = nn.Sequential(nn.Linear(8, size), nn.Tanh(), nn.Linear(size, size))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.1), posterior=posterior, num_data=1000)  # type: ignore[arg-type]
    chosen = bnn.posteriors[1].noise_mode_in(batch)
    assert chosen in MODES
    times = seconds({mode: training_pass(mode, posterior, size, batch) for mode in MODES})
    assert times[chosen] <= TOLERATED * min(times.values()), f"{chosen}: {times}"
