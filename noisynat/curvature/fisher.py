"""Which gradients feed the curvature: exact Gauss-Newton, sampled Fisher or empirical Fisher.

All three are gradients of single examples' log-likelihoods in the network's outputs, never of a batch mean,
and never taken from the training loss, so they do not depend on its scaling. Kunstner et al. (2019) on
why the empirical Fisher is the last choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from noisynat.curvature.statistics import nothing

if TYPE_CHECKING:
    from noisynat.likelihoods.base import Likelihood
    from noisynat.random import RandomStream

FisherKind = Literal["ggn", "mc", "empirical"]
FISHER_KINDS = ("ggn", "mc", "empirical")
MAX_GGN_OUTPUTS = 10
MAX_GGN_OUTPUTS_WIDE = 2


def default_kind(outputs: int, has_hessian_root: bool = True, *, wide: bool = False) -> FisherKind:
    """``"ggn"`` costs one backward pass per output; beyond 10 outputs ``"mc"``, with one pass, is the default.

    So it is beyond 2 outputs in wide networks, where passes cost more than what is done beside them, and for
    likelihoods that have no Hessian's root.
    """
    most = MAX_GGN_OUTPUTS_WIDE if wide else MAX_GGN_OUTPUTS
    return "ggn" if outputs <= most and has_hessian_root else "mc"


def output_gradients(
    likelihood: Likelihood, f: Tensor, y: Tensor | None, kind: FisherKind, stream: RandomStream
) -> Tensor:
    """Gradients in the outputs whose outer products average to the Fisher, (columns, *batch, B, K).

    Args:
        likelihood: supplies the Hessian's root, samples and log-probabilities.
        f: network outputs (*batch, B, K).
        y: targets, used by ``"empirical"`` only.
        kind: ``"ggn"`` (K columns of the Hessian's root), ``"mc"`` (targets sampled from the model),
            ``"empirical"`` (the actual targets).
        stream: of random numbers, used by ``"mc"`` only.
    """
    f = f.detach()
    if kind == "ggn":
        return _without_denormals(likelihood.hessian_root(f))
    targets = likelihood.sample(f, stream) if kind == "mc" else y
    assert targets is not None
    with torch.enable_grad():
        f = f.requires_grad_()
        log_prob = likelihood.log_prob(f, targets).sum()
    return _without_denormals(torch.autograd.grad(log_prob, f)[0].unsqueeze(0))


def _without_denormals(columns: Tensor) -> Tensor:
    """Those of examples that are learned by heart underflow, and would slow down all passes back."""
    return functional.hardshrink(columns, nothing(columns.dtype))


def layer_gradients(f: Tensor, layer_outputs: Sequence[Tensor], columns: Tensor) -> list[Tensor]:
    """Back-propagate every column to every layer's output.

    Args:
        f: network outputs (*batch, B, K), with a graph, which is kept.
        layer_outputs: tensors of that graph.
        columns: (columns, *batch, B, K).

    Returns:
        Per layer output s of shape (...): gradients (columns, ...), zero where f does not depend on s.
    """
    per_column = [
        torch.autograd.grad(f, layer_outputs, column, retain_graph=True, allow_unused=True) for column in columns
    ]
    return [
        torch.stack([torch.zeros_like(s) if grads[i] is None else grads[i] for grads in per_column])
        for i, s in enumerate(layer_outputs)
    ]
