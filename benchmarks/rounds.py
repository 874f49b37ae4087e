"""Interleaved timing: in every round every contender has a turn, so that what slows the machine slows all of them.

A turn is a whole number of a contender's cycles, as what it does every so many steps (statistics, factorizations)
belongs to what a step costs. Times are seconds per step; a ratio is taken within a round, between neighbours in time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_WARMUP_STEPS = 3


class TooSlowError(RuntimeError):
    """A contender's warm-up took longer than it may."""


class Clock:
    """Measures work on a device; on CUDA by events, which are on the device's own time.

    Args:
        device: on which the work runs.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds from the start of ``work`` until all that it started is done."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Args:
        rounds: of all contenders.
        turn_seconds: that a turn lasts at least.
        patience: seconds; no contender is warmed up for longer, and once a section took that long no further round
            begins.
    """

    rounds: int
    turn_seconds: float
    patience: float


@dataclass(frozen=True)
class Turn:
    """What a contender does in each round: ``steps`` calls of ``step``."""

    step: Callable[[], object]
    steps: int

    def __call__(self) -> None:
        for _ in range(self.steps):
            self.step()


def steps_per_turn(cycle: int, seconds_per_step: float, turn_seconds: float) -> int:
    """The fewest whole cycles that last ``turn_seconds``, in steps."""
    return cycle * max(math.ceil(turn_seconds / (cycle * seconds_per_step)), 1)


def warmed_up(step: Callable[[], object], cycle: int, pace: Pace, clock: Clock, *, settling: int = 0) -> Turn:
    """The turn of a contender, after a cycle that does not count and by which its speed is judged.

    Args:
        step: of its training.
        cycle: steps after which what it does repeats itself.
        pace: of the rounds.
        clock: of the device.
        settling: steps before that.

    Raises:
        TooSlowError: if that took longer than the pace's patience.
    """
    first = max(settling, 1)  # allocates what stays
    steps = max(cycle, _WARMUP_STEPS)
    spent: list[float] = []
    for done in range(first + steps):
        spent.append(clock.seconds(step))
        if sum(spent) > pace.patience:
            raise TooSlowError(f"{done + 1} of {first + steps} steps of warm-up took {sum(spent):.0f} s")
    return Turn(step, steps_per_turn(cycle, sum(spent[first:]) / steps, pace.turn_seconds))


def interleaved(
    turns: Mapping[str, Turn],
    pace: Pace,
    clock: Clock,
    seed: int = 0,
    *,
    before_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per step of every contender in every round; each round has its own order of them.

    Args:
        turns: by contender.
        pace: its rounds, fewer where they would last longer than its patience, but at least one.
        clock: of the device.
        seed: of the orders.
        before_round: is called before every round.
    """
    order, times = random.Random(seed), {name: list[float]() for name in turns}
    started = time.perf_counter()
    for index in range(pace.rounds):
        if index and time.perf_counter() - started > pace.patience:
            break
        before_round()
        for name in order.sample(list(turns), len(turns)):
            times[name].append(clock.seconds(turns[name]) / turns[name].steps)
    return times


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and lower and upper quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round."""
    return [mine / theirs for mine, theirs in zip(times, reference, strict=True)]
