"""Where a step's time goes: stage by stage, each beside its floor, and by torch operator.

Stages are timed around the library's methods from outside. What a method calls for another stage counts there, so the
stages add up to the step. On CUDA every boundary waits for the device, which makes the whole somewhat slower.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.profiler import profile

from benchmarks import floor
from benchmarks.contenders import Contender, Trainer
from benchmarks.floor import Rates
from benchmarks.measure import stepper
from benchmarks.networks import Network
from benchmarks.rounds import Clock
from noisynat.curvature import Curvature, fisher
from noisynat.network import VariationalNetwork
from noisynat.optim import NoisyNaturalGradient, moves, natural_gradient
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.natural import NaturalPosterior

NAMED_FROM = 0.05
"""The share of a step from which an operator is named."""
HOOKS: tuple[tuple[str, Any, str], ...] = (
    ("forward", VariationalNetwork, "loss"),
    ("noise", Posterior, "output_noise"),
    ("noise", Posterior, "draw_for_training"),
    ("backward", torch.Tensor, "backward"),
    ("statistics", fisher, "output_gradients"),
    ("statistics", fisher, "layer_gradients"),
    ("statistics", NaturalPosterior, "accumulate"),
    ("statistics", Curvature, "commit"),
    ("refresh", NaturalPosterior, "refresh"),
    ("precondition", NaturalPosterior, "precondition"),
    ("trust region", moves, "step_scale"),
    ("mean step", NaturalPosterior, "move"),
    ("mean step", NoisyNaturalGradient, "zero_grad"),
    ("mean step", natural_gradient, "move_means"),
    ("mean step", NoisyNaturalGradient, "step"),
)
"""Stage, and the method or function whose time belongs to it."""


class Stopwatch:
    """Splits time among stages; an inner stage interrupts the outer one.

    Args:
        now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = dict.fromkeys(floor.STAGES, 0.0)
        self._now = now
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time inside the block belongs to stage ``name``."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self._now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def watched(stopwatch: Stopwatch) -> Iterator[None]:
    """Inside the block, the library's methods tell ``stopwatch`` which stage they are."""
    with ExitStack() as stack:
        for stage, owner, name in HOOKS:
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), stage, stopwatch)))
        yield


def _timed(method: Callable[..., Any], stage: str, stopwatch: Stopwatch) -> Callable[..., Any]:
    @functools.wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with stopwatch.stage(stage):
            return method(*args, **kwargs)

    return timed


def profiled(network: Network, contender: Contender, cycles: int, clock: Clock, rates: Rates) -> dict[str, Any]:
    """Seconds per step by stage, with floors, and the operators that take most, over whole cycles after a first one.

    Args:
        network: to be trained.
        contender: one of our natural-gradient optimizers.
        cycles: to be timed.
        clock: of the device.
        rates: of the machine.
    """
    trainer = contender.build(network, clock.device)
    step = stepper(trainer, contender, network, clock)
    steps = cycles * trainer.cycle
    for _ in range(trainer.settling + trainer.cycle):
        step()
    whole = clock.seconds(functools.partial(_repeat, step, steps)) / steps
    stopwatch = Stopwatch(functools.partial(_now, clock.device))
    with watched(stopwatch):
        _repeat(step, steps)
    floors = floor.step_floor(network.layer_shapes(), network.batch, _plan(trainer), rates)
    watched_step = sum(stopwatch.seconds.values()) / steps
    return {
        "network": network.name,
        "network_title": network.title,
        "contender": contender.name,
        "title": contender.title,
        "steps": steps,
        "seconds": whole,
        "watched_seconds": watched_step,
        "stages": [
            {"stage": stage, "seconds": total / steps, "share": total / steps / watched_step, "floor": floors[stage]}
            for stage, total in stopwatch.seconds.items()
        ],
        "operators": _operators(step, trainer.cycle, clock.device),
    }


def _plan(trainer: Trainer) -> floor.Plan:
    assert trainer.plan is not None
    return trainer.plan


def _repeat(step: Callable[[], object], steps: int) -> None:
    for _ in range(steps):
        step()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _operators(step: Callable[[], object], steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Those that take at least :data:`NAMED_FROM` of all operators' own time, the longest first."""
    cuda = device.type == "cuda"
    with profile(use_device="cuda" if cuda else None, use_kineto=cuda) as record:
        _repeat(step, steps)
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {event.key: getattr(event, own) for event in record.key_averages()}
    total = sum(times.values())
    return [
        {"operator": name, "share": spent / total}
        for name, spent in sorted(times.items(), key=lambda item: -item[1])
        if spent >= NAMED_FROM * total
    ]
