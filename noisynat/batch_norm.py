"""Batch normalization's averages for sampled weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from noisynat.network import VariationalNetwork


@torch.no_grad()
def update_bn(
    network: VariationalNetwork,
    data: Iterable[Tensor | Sequence[Tensor]],
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Average the statistics of all batch normalizations anew, over the data and over the posterior.

    Training keeps running averages, of the batches and weights of its last steps, and predictions with sampled weights
    use them. They lag behind where training was short, or its last steps were long; this replaces them by plain
    averages, each batch with a draw of the weights of its own.

    Args:
        network: whose ``running_mean`` and ``running_var`` are replaced; nothing else changes.
        data: batches of inputs, or (x, y) of which y is not used.
        generator: of the draws; by default the network's own evaluation stream.

    Raises:
        ValueError: if there are no batches.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=10)
        >>> noisynat.update_bn(bnn, [torch.randn(5, 2), torch.randn(5, 2)])
    """
    norms = [module for module in network.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    modes = [(module, module.training) for module in network.modules()]
    momenta, before = [norm.momentum for norm in norms], [_averages(norm) for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    batches = 0
    try:
        for batch in data:
            with network.sampled_weights(generator):
                network(batch if isinstance(batch, Tensor) else batch[0])
            batches += 1
    finally:
        for norm, momentum, averages in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not batches:
                norm.load_state_dict({**norm.state_dict(), **averages})
        for module, training in modes:
            module.training = training
    if not batches:
        raise ValueError("data gave no batches")


def _averages(norm: nn.modules.batchnorm._BatchNorm) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers(recurse=False)}
