"""The sections' results as one Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.networks import NETWORKS, SWEEPS
from experiments import records, summary

_HEAD = """\
# What a step costs

Times are medians over interleaved rounds, per training step, everything that is done every so many steps included; in
brackets the quartiles. Ratios are taken round by round. A floor is the necessary work at the machine's measured rates
of matrix products and copies; × floor says how far a time is from it. Memory is the peak while training, above what
the loaded libraries take."""
Spread = Sequence[float]
Section = dict[str, Any]


def collect(output: Path, names: Sequence[str], source: str) -> dict[str, Section]:
    """What was measured so far by the code with digest ``source``, by section, in the order of ``names``."""
    found = {name: records.read_json(output / f"{name}.json") for name in names}
    return {name: part for name, part in found.items() if part is not None and part["settings"]["source"] == source}


def markdown(parts: Mapping[str, Section]) -> str:
    """The page."""
    lines = [_HEAD]
    for name, section in parts.items():
        rows = section["rows"]
        if rows:
            write = _network if name in NETWORKS else _sweep if name in SWEEPS else _OTHERS[name]
            lines += ["", *write(name, rows)]
        if handover := section.get("handover"):
            low, high = (1e6 * seconds for seconds in (min(handover), max(handover)))
            lines += ["", f"Until a second thread had taken over, {low:.1f} to {high:.1f} µs passed, by rounds."]
        if section["skipped"]:
            lines += ["", f"Left out of {name}:", ""]
            lines += [f"- {skip['contender']} ({skip['network']}): {skip['reason']}" for skip in section["skipped"]]
    lines += ["", "## Where and how"]
    measured: dict[tuple[str, ...], list[str]] = {}
    for name, section in parts.items():
        measured.setdefault(tuple(_provenance(section)), []).append(name)
    for how, names in measured.items():
        lines += ["", f"Sections: {', '.join(names)}  ", *how]
    return "\n".join([*lines, ""])


def _network(_: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    several = any(row["networks"] > 1 for row in rows)
    per_network = ["ms a step and network", "× Adam, a network"] if several else []
    header = ["", "ms a step", "× Adam", "× SGD", *per_network, "floor, ms", "× floor", "memory, MB"]
    lines = [f"## {rows[0]['network_title']}", "", *_header(header)]
    for row in rows:
        cells = [f"{row['contender']}: {row['title']}", _milliseconds(row["seconds"])]
        cells += [_factor(row["to_adam"]), _factor(row["to_sgd"])]
        if several:
            cells += [_milliseconds(row["seconds"], row["networks"]), _factor(row["to_adam"], row["networks"])]
        cells += _floor(row["seconds"][0], row["floor"])
        cells.append("–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}")
        lines.append(_line(cells))
    return lines


def _sweep(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A row per contender, a column per size, and the last column: the exponents that times and floors grow with."""
    sizes = sorted({row["size"] for row in rows})
    lines = [
        f"## Growth with {name}: {SWEEPS[name].title}",
        "",
        f"Milliseconds a step, and × Adam at the same {name}. The last column: the power of the {name} that the time",
        "grows with between the two largest sizes, and the floor's, which is the law.",
        "",
        *_header([name, *map(str, sizes), "power (law)"]),
    ]
    for contender in dict.fromkeys(row["contender"] for row in rows):
        mine = {row["size"]: row for row in rows if row["contender"] == contender}
        cells = [_at_size(mine.get(size)) for size in sizes]
        lines.append(_line([contender, *cells, _powers(mine)]))
    return lines


