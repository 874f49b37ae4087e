"""What a training step costs: every optimizer, posterior and noise mode, and methods of others, against Adam and SGD.

    python -m benchmarks.step_cost                 # all sections
    python -m benchmarks.step_cost mlp width --device cuda
    python -m benchmarks.step_cost --quick         # small sizes and few rounds, to see that it works

Contenders take turns in one process; a ratio compares a contender's turn with Adam's in the same round. Beside each
time stands its floor, the necessary work at the machine's measured rates. Written to the output folder:
``<section>.json`` for every section, ``report.md`` and figures of all sections that this code measured. A section that
was measured with the same settings and code is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import uci_data
from benchmarks import boston, figures, machine, measure, memorized, prediction, report, stages
from benchmarks.contenders import CONTENDERS, IN_SWEEPS, QUICK, Contender
from benchmarks.floor import Rates
from benchmarks.networks import NETWORKS, SWEEPS, digits
from benchmarks.rounds import Clock, Pace
from experiments import cli, records

_MODULE = "benchmarks.step_cost"
_PROFILED = ("nng-ffg", "nng-mvg", "nng-kron", "nng-ekfac")
_FULL = Pace(rounds=7, turn_seconds=0.5, patience=900.0)
_QUICK = Pace(rounds=2, turn_seconds=0.02, patience=8.0)


@dataclass(frozen=True)
class Run:
    """What the sections share.

    Args:
        quick: small sizes.
        pace: of the rounds.
        clock: of the device.
        rates: of the machine.
        contenders: the names to which to keep, None for each section's own.
    """

    quick: bool
    pace: Pace
    clock: Clock
    rates: Rates
    contenders: Sequence[str] | None

    def chosen(self, names: Sequence[str]) -> list[Contender]:
        """The contenders of a section: ``names``, or those of them that were asked for."""
        return [CONTENDERS[name] for name in names if self.contenders is None or name in self.contenders]


def _network(name: str, run: Run) -> dict[str, Any]:
    names = [*QUICK, *(name for name in CONTENDERS if CONTENDERS[name].kind == "peer")] if run.quick else CONTENDERS
    found = measure.measure(
        NETWORKS[name], run.chosen(list(names)), run.pace, run.clock, run.rates, memory=not run.quick
    )
    return asdict(found)


def _sweep(name: str, run: Run) -> dict[str, Any]:
    found = measure.Measured()
    sweep = SWEEPS[name]
    for size in sweep.quick_sizes if run.quick else sweep.sizes:
        found.extend(
            measure.measure(sweep.make(size), run.chosen(IN_SWEEPS), run.pace, run.clock, run.rates, size=size)
        )
    return asdict(found)


def _stages(_: str, run: Run) -> dict[str, Any]:
    network, cycles = (digits("small", (100, 100)), 1) if run.quick else (NETWORKS["mlp"], 4)
    rows = []
    for contender in run.chosen(_PROFILED):
        print(f"  {network.title}: {contender.name}")
        rows.append(stages.profiled(network, contender, cycles, run.clock, run.rates))
    return {"rows": rows, "skipped": []}


def _memorized(_: str, run: Run) -> dict[str, Any]:
    network, steps = (memorized.one_batch((30,)), 100) if run.quick else (memorized.one_batch((100, 100)), 10_000)
    return asdict(memorized.compare(network, run.chosen(memorized.NAMES), steps, run.pace, run.clock))


def _prediction(_: str, run: Run) -> dict[str, Any]:
    network, points, samples = (digits("small", (100, 100)), 200, 10) if run.quick else (NETWORKS["mlp"], 10_000, 100)
    return {"rows": prediction.compare(network, points, samples, run.pace, run.clock), "skipped": []}


def _boston(_: str, run: Run) -> dict[str, Any]:
    try:
        return {"rows": boston.compare(2 if run.quick else 400, run.pace), "skipped": []}
    except uci_data.DatasetNotFoundError as error:
        reason = str(error).splitlines()[0]
        return {"rows": [], "skipped": [{"network": "boston", "contender": boston.METHOD.name, "reason": reason}]}


SECTIONS: dict[str, Callable[[str, Run], dict[str, Any]]] = {
    **dict.fromkeys(NETWORKS, _network),
    **dict.fromkeys(SWEEPS, _sweep),
    "stages": _stages,
    "memorized": _memorized,
    "prediction": _prediction,
    "boston": _boston,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    sections: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(SECTIONS)}; default: all.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes, few rounds and contenders.")] = False,
    contenders: Annotated[str | None, typer.Option(help="Comma-separated, instead of all; keep adam and sgd.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead of 7, or 2 if quick.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/benchmarks"),
) -> None:
    """Measure, section by section, and report."""
    cli.started(threads)
    chosen = dict.fromkeys(sections or SECTIONS)
    cli.chosen(",".join(chosen), SECTIONS, "SECTIONS")
    only = None if contenders is None else [c.name for c in cli.chosen(contenders, CONTENDERS, "--contenders")]
    clock = Clock(_checked_device(device))
    pace = _QUICK if quick else _FULL
    pace = Pace(rounds or pace.rounds, pace.turn_seconds, pace.patience)
    provenance = machine.provenance(_MODULE, clock.device, sorted({c.distribution for c in CONTENDERS.values()}))
    settings = {
        "quick": quick,
        "pace": asdict(pace),
        "contenders": only,
        "device": device,
        **{key: provenance[key] for key in ("source", "machine", "threads", "packages")},
    }
    run: Run | None = None
    for name in chosen:
        path = output / f"{name}.json"
        done = records.read_json(path)
        if done is not None and done["settings"] == settings:
            print(f"{name}: done before")
            continue
        if run is None:
            run = Run(quick, pace, clock, machine.measured_rates(clock, side=512 if quick else 2048), only)
        print(f"{name}:")
        found = SECTIONS[name](name, run)
        for skip in found["skipped"]:
            print(f"  left out: {skip['contender']} on {skip['network']}: {skip['reason']}")
        records.write_json(path, {"settings": settings, "provenance": provenance, "rates": asdict(run.rates), **found})
    parts = report.collect(output, list(SECTIONS), provenance["source"])
    records.write_text(output / "report.md", report.markdown(parts))
    written = [output / "report.md", *figures.draw(parts, output)]
    print(f"written: {', '.join(map(str, written))}")


def _checked_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device here", param_hint="--device")
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"a device is cpu or cuda, got {name}", param_hint="--device")
    return torch.device(name)


if __name__ == "__main__":
    app()
