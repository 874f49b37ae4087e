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
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def extend(self, other: Measured) -> None:
        """Take in what another measurement found."""
        self.rows += other.rows
        self.skipped += other.skipped


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
    found = Measured()
    trainers: dict[str, Trainer] = {}
    turns: dict[str, Turn] = {}
    peaks: dict[str, int | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers' packages
        for contender in contenders:
            try:
                if (reason := contender.missing()) is not None:
                    raise ImportError(reason)
                if memory:
                    peaks[contender.name] = peak_bytes(contender.name, network, clock.device)
                trainer = contender.build(network, clock.device)
                step = stepper(trainer, contender, network, clock)
                turns[contender.name] = warmed_up(step, trainer.cycle, pace, clock)
                trainers[contender.name] = trainer
            except (ImportError, *OutOfMemory, TooSlowError) as error:
                found.skipped.append(_skip(network, contender, str(error)))
            except Exception as error:  # others' code may fail in any way, which must not end a run of an hour
                if contender.kind != "peer":
                    raise
                found.skipped.append(_skip(network, contender, f"{type(error).__name__}: {error}"))
        report(f"  {network.title}: {len(turns)} contenders")
        times = interleaved(turns, pace, clock)
    for contender in contenders:
        if contender.name in times:
            row = _row(contender, trainers[contender.name], network, times, rates)
            row |= {"size": size, "peak_bytes": peaks.get(contender.name)}
            row |= {"steps_per_round": turns[contender.name].steps}
            found.rows.append(row)
    return found


def stepper(trainer: Trainer, contender: Contender, network: Network, clock: Clock) -> Callable[[], None]:
    """A step of ``trainer`` on the next of the network's batches, from the first on again after the last."""
    replicas = network.replicas if contender.kind == "noisynat" else None
    batches = itertools.cycle(network.batches(clock.device, replicas))
    return lambda: trainer.step(*next(batches))


def _row(
    contender: Contender, trainer: Trainer, network: Network, times: Mapping[str, Sequence[float]], rates: Rates
) -> dict[str, Any]:
    mine = times[contender.name]
    row: dict[str, Any] = {
        "network": network.name,
        "network_title": network.title,
        "contender": contender.name,
        "title": contender.title,
        "kind": contender.kind,
        "networks": trainer.networks,
        "cycle": trainer.cycle,
        "rounds": list(mine),
        "seconds": spread(mine),
    }
    for reference in REFERENCES:
        row[f"to_{reference}"] = spread(ratios(mine, times[reference])) if reference in times else None
    row["floor"] = None
    if trainer.plan is not None:
        row["floor"] = sum(floor.step_floor(network.layer_shapes(), network.batch, trainer.plan, rates).values())
    return row


def _skip(network: Network, contender: Contender, reason: str) -> dict[str, str]:
    return {"network": network.name, "contender": contender.name, "reason": reason.splitlines()[0] if reason else "?"}
