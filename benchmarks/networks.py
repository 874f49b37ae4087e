"""The networks that steps are measured on. A new one is one more entry of :data:`NETWORKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import noisynat


class Shape(NamedTuple):
    """Of a layer's weight, its bias being the last column, and at how many locations it sees an example."""

    out: int
    columns: int
    locations: int = 1


@dataclass(frozen=True)
class Network:
    """A network and what it is trained on.

    Args:
        name: on the command line and in tables.
        title: for readers.
        make: an untrained copy.
        input_shape: of one example.
        task: targets are numbers, or classes.
        outputs: of the network.
        batch: examples of a batch.
        num_data: N.
        replicas: how many networks our own methods train at once; the others train one.
        num_batches: that training goes through again and again.
        learning_rate: of all optimizers. It is tiny, so that no network learns its few batches by heart: gradients and
            statistics would shrink to denormal numbers, which many processors compute with very slowly.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    task: Literal["regression", "classification"]
    outputs: int
    batch: int
    num_data: int
    replicas: int | None = None
    num_batches: int = 16
    learning_rate: float = 1e-5

    def likelihood(self) -> noisynat.Likelihood:
        """For our own methods."""
        return noisynat.CategoricalLikelihood() if self.task == "classification" else noisynat.GaussianLikelihood(0.5)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """For the others: mean cross-entropy or squared error."""
        return functional.cross_entropy if self.task == "classification" else functional.mse_loss

    @property
    def shares_weights(self) -> bool:
        """Whether a layer sees an example at several locations."""
        return any(shape.locations > 1 for shape in self.layer_shapes())

    def layer_shapes(self) -> list[Shape]:
        """Of all linear and convolutional layers, in the order of a forward pass."""
        net, shapes = self.make(), []

        def see(layer: nn.Module, _: object, output: Tensor) -> None:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            weight = layer.weight.flatten(1)
            shapes.append(
                Shape(len(weight), weight.shape[1] + (layer.bias is not None), output[0].numel() // len(weight))
            )

        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_hook(see)
        with torch.no_grad():
            net(torch.zeros(1, *self.input_shape))
        return shapes

    def batches(self, device: torch.device, replicas: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """A few random batches, the same in every call."""
        generator = torch.Generator().manual_seed(0)
        lead = (self.batch,) if replicas is None else (replicas, self.batch)
        batches = []
        for _ in range(self.num_batches):
            x = torch.randn(*lead, *self.input_shape, generator=generator)
            if self.task == "classification":
                y = torch.randint(self.outputs, lead, generator=generator)
            else:
                y = torch.randn(*lead, self.outputs, generator=generator)
            batches.append((x.to(device), y.to(device)))
        return batches


def dense(sizes: Sequence[int]) -> nn.Module:
    """Linear layers of ``sizes`` with ReLU between them, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def digits(name: str, hidden: Sequence[int], batch: int = 128) -> Network:
    """784 inputs, ReLU layers, 10 classes, 60,000 examples."""
    sizes = (784, *hidden, 10)
    title = f"{'-'.join(map(str, sizes))}, batch {batch}"
    return Network(name, title, partial(dense, sizes), (784,), "classification", 10, batch, 60_000)


def lenet(sizes: Sequence[int], kernel: int) -> nn.Module:
    """Two convolutions, each with ReLU and pooling, and dense layers of ``sizes[2:]``, always with the same weights."""
    first, second, *hidden = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = nn.Sequential(
            nn.Conv2d(1, first, kernel, padding=kernel // 2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        inputs = images(torch.zeros(1, 1, 28, 28)).shape[1]
        return nn.Sequential(*images, *dense((inputs, *hidden)).children())


def images(name: str, sizes: Sequence[int], kernel: int) -> Network:
    """28 x 28 images of one channel, a network as :func:`lenet` makes, 10 classes, 60,000 examples, batch 128."""
    channels, units = (" and ".join(map(str, sizes[:2])), "-".join(map(str, sizes[2:])))
    title = f"convolutions of {channels} channels, {kernel} x {kernel}, then {units}; batch 128"
    return Network(name, title, partial(lenet, sizes, kernel), (1, 28, 28), "classification", 10, 128, 60_000)


def table(name: str = "table", replicas: int = 20) -> Network:
    """13 inputs, 50 units, one output, 455 examples: Boston housing's shape, as many networks as it has splits."""
    title = f"13-50-1, batch 32, {replicas} {'replica' if replicas == 1 else 'replicas'}"
    return Network(name, title, partial(dense, (13, 50, 1)), (13,), "regression", 1, 32, 455, replicas)


NETWORKS = {
    network.name: network
    for network in (
        table(),
        digits("mlp", (1000, 1000)),
        digits("mlp-512", (1000, 1000), batch=512),
        images("lenet", (6, 16, 120, 84, 10), kernel=5),
        images("conv", (32, 64, 128, 10), kernel=3),
    )
}


@dataclass(frozen=True)
class Sweep:
    """Networks that differ in one number.

    Args:
        name: of the number.
        title: for readers.
        make: the network, from that number.
        sizes: the numbers, and those of a quick run.
        quick_sizes: likewise.
    """

    name: str
    title: str
    make: Callable[[int], Network]
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, ...]


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "width", "784-w-w-10, batch 128",
            lambda width: digits(f"width-{width}", (width, width)), (128, 256, 512, 1024, 2048, 4096), (64, 128),
        ),
        Sweep(
            "depth", "784-500-...-500-10 with d hidden layers, batch 128",
            lambda depth: digits(f"depth-{depth}", (500,) * depth), (1, 2, 4, 8, 16), (1, 2),
        ),
        Sweep(
            "batch", "784-1000-1000-10, batch b",
            lambda batch: digits(f"batch-{batch}", (1000, 1000), batch), (16, 32, 64, 128, 256, 512, 1024, 2048),
            (16, 32),
        ),
        Sweep(
            "replicas", "13-50-1, batch 32, r replicas",
            lambda replicas: table(f"replicas-{replicas}", replicas), (1, 2, 5, 10, 20, 50, 100, 200), (1, 5),
        ),
    )
}  # fmt: skip
