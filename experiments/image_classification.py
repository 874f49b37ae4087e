"""Image classification: accuracy, calibration and doubt of what it has not seen, of Bayesian networks and others.

    python -m experiments.image_classification fashion-mnist
    python -m experiments.image_classification digits --quick

Written to the output folder, for each data set and network: ``<method>-<seed>/`` with ``history.csv`` (a row per
epoch), ``result.json`` and ``predictions.npz``; over all ``results.csv``, ``results.md``, ``curves.png`` and
``reliability.png``. A run that was stopped goes on with the training at which it stood.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from experiments import cli, image_report, records
from experiments.image_methods import METHODS, Configuration, Method, Probs, train
from experiments.image_networks import NETWORKS
from experiments.images import DATASETS, Images, ImagesNotFoundError, load

_MODULE = "experiments.image_classification"
_BINS = 15
_SAMPLES_OF_CURVES = 8
_TINY = 1e-12  # least probability whose logarithm is taken


def scores(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood of the mixture, Brier score and expected calibration error.

    Args:
        probs: (N, K).
        y: classes (N,).
    """
    hit = torch.nn.functional.one_hot(y, probs.shape[-1])
    return {
        "accuracy": (probs.argmax(-1) == y).double().mean().item(),
        "nll": -probs.gather(1, y[:, None]).clamp(min=_TINY).log().mean().item(),
        "brier": (probs - hit).square().sum(-1).mean().item(),
        "ece": multiclass_calibration_error(probs, y, probs.shape[-1], n_bins=_BINS).item(),
    }


def entropy(probs: Tensor) -> Tensor:
    """Of the predictive, (N,), nats."""
    return -(probs * probs.clamp(min=_TINY).log()).sum(-1)


def doubt(known: Tensor, unknown: Tensor) -> float:
    """Area under the ROC curve of telling images of no class by the entropy of their prediction."""
    values = torch.cat([entropy(known), entropy(unknown)])
    labels = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    return float(roc_auc_score(labels, values.numpy()))


def run(method: Method, images: Images, config: Configuration, folder: Path) -> dict[str, Any]:
    """Train and evaluate ``method`` into ``folder``, unless it holds this very run; gives its result."""
    settings = {
        "method": asdict(method), "config": asdict(config), "images": [len(images.x_train), len(images.x_test)],
    }  # fmt: skip
    path = folder / "result.json"
    if records.is_of(path, settings):
        found = records.read_json(path)
        assert found is not None
        return found
    history: list[dict[str, float]] = []
    epochs = method.members * method.epochs(config)

    def report(epoch: int, seconds: float, loss: float, probs: Probs) -> None:
        now = scores(probs(images.x_test, _SAMPLES_OF_CURVES), images.y_test)
        history.append({"epoch": epoch, "seconds": seconds, "loss": loss, **now})
        print(
            f"  {method.name}, seed {config.seed}, epoch {epoch}/{epochs}: loss {loss:.4f}, "
            f"test accuracy {now['accuracy']:.4f}, NLL {now['nll']:.4f} ({seconds:.0f} s)"
        )

    outcome = train(method, images, config, report)
    probs = outcome.probs(images.x_test, config.samples)
    others = {name: outcome.probs(x, config.samples) for name, x in images.others.items()}
    result = {
        "method": method.name,
        "seed": config.seed,
        "kl_weight": method.kl_weight if method.posterior else None,
        **scores(probs, images.y_test),
        **{f"auroc, {name}": doubt(probs, unknown) for name, unknown in others.items()},
        "loss": history[-1]["loss"],
        "elbo": outcome.elbo,
        "seconds": outcome.seconds,
    }
    records.write_table(folder / "history.csv", pd.DataFrame(history))
    records.write_arrays(folder / "predictions.npz", {"probs": probs.numpy(), "y": images.y_test.numpy()})
    records.write_json(path, result)
    return result


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.split("\n\n")[0])
def main(
    dataset: Annotated[str, typer.Argument(help=f"Of: {', '.join(DATASETS)}.")] = "fashion-mnist",
    network: Annotated[str, typer.Option(help=f"Of: {', '.join(NETWORKS)}.")] = "lenet",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each method.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training.")] = 20,
    kl_weight: Annotated[float | None, typer.Option(help="Lambda of all posteriors, not each method's own.")] = None,
    held_out: Annotated[
        bool, typer.Option(help="Score a tenth of the training images, to choose settings by.")
    ] = False,
    quick: Annotated[bool, typer.Option(help="One seed, two epochs, 1,000 images, to see that it works.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set's files.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/images"),
) -> None:
    """Train, evaluate and report."""
    console = cli.started(threads)
    wanted = cli.chosen(methods, METHODS)
    cli.chosen(network, NETWORKS, "--network")
    cli.chosen(dataset, dict.fromkeys(DATASETS), "DATASET")
    try:
        images = load(dataset, data)
    except ImagesNotFoundError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from error
    if held_out:
        images = images.without_test()
    if kl_weight is not None:
        wanted = [replace(method, kl_weight=kl_weight) for method in wanted]
    config = Configuration(network, epochs)
    if quick:
        images, seeds = images.first(1000, 500), 1
        config = replace(config, epochs=min(epochs, 2), samples=5)
    folder = output / dataset / network
    results = []
    for seed in range(seeds):
        for method in wanted:
            results.append(run(method, images, replace(config, seed=seed), folder / f"{method.name}-{seed}"))
    provenance = records.provenance(_MODULE)
    image_report.write(pd.DataFrame(results), folder, wanted, config, provenance)
    console.print(f"written: {folder / 'results.md'}", markup=False)


if __name__ == "__main__":
    app()
