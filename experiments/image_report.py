"""Tables and figures of the image classification experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments import records
from experiments.figures import save
from experiments.image_methods import Configuration, Method
from experiments.summary import provenance_lines, standard_error

_COLUMNS: Mapping[str, tuple[str, str, bool | None]] = {  # title, format, whether more is better; None for settings
    "accuracy": ("accuracy", "{:.2%}", True),
    "nll": ("NLL", "{:.4f}", False),
    "ece": ("ECE", "{:.2%}", False),
    "brier": ("Brier", "{:.4f}", False),
    "loss": ("training loss", "{:.4f}", False),
    "kl_weight": ("lambda", "{:g}", None),
    "elbo": ("ELBO / N", "{:.3f}", True),
    "seconds": ("seconds", "{:.0f}", False),
}
_CURVES = {"loss": "training loss", "nll": "test NLL", "accuracy": "test accuracy"}
_BINS = 15
_COLORS = [plt.colormaps["tab20"](2 * i % 20 + i // 10) for i in range(20)]  # the usual ten, then lighter ones


def write(
    results: pd.DataFrame, folder: Path, methods: Sequence[Method], config: Configuration, provenance: dict[str, Any]
) -> None:
    """``results.csv``, ``results.md``, ``curves.png`` and ``reliability.png`` into ``folder``."""
    records.write_table(folder / "results.csv", results)
    records.write_text(folder / "results.md", markdown(results, methods, config, provenance))
    curves(folder, results, methods, folder / "curves.png")
    reliability(folder, results, methods, folder / "reliability.png")


def markdown(
    results: pd.DataFrame, methods: Sequence[Method], config: Configuration, provenance: dict[str, Any]
) -> str:
    """A row per method: means over seeds and their standard errors; the best of a column in bold."""
    columns = dict(_COLUMNS)
    for name in results.columns:
        if name.startswith("auroc"):
            columns[name] = (f"AUROC{name.removeprefix('auroc')}", "{:.4f}", True)
    columns = {key: value for key, value in columns.items() if results[key].notna().any()}
    grouped = results.groupby("method", sort=False)
    means = grouped[list(columns)].mean()
    seeds = int(grouped.size().max())
    said = f"Means over {seeds} seeds and their standard errors." if seeds > 1 else "One seed."
    if (results.kl_weight < 1).any():
        said += " Posteriors with lambda below 1 are cold: the KL counted so many times in training, once in the ELBO."
    lines = [f"# {config.network}, {config.epochs} epochs", "", said, ""]
    lines += [f"| | {' | '.join(title for title, *_ in columns.values())} |", "|---|" + "---:|" * len(columns)]
    for method in methods:
        cells = [
            _cell(grouped.get_group(method.name)[key], means[key], text, more)
            for key, (_, text, more) in columns.items()
        ]
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *provenance_lines(provenance)]) + "\n"


def _cell(values: pd.Series, means: pd.Series, text: str, more: bool | None) -> str:
    """One method's ``values`` of a quantity, given the ``means`` of all methods."""
    if values.isna().all():
        return "–"
    shown = text.format(values.mean())
    if more is None:
        return shown
    if len(values) > 1:
        shown += "±" + text.format(standard_error(values.to_numpy(float)))
    best = means.max() if more else means.min()
    return f"**{shown}**" if values.mean() == best else shown


def curves(folder: Path, results: pd.DataFrame, methods: Sequence[Method], path: Path) -> None:
    """Training loss, test NLL and accuracy by epoch and by second, means over seeds."""
    figure, axes = plt.subplots(len(_CURVES), 2, figsize=(11, 10), layout="constrained", sharey="row")
    for color, method in zip(_COLORS, methods, strict=False):
        seeds = results[results.method == method.name].seed
        tables = [pd.read_csv(folder / f"{method.name}-{seed}" / "history.csv") for seed in seeds]
        mean = pd.concat(tables).groupby(np.concatenate([np.arange(len(t)) for t in tables])).mean()
        for row, key in enumerate(_CURVES):
            axes[row, 1].plot(mean.seconds, mean[key], color=color, label=method.title, lw=1.5)
            if method.members == 1:
                axes[row, 0].plot(mean.epoch, mean[key], color=color, lw=1.5)
            else:  # what comes of all members, which took their epochs one after the other
                axes[row, 0].axhline(mean[key].iloc[-1], color=color, lw=1.5, ls="--")
    for row, title in enumerate(_CURVES.values()):
        axes[row, 0].set_ylabel(title)
    axes[0, 0].set_yscale("log")
    axes[-1, 0].set_xlabel("epoch")
    axes[-1, 1].set_xlabel("seconds of training")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    save(figure, path)


def reliability(folder: Path, results: pd.DataFrame, methods: Sequence[Method], path: Path) -> None:
    """Accuracy less confidence against confidence, one panel per method, all seeds together."""
    columns = min(len(methods), 4)
    rows = -(-len(methods) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.8 * rows), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axes, method in zip(grid.flat, methods, strict=False):
        arrays = [
            np.load(folder / f"{method.name}-{seed}" / "predictions.npz")
            for seed in results[results.method == method.name].seed
        ]
        _panel(axes, np.concatenate([a["probs"] for a in arrays]), np.concatenate([a["y"] for a in arrays]))
        axes.set_title(method.title, fontsize=9)
    for axes in list(grid.flat)[len(methods) :]:
        axes.remove()
    figure.supxlabel("confidence")
    figure.supylabel("accuracy less confidence")
    save(figure, path)


def _panel(axes: Axes, probs: np.ndarray, y: np.ndarray) -> None:
    confidence, hit = probs.max(-1), probs.argmax(-1) == y
    edges = np.linspace(0, 1, _BINS + 1)
    place = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    there = counts > 0
    gap = (np.bincount(place, hit, _BINS) - np.bincount(place, confidence, _BINS))[there] / counts[there]
    middle = (edges[:-1] + edges[1:])[there] / 2
    axes.axhline(0, color="0.6", lw=1)
    axes.bar(middle, gap, width=0.9 / _BINS, color=plt.cm.Blues(0.25 + 0.75 * counts[there] / counts.max()))
    axes.set_ylim(-0.2, 0.2)
