"""Maximum a posteriori networks: the common beginning of the Laplace approximation and of ensembles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import noisynat
from experiments.peer_methods.stacked import StackedMLP, descend, gaussian_nll

Noise = Literal["unit", "learned", "per_input"]


def train_map(
    x: Tensor,
    y: Tensor,
    hidden: int,
    prior_precision: float,
    noise: Noise,
    *,
    epochs: int,
    batch_size: int,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[StackedMLP, Tensor]:
    """R networks at the maximum of log p(y | x, w) + log N(w; 0, 1 / prior_precision).

    Args:
        x: standardized inputs (R, N, features).
        y: standardized targets (R, N, 1).
        hidden: units.
        prior_precision: of every weight and bias.
        noise: standard deviation of the observations: 1, one learned value per network, or a second output.
        epochs: passes over the data.
        batch_size: B.
        lr: of Adam at the beginning.
        seed: of initial weights and batches.

    Returns:
        The networks and the noise's log standard deviation (R,), zero unless it was learned.
    """
    count, num_data, features = x.shape
    net = StackedMLP(count, features, hidden, 2 if noise == "per_input" else 1, seed=seed)
    log_std = nn.Parameter(torch.zeros(count, 1, 1), requires_grad=noise == "learned")
    weight = prior_precision / (2 * num_data)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        output = net(x)
        scale = output[..., 1:] if noise == "per_input" else log_std
        return gaussian_nll(output[..., :1], y, scale).mean((1, 2)).sum() + (weight * net.squared_norm()).sum()

    batches = noisynat.TensorBatches(x, y, batch_size, replicas=(count,), seed=seed)
    parameters = [*net.parameters()] + ([log_std] if noise == "learned" else [])
    descend(loss, parameters, batches, epochs, lr)
    return net, log_std.detach()[:, 0, 0]
