"""Step cost of contenders on one network, in interleaved rounds, with ratios to the references and floors."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import floor
from benchmarks.contenders import Contender, Trainer
from benchmarks.floor import Rates
from benchmarks.machine import handover_seconds
from benchmarks.memory import OutOfMemory, peak_bytes
from benchmarks.networks import Network
from benchmarks.rounds import Clock, Pace, TooSlowError, Turn, interleaved, ratios, spread, warmed_up

REFERENCES = ("adam", "sgd")


@dataclass
class Measured:
    """What a section found.

    Args:
        rows: a dictionary per network and contender.
        skipped: those that were not measured: network, contender and reason.
        handover: before every round, how long threads take to work together, in seconds; empty with a single one.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    handover: list[float] = field(default_factory=list)

    def extend(self, other: Measured) -> None:
        """Take in what another measurement found."""
        self.rows += other.rows
        self.skipped += other.skipped
        self.handover += other.handover


@dataclass(frozen=True)
class Entrant:
    """A contender that is warmed up and waits for its turn.

    Args:
        contender: which.
        trainer: its network and optimizer.
        turn: what it does in a round.
        peak_bytes: of its training, where that was measured.
    """

    contender: Contender
    trainer: Trainer
    turn: Turn
    peak_bytes: int | None


def entrants(
    network: Network, contenders: Sequence[Contender], pace: Pace, clock: Clock, *, memory: bool = False
) -> tuple[dict[str, Entrant], list[dict[str, str]]]:
    """The contenders that can be measured here, by name, and those that cannot, with the reason.

    Args:
        network: to be trained by each.
        contenders: in the order in which they are reported.
        pace: of the rounds.
        clock: of the device.
        memory: whether to measure the peak of each, in a process of its own.
    """
    ready: dict[str, Entrant] = {}
    skipped: list[dict[str, str]] = []
    for contender in contenders:
        try:
            if (reason := contender.missing(network)) is not None:
                raise ImportError(reason)
            peak = peak_bytes(contender.name, network, clock.device) if memory else None
            trainer = contender.build(network, clock.device)
            step = stepper(trainer, contender, network, clock)
            turn = warmed_up(step, trainer.cycle, pace, clock, settling=trainer.settling)
            ready[contender.name] = Entrant(contender, trainer, turn, peak)
        except (ImportError, *OutOfMemory, TooSlowError) as error:
            skipped.append(_skip(network, contender, str(error)))
        except Exception as error:  # others' code may fail in any way, which must not end a run of an hour
            if contender.kind != "peer":
                raise
            skipped.append(_skip(network, contender, f"{type(error).__name__}: {error}"))
    return ready, skipped


def measure(
    network: Network,
    contenders: Sequence[Contender],
    pace: Pace,
    clock: Clock,
    rates: Rates,
    *,
    size: int | None = None,
    memory: bool = False,
    report: Callable[[str], None] = print,
) -> Measured:
    """Time per step of all ``contenders`` that can be measured here, in one process and the same rounds.

    Args:
        network: to be trained by each.
        contenders: the references among them.
        pace: of the rounds.
        clock: of the device.
        rates: of the machine, for the floors.
        size: the network's place in a sweep.
        memory: whether to measure the peak of each, in a process of its own.
        report: is told what happens.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' packages
        ready, skipped = entrants(network, contenders, pace, clock, memory=memory)
        report(f"  {network.title}: {len(ready)} contenders")
        handover: list[float | None] = []
        times = interleaved(
            {name: entrant.turn for name, entrant in ready.items()},
            pace,
            clock,
            before_round=lambda: handover.append(handover_seconds()),
        )
    rows = [_row(entrant, network, times, rates) | {"size": size} for entrant in ready.values()]
    return Measured(rows, skipped, [seconds for seconds in handover if seconds is not None])


def stepper(trainer: Trainer, contender: Contender, network: Network, clock: Clock) -> Callable[[], object]:
    """A step of ``trainer`` on the next of the network's batches, from the first on again after the last."""
    replicas = network.replicas if contender.kind == "noisynat" else None
    batches = itertools.cycle(network.batches(clock.device, replicas))
    return lambda: trainer.step(*next(batches))


def _row(entrant: Entrant, network: Network, times: Mapping[str, Sequence[float]], rates: Rates) -> dict[str, Any]:
    contender, trainer = entrant.contender, entrant.trainer
    mine = times[contender.name]
    row: dict[str, Any] = {
        "network": network.name,
        "network_title": network.title,
        "contender": contender.name,
        "title": contender.title,
        "kind": contender.kind,
        "networks": trainer.networks,
        "cycle": trainer.cycle,
        "steps_per_round": entrant.turn.steps,
        "rounds": list(mine),
        "seconds": spread(mine),
        "peak_bytes": entrant.peak_bytes,
    }
    for reference in REFERENCES:
        row[f"to_{reference}"] = spread(ratios(mine, times[reference])) if reference in times else None
    row["floor"] = None
    if trainer.plan is not None:
        row["floor"] = sum(floor.step_floor(network.layer_shapes(), network.batch, trainer.plan, rates).values())
    return row


def _skip(network: Network, contender: Contender, reason: str) -> dict[str, str]:
    return {"network": network.name, "contender": contender.name, "reason": reason.splitlines()[0] if reason else "?"}
