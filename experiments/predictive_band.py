"""A picture of what the posterior knows: the predictive band of a small network on one input.

    python -m experiments.predictive_band --output docs/images/band.png

Two hundred noisy observations of a wave lie in two groups; between and beyond them the epistemic part of the band
opens, while the noise stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import typer
from matplotlib.axes import Axes
from torch import Tensor, nn

import noisynat
from experiments.methods import METHODS

_PANELS = ("bbb", "nng-kron", "nng-full")


def observations(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets (200, 1): y = sin(2 x) + 0.1 e, x in [-2, -0.7] and [0.3, 1.6]."""
    generator = torch.Generator().manual_seed(seed)
    x = 1.3 * torch.rand(200, 1, generator=generator) + torch.tensor([[-2.0], [0.3]]).repeat(100, 1)
    return x, torch.sin(2 * x) + 0.1 * torch.randn(x.shape, generator=generator)


def posterior(method: str, x: Tensor, y: Tensor, epochs: int) -> noisynat.VariationalNetwork:
    """A network of 50 ReLU units, trained on batches of 50 with a KL warm-up over the first fifth."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 1))
    network = noisynat.VariationalNetwork(
        net,
        likelihood=noisynat.GaussianLikelihood(noise="gamma", a0=1.0, b0=0.001, initial_std=0.1),
        prior=noisynat.GaussianPrior(variance=1.0),
        posterior=METHODS[method].structure,
        num_data=len(x),
        initial_precision=10.0,
    )
    optimizer = METHODS[method].optimizer(network)
    batches = noisynat.TensorBatches(x, y, batch_size=50, seed=0)
    schedule = noisynat.cosine_schedule(
        optimizer, epochs * len(batches), curvature_final=METHODS[method].curvature_final
    )
    noisynat.fit(network, optimizer, batches, epochs, scheduler=schedule, kl_warmup=0.2, progress=False)
    return network


def draw(axes: Axes, network: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> None:
    """The mean, two standard deviations of the function, and of the function with noise."""
    grid = torch.linspace(-3.2, 3.2, 300).unsqueeze(-1)
    prediction = network.predict(grid, num_samples=500)
    mean, at = prediction.mean.squeeze(-1), grid.squeeze(-1)
    bands = {
        "with noise": (prediction.stddev.squeeze(-1), 0.2),
        "function": (prediction.epistemic_variance.sqrt().squeeze(-1), 0.4),
    }
    for label, (std, alpha) in bands.items():
        axes.fill_between(
            at, mean - 2 * std, mean + 2 * std, color="#0072b2", alpha=alpha, linewidth=0, label=f"{label}, ± 2 std"
        )
    axes.plot(at, mean, color="#0072b2", label="mean")
    axes.plot(at, torch.sin(2 * at), color="black", linewidth=0.8, linestyle=":", label="truth")
    axes.plot(x.squeeze(-1), y.squeeze(-1), "o", color="black", markersize=3, label="observations")
    axes.set(xlabel="x", ylim=(-3, 3))


def main(
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("results/band.png"),
    epochs: Annotated[int, typer.Option(min=1, help="Of training; each is four steps.")] = 1000,
) -> None:
    """Train three posteriors on the same data and draw their bands side by side."""
    torch.set_num_threads(1)
    x, y = observations()
    figure, panels = plt.subplots(1, len(_PANELS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axes, method in zip(panels, _PANELS, strict=True):
        network = posterior(method, x, y, epochs)
        draw(axes, network, x, y)
        elbo = network.elbo(x, y).per_datum.item()
        axes.set_title(f"{METHODS[method].title}: ELBO per datum {elbo:.2f}", fontsize="medium")
        print(f"{method}: ELBO per datum {elbo:.3f}")
    panels[0].set_ylabel("y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    plt.close(figure)
    print(f"written: {output}")


if __name__ == "__main__":
    typer.run(main)
