"""The pictures of the how-tos on metrics and on classification.

    python -m experiments.pictures --output docs/images

Regression with more noise on the right, with constant and with varying noise; two half moons as classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import typer
from matplotlib.axes import Axes
from torch import Tensor, nn

import noisynat
from experiments.figures import save
from noisynat import plotting

_TRUTH = "#000000"


def wave(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (count, 1): y = sin(2 x) + s(x) e, x in [-2, 2] without [-0.2, 0.6], s from 0.05 to 0.4."""
    generator = torch.Generator().manual_seed(seed)
    x = 3.2 * torch.rand(count, 1, generator=generator) - 2
    x = torch.where(x > -0.2, x + 0.8, x)
    std = 0.05 + 0.35 * torch.sigmoid(4 * x)
    return x, torch.sin(2 * x) + std * torch.randn(x.shape, generator=generator)


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (count, 2) on two half circles that clasp each other, with noise of 0.25; classes (count,)."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(count, generator=generator)
    y = torch.randint(2, (count,), generator=generator)
    sign = 1 - 2 * y
    x = torch.stack([sign * angle.cos() + y - 0.5, sign * angle.sin() + 0.5 * y - 0.25], dim=-1)
    return x + 0.25 * torch.randn(x.shape, generator=generator), y


def train(
    net: nn.Module, likelihood: noisynat.Likelihood, x: Tensor, y: Tensor, epochs: int, posterior: str = "kronecker"
) -> tuple[noisynat.VariationalNetwork, noisynat.History]:
    """On batches of 50, with a KL warm-up over the first fifth, and noise that is set free where it may vary."""
    network = noisynat.VariationalNetwork(
        net,
        likelihood,
        posterior=posterior,  # type: ignore[arg-type]
        num_data=len(x),
        initial_precision=10.0,
        seed=0,
    )
    optimizer = noisynat.NoisyNaturalGradient(network)
    batches = noisynat.TensorBatches(x, y, batch_size=50, seed=0)
    schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches), curvature_final=0.1)
    varying = isinstance(likelihood, noisynat.HeteroscedasticGaussianLikelihood)
    history = noisynat.fit(
        network,
        optimizer,
        batches,
        epochs,
        scheduler=schedule,
        kl_warmup=0.2,
        noise_warmup=(0.2, 0.4) if varying else None,
        progress=False,
    )
    return network, history


def mlp(inputs: int, hidden: int, outputs: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, outputs))


def regression(path: Path, epochs: int) -> None:
    """A band, calibration of two likelihoods, and errors against standard deviations."""
    x, y = wave(200, seed=0)
    x_test, y_test = wave(500, seed=1)
    noise: dict[str, Any] = {"a0": 1.0, "b0": 0.001, "initial_std": 0.2}
    constant, _ = train(mlp(1, 20, 1), noisynat.GaussianLikelihood("gamma", **noise), x, y, epochs)
    varying, _ = train(mlp(1, 20, 2), noisynat.HeteroscedasticGaussianLikelihood("gamma", **noise), x, y, epochs)
    figure, (band, calibration, errors) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    grid = torch.linspace(-3, 3, 300).unsqueeze(-1)
    plotting.predictive_band(grid, varying.predict(grid, num_samples=300), band)
    band.plot(grid, torch.sin(2 * grid), color=_TRUTH, linewidth=0.8, linestyle=":", label="truth")
    band.plot(x, y, "o", color=_TRUTH, markersize=2, label="observations")
    band.set(ylim=(-4.5, 2.5), title="predictive_band")
    band.legend(fontsize="small", loc="lower left")
    for network, label, color in (
        (constant, "constant noise", plotting.ORANGE),
        (varying, "varying noise", plotting.BLUE),
    ):
        plotting.calibration_curve(network.predict(x_test), y_test, calibration, color=color, label=label)
    calibration.legend(loc="upper left")
    calibration.set_title("calibration_curve")
    plotting.uncertainty_against_error(varying.predict(x_test), y_test, errors)
    errors.legend(loc="upper left")
    errors.set_title("uncertainty_against_error")
    save(figure, path)


def training(path: Path, epochs: int) -> None:
    """The ELBO by epoch, and what is correlated in a dense posterior."""
    x, y = wave(200, seed=0)
    network, history = train(
        mlp(1, 6, 1),
        noisynat.GaussianLikelihood("gamma", a0=1.0, b0=0.001, initial_std=0.2),
        x,
        y,
        epochs,
        posterior="dense",
    )
    figure, (elbo, correlation, precision) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    plotting.elbo_history(history, elbo, skip=epochs // 20)
    elbo.set_title("elbo_history")
    plotting.posterior_matrix(network.posteriors[0], correlation)
    correlation.set_title('posterior_matrix, "correlation"', fontsize="medium")
    plotting.posterior_matrix(network.posteriors[0], precision, kind="precision")
    precision.set_title('posterior_matrix, "precision"', fontsize="medium")
    save(figure, path)


def classification(path: Path, epochs: int) -> None:
    """Entropy and mutual information over the plane, and the reliability diagram."""
    x, y = moons(200, seed=0)
    network, _ = train(mlp(2, 30, 2, nn.ReLU), noisynat.CategoricalLikelihood(), x, y, epochs)
    figure, (entropy, information, reliability) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    across, up = torch.linspace(-4, 4, 81), torch.linspace(-3.5, 3.5, 71)
    plane = torch.cartesian_prod(across, up)
    prediction = network.predict(plane, num_samples=300)
    for axes, name, values in (
        (entropy, "entropy", prediction.entropy),
        (information, "mutual_information", prediction.mutual_information),
    ):
        _map(axes, across, up, values)
        for number, (marker, color) in enumerate((("o", "white"), ("s", plotting.RED))):
            axes.plot(
                *x[y == number].T, marker, color=color, markersize=3, markeredgecolor="black", markeredgewidth=0.3
            )
        axes.set(title=name, xlabel="first input", ylabel="second input")
    x_test, y_test = moons(2000, seed=1)
    plotting.reliability_diagram(network.predict(x_test), y_test, reliability)
    reliability.set(title="reliability_diagram", xlim=(0.45, 1.02), ylim=(0.3, 1.02))
    save(figure, path)


def _map(axes: Axes, across: Tensor, up: Tensor, values: Tensor) -> None:
    shades = axes.contourf(across, up, values.reshape(len(across), len(up)).T, levels=10, cmap="cividis")
    axes.figure.colorbar(shades, ax=axes, label="nats")


def main(
    output: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("results/pictures"),
    epochs: Annotated[int, typer.Option(min=2, help="Of training.")] = 300,
) -> None:
    """Train small networks and draw them."""
    torch.set_num_threads(1)
    for draw in (regression, training, classification):
        path = output / f"{draw.__name__}.png"
        draw(path, epochs)
        print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
