"""Variational scales and shifts of normalization layers: two weights a unit, so that a full covariance is affordable.

The normalized input of a unit is multiplied by its scale, and its shift is added: a linear layer of one input and one
output for each unit. Where other layers' posteriors have Kronecker form, these have the 2 x 2 covariance of each unit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisynat.layers.base import VariationalLayer
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream

Normalization = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm


class VariationalNorm(VariationalLayer):
    """A batch, layer or group normalization with a Gaussian posterior over each unit's scale and shift, jointly.

    The mean (*replicas, units, columns) has the scale of each unit *less 1*, and its shift: a prior of mean zero is one
    of scales about 1. Units are channels, or, in a layer normalization, what it normalizes. Inputs and outputs are
    (*replicas, B, channels, *space) or (*replicas, B, *locations, *normalized_shape). In ``train()`` a batch
    normalization uses the batch's statistics and averages them, over sampled weights, for ``eval()``; see
    :func:`noisynat.update_bn`.

    Args:
        norm: the ordinary layer, with weights; gives the normalization and the mean.
        replicas: leading dimensions of the parameters.

    Raises:
        ValueError: if replicas would share a batch normalization's statistics.
    """

    full_covariance = True

    def __init__(self, norm: Normalization, replicas: Sequence[int] = ()) -> None:
        assert norm.weight is not None
        units = norm.weight.numel()
        super().__init__(1, units, norm.bias is not None, replicas, groups=units)
        if replicas and isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            raise ValueError("replicas of a batch normalization would share its statistics; use another normalization")
        self.units = tuple(norm.weight.shape) if isinstance(norm, nn.LayerNorm) else None  # None: channels
        self.normalize = copy.deepcopy(norm)
        self.normalize.register_parameter("weight", None)
        self.normalize.register_parameter("bias", None)
        shape = (*self.batch_shape, units, self.columns)
        self.mean = nn.Parameter(torch.zeros(shape, dtype=norm.weight.dtype, device=norm.weight.device))

    @classmethod
    def from_norm(
        cls, norm: Normalization, replicas: Sequence[int], stream: RandomStream, *, same: bool = False
    ) -> Self:
        """A layer whose replicas all start from ``norm``'s weights, as those are no random numbers."""
        layer = cls(norm, replicas)
        bias = None if norm.bias is None else norm.bias.detach()
        layer.start_from(layer.mean_of(norm.weight.detach(), bias), stream, same=True)
        return layer

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.units or (self.out_features,)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs, with sample dimensions in front while draws are fixed, to outputs of the same shape."""
        weight, grouped = self._drawn or Draw(self.mean)
        lead = weight.dim() - 2 - grouped  # sample and replica dimensions
        h = self.normalize(x) if self.units else self.normalize(x.flatten(0, lead)).view(x.shape)
        s = self._by_group_of_examples(h, weight, lead) if grouped else self._apply_weight(h, weight)
        if self._drawn is None and self.training and self._posterior:
            s = s + self._in_place_of(self._noise(self.activations(h)), s)
        return self._recorded(h, s)

    def mean_of(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.joined(weight - 1, bias)

    def weights_of(self, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        scale, shift = self.parted(mean)
        return scale + 1, shift

    def inputs_of(self, module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return functional.group_norm(x, module.num_groups, eps=module.eps)
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if module.training or not module.track_running_stats:
            return functional.batch_norm(x, None, None, training=True, eps=module.eps)
        return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)

    def activations(self, inputs: Tensor) -> Tensor:
        return self._with_constant(self.by_location(inputs))

    def by_location(self, outputs: Tensor, lead: int = 0) -> Tensor:
        examples = outputs.shape[: lead + len(self.batch_shape) + 1]
        if self.units:
            rows = outputs.reshape(*examples, -1, self.out_features)  # (*, *replicas, B, T, units)
        else:
            rows = outputs.reshape(*examples, self.out_features, -1).mT
        return rows.movedim(-1, -3).unsqueeze(-1)

    def _in_place_of(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`by_location`."""
        rows = rows.squeeze(-1).movedim(-3, -1)
        return (rows if self.units else rows.mT).reshape(like.shape)

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        lead = weight.shape[:-2]
        if self.units:
            shape = (*lead, *(1,) * (x.dim() - len(lead) - len(self.units)), *self.units)
        else:
            shape = (*lead, 1, self.out_features, *(1,) * (x.dim() - len(lead) - 2))
        s = x * (1 + weight[..., 0].reshape(shape))
        return s + weight[..., 1].reshape(shape) if self.has_bias else s

    def extra_repr(self) -> str:
        replicas = f", replicas={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"{self.weight_shape}, bias={self.has_bias}{replicas}"
