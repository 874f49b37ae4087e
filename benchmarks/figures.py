"""The figures: ratios to Adam as bars, and cost against size beside its law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.networks import NETWORKS, SWEEPS
from experiments.figures import save

_COLORS = {"reference": "#7f7f7f", "noisynat": "#0072b2", "peer": "#e69f00"}
_LABELS = {"reference": "references", "noisynat": "this library", "peer": "others"}
_LINES = ("#000000", "#7f7f7f", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#cc79a7", "#d55e00", "#8c510a")


def draw(parts: Mapping[str, dict[str, Any]], output: Path) -> list[Path]:
    """``ratios.png`` and ``growth.png``, where there is something to show; gives their paths."""
    networks = {name: parts[name]["rows"] for name in NETWORKS if name in parts and _has_ratios(parts[name]["rows"])}
    sweeps = {name: parts[name]["rows"] for name in SWEEPS if name in parts and parts[name]["rows"]}
    written = []
    for name, panels, figure in (("ratios", networks, _ratios), ("growth", sweeps, _growth)):
        if panels:
            written.append(output / f"{name}.png")
            figure(panels, written[-1])
    return written


def _has_ratios(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["to_adam"] is not None for row in rows)


def _ratios(panels: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel per network, a bar per contender, with quartiles; per network where several are trained at once."""
    longest = max(len(rows) for rows in panels.values())
    figure, axes_of = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 1, 0.22 * longest + 1.4), squeeze=False, layout="constrained"
    )
    for axes, rows in zip(axes_of.flat, panels.values(), strict=True):
        _bars(axes, [row for row in rows if row["to_adam"] is not None])
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in _COLORS.values()]
    figure.legend(handles, [_LABELS[kind] for kind in _COLORS], loc="outside upper center", ncols=len(handles))
    save(figure, path)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Medians as bars from 1, which is Adam's, on a logarithmic axis, quartiles as lines."""
    several = any(row["networks"] > 1 for row in rows)
    for place, row in enumerate(rows):
        median, low, high = (value / row["networks"] for value in row["to_adam"])
        axes.barh(place, median - 1, left=1, color=_COLORS[row["kind"]])
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.annotate(
            f"{median:.2g}", (max(high, 1), place), textcoords="offset points", xytext=(3, 0), va="center",
            fontsize="x-small",
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [row["contender"] for row in rows], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel("time per step and network, × Adam" if several else "time per step, × Adam")
    axes.set_title(rows[0]["network_title"], fontsize="small")
    axes.grid(alpha=0.3, axis="x")


def _growth(panels: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel per sweep: time per step, and as dotted lines the floors."""
    figure, axes_of = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels) + 0.6, 4.6), squeeze=False, layout="constrained"
    )
    names = dict.fromkeys(row["contender"] for rows in panels.values() for row in rows)
    color_of = {name: _LINES[place % len(_LINES)] for place, name in enumerate(names)}
    for axes, (name, rows) in zip(axes_of.flat, panels.items(), strict=True):
        for contender in dict.fromkeys(row["contender"] for row in rows):
            mine = sorted((row for row in rows if row["contender"] == contender), key=lambda row: row["size"])
            sizes = [row["size"] for row in mine]
            color = color_of[contender]
            times = [1e3 * row["seconds"][0] for row in mine]
            axes.plot(sizes, times, "o-", markersize=3, color=color, label=contender)
            axes.plot(sizes, [1e3 * row["floor"] for row in mine], ":", linewidth=1, color=color)
        axes.set(xscale="log", yscale="log", xlabel=name)
        shown = sorted({row["size"] for row in rows})
        axes.set_xticks(shown, [str(size) for size in shown], fontsize="small")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(SWEEPS[name].title, fontsize="small")
        axes.grid(alpha=0.3)
    axes_of.flat[0].set_ylabel("ms a step; dotted: floor")
    labelled = (zip(*axes.get_legend_handles_labels(), strict=True) for axes in axes_of.flat)
    handles = {label: handle for pairs in labelled for handle, label in pairs}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3 * len(panels), fontsize="small")
    save(figure, path)
