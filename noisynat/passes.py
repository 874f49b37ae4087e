"""The loss of a training pass, and what the pass tells the curvature.

With one output per example, the gradient of the loss and the columns of the Gauss-Newton matrix are multiples, example
by example, of the derivatives of the outputs: one backward pass gives both. Otherwise there are several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisynat.curvature import fisher
from noisynat.layers.base import Record, VariationalLayer
from noisynat.likelihoods.base import Likelihood
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.natural import NaturalPosterior
from noisynat.random import RandomStream

Statistics = list[tuple[Tensor, Tensor]]
"""Per layer: activations (*replicas, [groups,] B, T, columns) and gradients (K, *replicas, [groups,] B, T, out)."""


def loss_and_statistics(
    likelihood: Likelihood,
    f: Tensor,
    y: Tensor,
    layers: Sequence[VariationalLayer],
    records: Sequence[Sequence[Record]],
    kind: fisher.FisherKind,
    stream: RandomStream,
    *,
    only_means: bool,
    first: slice = slice(None),
) -> tuple[Tensor, Statistics]:
    """The mean negative log-likelihood (*replicas,) of a batch, to be back-propagated, and its statistics.

    Args:
        likelihood: of the targets.
        f: network outputs (*replicas, B, K), with their graph.
        y: targets.
        layers: with a posterior.
        records: of their uses in the pass, per layer.
        kind: of the statistics.
        stream: of random numbers.
        only_means: whether nothing but the layers' means has a gradient.
        first: which examples the statistics are of.

    Raises:
        RuntimeError: if a layer has no uses.
    """
    _check_uses(layers, records)
    uses = [use for of_layer in records for use in of_layer]
    trained = any(p.requires_grad for p in likelihood.parameters())
    by_products = all(layer.is_product for layer in layers)  # as the gradients are then
    if f.shape[-1] == 1 and kind == "ggn" and f.requires_grad and only_means and by_products and not trained:
        weights = [layer.mean for layer, of_layer in zip(layers, records, strict=True) for _ in of_layer]
        loss, gradients = _in_one_pass(likelihood, f, y, uses, weights)
        return loss, _joined(layers, records, gradients, first)
    loss = -likelihood.log_prob(f, y).mean(-1)
    if not loss.requires_grad:
        return loss, []
    return loss, statistics_of_pass(likelihood, f, y, layers, records, kind, stream, first)


def statistics_of_pass(
    likelihood: Likelihood,
    f: Tensor,
    y: Tensor | None,
    layers: Sequence[VariationalLayer],
    records: Sequence[Sequence[Record]],
    kind: fisher.FisherKind,
    stream: RandomStream,
    first: slice = slice(None),
) -> Statistics:
    """Statistics by a backward pass per column of the Fisher's root; arguments as for :func:`loss_and_statistics`."""
    _check_uses(layers, records)
    columns = fisher.output_gradients(likelihood, f, y, kind, stream)
    uses = [use for of_layer in records for use in of_layer]
    return _joined(layers, records, fisher.layer_gradients(f, [use.outputs for use in uses], columns), first)


def are_due(posteriors: Sequence[Posterior]) -> bool:
    """Whether the next loss feeds the curvature of one of them."""
    return any(isinstance(one, NaturalPosterior) and one.curvature.statistics_due for one in posteriors)


def feed(posteriors: Sequence[Posterior], statistics: Statistics) -> None:
    """Give statistics, of one posterior's layers after the other's, to those posteriors for which they are due."""
    rest = iter(statistics)
    for posterior in posteriors:
        assert isinstance(posterior, NaturalPosterior)
        chosen = [next(rest) for _ in posterior.layers]
        if posterior.curvature.statistics_due:
            posterior.accumulate([a for a, _ in chosen], [g for _, g in chosen])


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


def _in_one_pass(
    likelihood: Likelihood, f: Tensor, y: Tensor, uses: Sequence[Record], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The loss with its gradient in ``weights``, one per use, and the uses' gradients (1, *replicas, B, T, out)."""
    given = f.detach().requires_grad_()
    with torch.enable_grad():
        loss = -likelihood.log_prob(given, y).mean(-1)
    (slope,) = torch.autograd.grad(loss.sum(), given)
    derivatives = torch.autograd.grad(f, [use.outputs for use in uses], torch.ones_like(f))
    derivatives = tuple(d.to(f.dtype) for d in derivatives)
    slope, root = slope.unsqueeze(-1), likelihood.hessian_root(f.detach()).unsqueeze(-1)
    rows = [(slope * d).flatten(-3, -2) for d in derivatives]
    inputs = [use.inputs.to(f.dtype).flatten(-3, -2) for use in uses]
    attached: Tensor = AttachedGradients.apply(loss.detach(), len(rows), *rows, *inputs, *weights)
    return attached, [root * d for d in derivatives]


def _check_uses(layers: Sequence[VariationalLayer], records: Sequence[Sequence[Record]]) -> None:
    for layer, uses in zip(layers, records, strict=True):
        if not uses:
            raise RuntimeError(f"layer {layer.name!r} took no part in the forward pass, so it has no curvature")


def _joined(
    layers: Sequence[VariationalLayer],
    records: Sequence[Sequence[Record]],
    gradients: Iterable[Tensor],
    first: slice,
) -> Statistics:
    """Activations and gradients of all uses of a layer, as locations of one, of the ``first`` examples."""
    of_uses, statistics = iter(gradients), []
    for layer, uses in zip(layers, records, strict=True):
        dtype, lead = layer.mean.dtype, (slice(None),) * len(layer.batch_shape)
        a = [layer.activations(use.inputs[(*lead, first)]).to(dtype) for use in uses]
        g = [layer.by_location(next(of_uses)[(slice(None), *lead, first)], 1).to(dtype) for _ in uses]
        statistics.append((torch.cat(a, dim=-2), torch.cat(g, dim=-2)))
    return statistics
