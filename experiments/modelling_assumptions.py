"""The assumptions behind Kronecker factors, checked on small networks: before and after they have learned digits.

    python -m experiments.modelling_assumptions

A convolutional and a dense network learn scikit-learn's digits, reduced to 4 x 4 pixels where the network is dense so
that the exact Fisher matrix can be had. Written to the output folder: ``errors.csv`` and ``errors.md`` (how far each
approximation is from the exact Fisher matrix, at the start and after every tenth epoch), ``fisher.png`` (matrices),
``space.png`` (correlations over space of a convolution's activations and derivatives) and ``precision.png`` (the
posterior's precision matrix).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import torch
import typer
from matplotlib.colors import LogNorm
from torch import Tensor, nn

import noisynat
from experiments import cli, records
from experiments.figures import save
from experiments.images import Images, load
from experiments.summary import provenance_lines
from noisynat import plotting
from noisynat.diagnostics import (
    APPROXIMATIONS,
    FisherComparison,
    SpatialCorrelation,
    compare_fisher,
    spatial_correlation,
)

_MODULE = "experiments.modelling_assumptions"
_SHOWN = 500  # images that matrices are averaged over
_EVERY = 10  # epochs


def dense() -> nn.Module:
    """Of 4 x 4 pixels, 16-8-8-10 with tanh."""
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 10)
    )


def convolutional() -> nn.Module:
    """Two 3 x 3 convolutions of 4 and 6 channels with ReLU and pooling, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"dense": dense, "convolutional": convolutional}


def trained(name: str, images: Images, epochs: int) -> tuple[noisynat.VariationalNetwork, pd.DataFrame]:
    """A network, and a row for each approximation at the start and after every tenth epoch."""
    torch.manual_seed(0)
    bnn = noisynat.VariationalNetwork(
        NETWORKS[name](), noisynat.CategoricalLikelihood(), noisynat.GaussianPrior(1.0, "fan_in"),
        num_data=len(images.x_train), initial_precision=0.01, seed=0,
    )  # fmt: skip
    optimizer = noisynat.NoisyKFAC(bnn, lr=0.02)
    rows: list[dict[str, Any]] = []

    def look(epoch: int, history: noisynat.History | None = None) -> None:
        if epoch % _EVERY and epoch != epochs:
            return
        found = compare_fisher(bnn, images.x_train[:_SHOWN])
        accuracy = (bnn.predict(images.x_test, 20).mode == images.y_test).double().mean().item()
        rows.append(
            {"network": name, "epoch": epoch, "accuracy": accuracy, **{k: found.error(k) for k in APPROXIMATIONS}}
        )
        print(f"  {name}, epoch {epoch}: accuracy {accuracy:.3f}, errors {found}")

    look(0)
    data = noisynat.TensorBatches(images.x_train, images.y_train, 64, seed=0)
    noisynat.fit(bnn, optimizer, data, epochs, on_epoch=look, progress=False)
    return bnn, pd.DataFrame(rows)


def markdown(table: pd.DataFrame, provenance: dict[str, Any]) -> str:
    """Errors by network and epoch."""
    titles = [name.replace("_", " ") for name in APPROXIMATIONS]
    lines = [
        "# Distance from the exact Fisher matrix", "",
        "|F - F'| / |F|, Frobenius norms; all approximations leave out what links layers.", "",
        f"| network | epoch | accuracy | {' | '.join(titles)} |", "|---|---:|---:|" + "---:|" * len(titles),
    ]  # fmt: skip
    for row in table.to_dict("records"):
        errors = " | ".join(f"{row[name]:.3f}" for name in APPROXIMATIONS)
        lines.append(f"| {row['network']} | {row['epoch']} | {row['accuracy']:.3f} | {errors} |")
    return "\n".join([*lines, "", *provenance_lines(provenance)]) + "\n"


def fisher_figure(found: dict[str, FisherComparison], path: Path) -> None:
    """A row per network: the size of the entries of the exact matrix and of its approximations."""
    shown = ("exact", "block_diagonal", "eigen_corrected", "kronecker")
    figure, grid = plt.subplots(
        len(found), len(shown), figsize=(2.5 * len(shown), 2.6 * len(found)), layout="constrained", squeeze=False
    )
    for row, (network, comparison) in zip(grid, found.items(), strict=True):
        top = comparison.exact.abs().max().item()
        for axes, name in zip(row, shown, strict=True):
            matrix = comparison.exact if name == "exact" else comparison.approximations[name]
            image = axes.imshow(
                matrix.abs().clamp(min=top * 1e-5).numpy(),
                norm=LogNorm(top * 1e-5, top),
                cmap="magma",
                interpolation="nearest",
            )
            error = "" if name == "exact" else f", error {comparison.error(name):.2f}"
            axes.set_title(f"{network}: {name.replace('_', ' ')}{error}", fontsize=7)
            axes.set_xticks([])
            axes.set_yticks([])
        figure.colorbar(image, ax=row, label="|entry|", shrink=0.8)
    save(figure, path)


def space_figure(found: dict[str, SpatialCorrelation], path: Path) -> None:
    """A row per convolution: correlations of activations, and of derivatives, by displacement."""
    figure, grid = plt.subplots(len(found), 2, figsize=(6.6, 3.0 * len(found)), layout="constrained", squeeze=False)
    for row, (name, correlation) in zip(grid, found.items(), strict=True):
        for axes, key in zip(row, ("activations", "derivatives"), strict=True):
            values: Tensor = getattr(correlation, key)
            reach = len(values) // 2
            image = axes.imshow(
                values.numpy(),
                vmin=-1,
                vmax=1,
                cmap="RdBu_r",
                extent=(-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5),
            )
            for (i, j), value in zip(
                [(i, j) for i in range(len(values)) for j in range(len(values))], values.flatten().tolist(), strict=True
            ):
                axes.text(j - reach, i - reach, f"{value:.2f}", ha="center", va="center", fontsize=7)
            axes.set_title(f"{name}: {key}", fontsize=9)
        figure.colorbar(image, ax=row, label="correlation", shrink=0.8)
    figure.supxlabel("displacement, pixels")
    save(figure, path)


def precision_figure(network: noisynat.VariationalNetwork, layers: Sequence[int], path: Path) -> None:
    """Of the posteriors of some layers."""
    figure, row = plt.subplots(1, len(layers), figsize=(5 * len(layers), 4.2), layout="constrained", squeeze=False)
    for axes, number in zip(row[0], layers, strict=True):
        plotting.posterior_matrix(network.posteriors[number], axes, kind="precision")
    save(figure, path)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/assumptions"),
) -> None:
    """Train, compare and draw."""
    console = cli.started(threads)
    images = load("digits")
    networks, tables = {}, []
    for name in NETWORKS:
        networks[name], table = trained(name, images, epochs)
        tables.append(table)
    errors = pd.concat(tables, ignore_index=True)
    x = images.x_train[:_SHOWN]
    records.write_table(output / "errors.csv", errors)
    records.write_text(output / "errors.md", markdown(errors, records.provenance(_MODULE)))
    fisher_figure({name: compare_fisher(bnn, x) for name, bnn in networks.items()}, output / "fisher.png")
    conv = networks["convolutional"]
    titles = {"0": "first convolution", "3": "second convolution"}
    space_figure({title: spatial_correlation(conv, x, name, 2) for name, title in titles.items()}, output / "space.png")
    precision_figure(conv, (0, 1), output / "precision.png")
    console.print(f"written: {output / 'errors.md'}", markup=False)


if __name__ == "__main__":
    app()
