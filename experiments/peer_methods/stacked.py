"""R networks of one hidden layer, trained together: batched matrix products instead of R training loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import noisynat


class StackedMLP(nn.Module):
    """R independent ReLU networks with one hidden layer; network r sees only x[r].

    Every network begins with the initial weights that ``nn.Linear`` would draw for it.

    Args:
        count: R.
        features: input columns.
        hidden: units.
        outputs: K.
        seed: of the initial weights.
    """

    def __init__(self, count: int, features: int, hidden: int, outputs: int = 1, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(fan_in))

        self.weight1 = uniform(count, features, hidden, fan_in=features)
        self.bias1 = uniform(count, 1, hidden, fan_in=features)
        self.weight2 = uniform(count, hidden, outputs, fan_in=hidden)
        self.bias2 = uniform(count, 1, outputs, fan_in=hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, B, K) of inputs (R, B, features)."""
        hidden = torch.baddbmm(self.bias1, x, self.weight1).relu()
        return torch.baddbmm(self.bias2, hidden, self.weight2)

    def squared_norm(self) -> Tensor:
        """Sum of squares of all weights and biases of every network, (R,)."""
        return torch.stack([weight.square().sum((1, 2)) for weight in self.parameters()]).sum(0)

    def single(self, index: int) -> nn.Sequential:
        """Network ``index`` by itself, with copies of its weights."""
        features, hidden = self.weight1.shape[1:]
        outputs = self.weight2.shape[2]
        first = nn.utils.skip_init(nn.Linear, features, hidden)  # draws nothing
        second = nn.utils.skip_init(nn.Linear, hidden, outputs)
        with torch.no_grad():
            first.weight.copy_(self.weight1[index].T)
            first.bias.copy_(self.bias1[index, 0])
            second.weight.copy_(self.weight2[index].T)
            second.bias.copy_(self.bias2[index, 0])
        return nn.Sequential(first, nn.ReLU(), second)


def gaussian_nll(mean: Tensor, y: Tensor, log_std: Tensor) -> Tensor:
    """-log N(y; mean, exp(log_std)^2), elementwise, in nats."""
    return 0.5 * ((y - mean) * (-log_std).exp()).square() + log_std + 0.5 * math.log(2 * math.pi)


def descend(
    step_loss: Callable[[Tensor, Tensor], Tensor],
    parameters: list[nn.Parameter],
    batches: noisynat.TensorBatches,
    epochs: int,
    lr: float,
) -> None:
    """Adam with a learning rate that falls to zero along a cosine.

    Args:
        step_loss: a scalar of a batch x (R, B, features), y (R, B, 1); summed over networks, so that they do not mix.
        parameters: to train.
        batches: of all networks.
        epochs: passes over the data.
        lr: at the beginning.
    """
    optimizer = torch.optim.Adam(parameters, lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            step_loss(x, y).backward()
            optimizer.step()
            scheduler.step()
