"""The loss of scalar outputs, its gradient and the curvature's statistics from one backward pass.

With one output per example, the gradient of the loss and the columns of the Gauss-Newton matrix are multiples, example
by example, of the derivatives of the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisynat.likelihoods.base import Likelihood


class AttachedGradients(torch.autograd.Function):
    """A value with gradients that are known: those of weights (*batch, out, columns) are sums of products g^T a."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        """``value`` (*batch,).

        Args:
            ctx: of autograd.
            value: without a graph.
            count: L, of the weights.
            tensors: L gradients g (*batch, rows, out), L activations a (*batch, rows, columns) and L weights.
        """
        ctx.save_for_backward(*tensors[: 2 * count])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        rows, activations = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        factor = gradient[..., None, None]
        of_weights = [(factor * g).mT @ a for g, a in zip(rows, activations, strict=True)]
        return None, None, *(None for _ in range(2 * count)), *of_weights


def loss_and_statistics(
    likelihood: Likelihood,
    f: Tensor,
    y: Tensor,
    outputs: Sequence[Tensor],
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The mean negative log-likelihood (*replicas,) with its gradient, and the gradients for the statistics.

    The latter are (1, *replicas, B, T, out) for every use of a layer.

    Args:
        likelihood: with a root of its Hessian, and without parameters of its own to be trained.
        f: network outputs (*replicas, B, 1), with their graph, which is used up.
        y: targets.
        outputs: of every use of a layer in that graph, (*replicas, B, T, out).
        activations: the inputs of these uses, (*replicas, B, T, columns).
        weights: of their layers, (*replicas, out, columns).
    """
    given = f.detach().requires_grad_()
    with torch.enable_grad():
        loss = -likelihood.log_prob(given, y).mean(-1)
    (slope,) = torch.autograd.grad(loss.sum(), given)
    derivatives = [d.to(f.dtype) for d in torch.autograd.grad(f, outputs, torch.ones_like(f))]
    slope, root = slope.unsqueeze(-1), likelihood.hessian_root(f.detach()).unsqueeze(-1)
    rows = [(slope * d).flatten(-3, -2) for d in derivatives]
    inputs = [a.to(f.dtype).flatten(-3, -2) for a in activations]
    attached: Tensor = AttachedGradients.apply(loss.detach(), len(rows), *rows, *inputs, *weights)
    return attached, [root * d for d in derivatives]
