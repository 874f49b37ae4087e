"""Networks for images: a LeNet, a small VGG and ResNet-20, for any size and number of channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, int, int]


def lenet(shape: Shape, classes: int, dropout: float = 0.0) -> nn.Module:
    """Two convolutions with pooling and three linear layers, as LeNet-5 (LeCun et al. 1998), with ReLU.

    Args:
        shape: channels, height and width of an image.
        classes: outputs.
        dropout: of the inputs of the last two layers.
    """
    small = shape[-1] < 16
    features = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3 if small else 5, padding=1 if small else 0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(
        *features, nn.Linear(_outputs(features, shape), 120), nn.ReLU(), *_dropout(dropout), nn.Linear(120, 84),
        nn.ReLU(), *_dropout(dropout), nn.Linear(84, classes),
    )  # fmt: skip


def vgg_small(shape: Shape, classes: int, dropout: float = 0.0) -> nn.Module:
    """Two pairs of 3 x 3 convolutions of 32 and 64 channels, pooling after each, and two linear layers.

    Args:
        shape: as for :func:`lenet`.
        classes: likewise.
        dropout: of the inputs of the linear layers.
    """
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    features = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(
        *features, *_dropout(dropout), nn.Linear(_outputs(features, shape), 128), nn.ReLU(), *_dropout(dropout),
        nn.Linear(128, classes),
    )  # fmt: skip


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet20(nn.Sequential):
    """Nine blocks of 16, 32 and 64 channels, for small images (He et al. 2016, section 4.2).

    Args:
        shape: as for :func:`lenet`.
        classes: likewise.
        dropout: of the inputs of the last layer.
    """

    def __init__(self, shape: Shape, classes: int, dropout: float = 0.0) -> None:
        widths = (16, 32, 64)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        channels = 16
        for width in widths:
            for _ in range(3):
                layers.append(Block(channels, width, 1 if width == channels else 2))
                channels = width
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_dropout(dropout), nn.Linear(channels, classes)
        )


NETWORKS: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "lenet": lenet,
    "vgg-small": vgg_small,
    "resnet-20": ResNet20,
}


def _outputs(features: nn.Module, shape: Shape) -> int:
    with torch.no_grad():
        return int(features(torch.zeros(1, *shape)).shape[1])


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []
