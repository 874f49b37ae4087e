"""What raises the posterior's quality, and what does not: one thing changed at a time.

    python -m experiments.ablation boston yacht --splits 10

The base is one network per split with a Kronecker posterior and a slow KL warm-up. Every variant departs from it in one
respect, trains on the same splits and batches, and is compared with it split by split. Written to the output folder:
``ablation.csv`` (a row per data set, variant and split), ``differences.csv`` and ``ablation.md``. A run that was
stopped goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments import cli, records, summary
from experiments.elbo_statistics import paired_difference
from experiments.methods import METHODS, RECIPES, Method
from experiments.runs import Configuration, run_one

_MODULE = "experiments.ablation"
_DATASETS = ("boston", "concrete", "energy", "yacht")
_FIGURES = {"log_likelihood": "test log-lik.", "rmse": "RMSE", "elbo_per_datum": "ELBO / N", "coverage": "95% cov."}
BASE = replace(RECIPES["mix-kron"], name="base", title="Kronecker, geometric KL warm-up over half", members=1)


def _variant(name: str, title: str, **changes: Any) -> Method:
    return replace(BASE, name=name, title=title, **changes)


_VARIANTS = (
    BASE,
    _variant("no-warmup", "no KL warm-up", kl_warmup=0.0, kl_start=None),
    _variant("short-warmup", "linear KL warm-up over 5%", kl_warmup=0.05, kl_start=None),
    _variant("linear-warmup", "linear KL warm-up over half", kl_start=None),
    _variant("cold", "cold posterior, lambda = 0.3", configuration={"kl_weight": 0.3}),
    _variant("fan-in", "prior variance 1 / fan-in", configuration={"prior_scale": "fan_in"}),
    _variant("narrow-prior", "prior variance 0.3", configuration={"prior_variance": 0.3}),
    _variant("wide-prior", "prior variance 3", configuration={"prior_variance": 3.0}),
    _variant("fitted-prior", "prior variances by empirical Bayes", configuration={"prior_variance": "empirical_bayes"}),
    _variant("paper-noise", "noise prior Gamma(6, 6)", configuration={"a0": 6.0, "b0": 6.0}),
    _variant("wide-start", "initial precision 1", configuration={"initial_precision": 1.0}),
    _variant("rare-statistics", "statistics and factorizations at the default's growing intervals", options={}),
    _variant("factored", "factored damping", structure="matrix_normal"),
    _variant("eigen", "eigenvalue-corrected", structure="eigen_corrected"),
    replace(METHODS["nng-full"], name="dense", title="dense from the start", start=None, share=1.0),
    replace(METHODS["nng-full"], name="dense-long", title="dense for the last half"),
    replace(RECIPES["mix-full"], name="dense-last", title="dense for the last tenth, half the lr", members=1),
    _variant("linearized", "linearized predictive", configuration={"predictive": "linearized"}),
    _variant("free-noise", "varying noise, free from the start", noise_warmup=(0.0, 1e-9)),
    _variant("varying-noise", "varying noise, set free from 30% to 60%", noise_warmup=(0.3, 0.6)),
    _variant("members", "mixture of 3 networks", members=3),
    _variant(
        "prior-grid",
        "mixture of 3 networks, prior variances 0.3, 1 and 3",
        members=3,
        configuration={"prior_variance": (0.3, 1.0, 3.0)},
    ),
)
VARIANTS = {method.name: method for method in _VARIANTS}


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every variant less the base, paired by split: mean, standard error and verdict of each figure.

    Args:
        table: a row per ``dataset``, ``method`` and ``split``, the base's among them.
    """
    rows = []
    for dataset, group in table.groupby("dataset", sort=False):
        base = group[group.method == BASE.name].sort_values("split")
        for name, mine in group.groupby("method", sort=False):
            row: dict[str, Any] = {"dataset": dataset, "method": name}
            for key in _FIGURES:
                values = mine.sort_values("split")[key].to_numpy()
                row[key] = values.mean()
                row[f"{key}_change"], row[f"{key}_error"], row[f"{key}_verdict"] = paired_difference(
                    values, base[key].to_numpy()
                )
            rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, variants: Sequence[Method], provenance: dict[str, Any]) -> str:
    """The differences as one table per data set."""
    titles = {method.name: method.title for method in variants}
    lines = [
        "# One thing changed at a time",
        "",
        f"Base: {BASE.title}; prior N(0, 1), noise prior Gamma(1, 0.001), one network per split. Changes are",
        "means over splits of the paired difference to the base ± standard error; **bold** where they exceed two of",
        "these. ELBOs are those of each variant's own model: another prior, noise or lambda bounds something else.",
    ]
    for dataset, group in table.groupby("dataset", sort=False):
        lines += ["", f"## {dataset}", "", "| variant | " + " | ".join(_FIGURES.values()) + " |"]
        lines += ["| --- |" + " ---: |" * len(_FIGURES)]
        lines += [
            f"| {titles[row['method']]} | " + " | ".join(_cell(row, key) for key in _FIGURES) + " |"
            for row in group.to_dict("records")
        ]
    return "\n".join([*lines, "", *summary.provenance_lines(provenance), ""])


def _cell(row: dict[Any, Any], key: str) -> str:
    if row["method"] == BASE.name:
        return f"{row[key]:.3f}"
    change = f"{row[f'{key}_change']:+.3f}±{row[f'{key}_error']:.3f}"
    return f"**{change}**" if row[f"{key}_verdict"] in ("higher", "lower") else change


def _screen(table: pd.DataFrame) -> Table:
    title = "change against the base, mean ± standard error of paired differences"
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for column in ("dataset", "variant", *_FIGURES.values()):
        shown.add_column(column, justify="left" if column in ("dataset", "variant") else "right", no_wrap=True)
    for row in table.to_dict("records"):
        shown.add_row(row["dataset"], row["method"], *(_cell(row, key).strip("*") for key in _FIGURES))
    return shown


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Data sets; default: {' '.join(_DATASETS)}.")] = None,
    variants: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(VARIANTS)}.")] = ",".join(VARIANTS),
    splits: Annotated[int | None, typer.Option(min=1, help="Only the first so many splits.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the rule's number of epochs.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/ablation"),
    seed: Annotated[int, typer.Option(help="Of initial weights, batches and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
) -> None:
    """Train, compare and report; finished parts are kept, a stopped one is resumed."""
    console = cli.started(threads)
    chosen = [BASE] + [method for method in cli.chosen(variants, VARIANTS, "--variants") if method != BASE]
    names = cli.checked_datasets(datasets or _DATASETS)
    for name in names:
        data = cli.loaded(name, splits, console)
        config = replace(Configuration.for_size(name, data.num_train), seed=seed)
        config = config if epochs is None else replace(config, epochs=epochs)
        for method in chosen:
            console.print(f"[bold]{name}[/bold] {method.name}: {method.title}")
            if not run_one(method, data, config, output / name / method.name, progress=True, module=_MODULE):
                console.print("  done before")
    table = summary.collect(output, names, [method.name for method in chosen])
    changes = differences(table)
    records.write_table(output / "ablation.csv", table)
    records.write_table(output / "differences.csv", changes)
    records.write_text(output / "ablation.md", markdown(changes, chosen, records.provenance(_MODULE)))
    console.print(_screen(changes))
    console.print(f"written: {output / 'ablation.md'}, {output / 'differences.csv'}")


if __name__ == "__main__":
    app()