def _at_size(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    ratio = "" if row["to_adam"] is None else f" ({row['to_adam'][0]:.2f})"
    return f"{1e3 * row['seconds'][0]:.3g}{ratio}"


def _powers(of_size: Mapping[int, dict[str, Any]]) -> str:
    if len(of_size) < 2:
        return "–"
    small, large = sorted(of_size)[-2:]
    time = power(small, large, of_size[small]["seconds"][0], of_size[large]["seconds"][0])
    law = power(small, large, of_size[small]["floor"], of_size[large]["floor"])
    return f"{time:.2f} ({law:.2f})"


def power(small: float, large: float, at_small: float, at_large: float) -> float:
    """p of a time that grows as size^p between two sizes."""
    return math.log(at_large / at_small) / math.log(large / small)


def _stages(_: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"## Where a step's time goes: {rows[0]['network_title']}"]
    for row in rows:
        lines += [
            "",
            f"**{row['contender']}**: {row['title']}. {1e3 * row['seconds']:.3g} ms a step, "
            f"{1e3 * row['watched_seconds']:.3g} ms while it is watched.",
            "",
            *_header(["stage", "ms a step", "share", "floor, ms", "× floor"]),
        ]
        for stage in row["stages"]:
            share = f"{100 * stage['share']:.0f}%"
            cells = [f"{1e3 * stage['seconds']:.3g}", f"**{share}**" if stage["share"] >= 0.05 else share]
            lines.append(_line([stage["stage"], *cells, *_floor(stage["seconds"], stage["floor"])]))
        shown = ", ".join(f"`{part['operator']}` {100 * part['share']:.0f}%" for part in row["operators"])
        lines += ["", f"Operators of 5% and more: {shown}."]
    return lines


def _memorized(_: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    first = rows[0]
    lines = [
        f"## One batch, learned by heart: {first['network_title']}",
        "",
        *_header(["", "ms a step, not learned", f"ms a step after {first['steps']:,} steps", "times slower"]),
    ]
    for row in rows:
        cells = [_milliseconds(row["fresh"]), _milliseconds(row["learned"]), _factor(row["slower"])]
        lines.append(_line([f"{row['contender']}: {row['title']}", *cells]))
    return lines


def _prediction(_: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    first = rows[0]
    title = f"## Predicting {first['points']:,} points with {first['samples']} samples: {first['network_title']}"
    lines = [title, "", *_header(["posterior", "way", "predict, s", "loop over sampled networks, s", "times faster"])]
    for row in rows:
        cells = [f"{row[key][0]:.3g} ({row[key][1]:.3g} to {row[key][2]:.3g})" for key in ("predict", "loop")]
        lines.append(_line([row["structure"], row["way"], *cells, _factor(row["faster"])]))
    return lines


def _boston(_: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["## Boston's splits, all at once, against single networks by Adam, on the CPU"]
    for row in rows:
        lines += [
            "",
            f"{row['splits']} splits by {row['method']}, {row['epochs']} epochs, batch {row['batch']}: "
            f"{row['seconds'][0]:.3g} s, the time of {_factor(row['trainings'])} trainings of one network by Adam "
            f"({row['adam_seconds'][0]:.3g} s each).",
        ]
    return lines


_OTHERS = {"stages": _stages, "memorized": _memorized, "prediction": _prediction, "boston": _boston}


def _provenance(section: Section) -> list[str]:
    rates = section["rates"]
    speed = (
        f"{rates['flops'] / 1e9:.3g} GFLOP/s in matrix products, {rates['thin'] / 1e9:.3g} in thin ones, "
        f"{rates['bytes'] / 1e9:.3g} GB/s in copies, {rates['normals'] / 1e9:.2g} billion random numbers a second"
    )
    lines = summary.provenance_lines(section["provenance"])
    state = f"denormal numbers {section['provenance']['denormals']}; code {section['provenance']['source']}"
    return [*lines[:-1], f"{lines[-1]}; {speed}; {state}"]


def _milliseconds(values: Spread, networks: int = 1) -> str:
    median, low, high = (1e3 * value / networks for value in values)
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _factor(values: Spread | None, networks: int = 1) -> str:
    if values is None:
        return "–"
    median, low, high = (value / networks for value in values)
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def _floor(seconds: float, floor: float | None) -> list[str]:
    return ["–", "–"] if not floor else [f"{1e3 * floor:.3g}", f"{seconds / floor:.1f}"]


def _header(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---", *["---:"] * (len(cells) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
