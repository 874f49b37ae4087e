"""Variational convolutions: linear layers that see an image's patches, one at each location.

As a product of patches and weights, a convolution is a linear layer with weight sharing, and its curvature is that of
Grosse and Martens (2016, KFC). Passes go through PyTorch's own convolutions, and patches are cut out only where
statistics, or noise at the outputs, need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisynat.layers.base import VariationalLayer
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d}


@dataclass(frozen=True)
class Window:
    """Where a convolution looks, in one entry per spatial dimension.

    Args:
        kernel: extent of a patch.
        stride: between patches.
        dilation: between a patch's entries.
        padding: before and after, of each dimension.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, conv: nn.Conv1d | nn.Conv2d) -> Window:
        """That of an ordinary layer, whose padding may be a word."""
        kernel, dilation = tuple(conv.kernel_size), tuple(conv.dilation)
        if conv.padding == "valid":
            padding = tuple((0, 0) for _ in kernel)
        elif conv.padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((t // 2, t - t // 2) for t in total)
        else:
            padding = tuple((int(p), int(p)) for p in conv.padding)
        return cls(kernel, tuple(conv.stride), dilation, padding, conv.padding_mode)

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """PyTorch's convolution of x (B, channels, *space) with a weight (out, channels / groups, *kernel)."""
        if self.padding_mode == "zeros" and all(before == after for before, after in self.padding):
            padding = tuple(before for before, _ in self.padding)
        else:
            x, padding = self._padded(x), (0,) * self.dims
        return _CONVOLUTIONS[self.dims](x, weight, bias, self.stride, padding, self.dilation, groups)

    def patches(self, x: Tensor) -> Tensor:
        """What each location sees of x (B, channels, *space): (B, T, channels * kernel), in the weight's order."""
        x = self._padded(x)
        window = self.kernel, self.dilation, (0,) * self.dims, self.stride
        if self.dims == 1:
            x = x.unsqueeze(-2)
            window = (1, *self.kernel), (1, *self.dilation), (0, 0), (1, *self.stride)
        return functional.unfold(x, *window).mT

    def _padded(self, x: Tensor) -> Tensor:
        if not any(before or after for before, after in self.padding):
            return x
        sides = [side for pair in reversed(self.padding) for side in pair]
        return functional.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)


class VariationalConv(VariationalLayer):
    """``nn.Conv1d`` or ``nn.Conv2d`` with a Gaussian posterior over its weight and bias, jointly.

    Inputs are (*replicas, B, channels, *space), outputs (*replicas, B, out, *space). A weight's row has the entries of
    a patch, channel after channel, and the bias at its end. Groups of channels are independent of each other.

    Args:
        in_channels: channels of the inputs.
        out_channels: channels of the outputs.
        window: kernel, stride, dilation and padding.
        groups: as for ``nn.Conv2d``.
        bias: whether there is a bias column.
        replicas: leading dimensions of the parameters.
        dtype: of the mean.
        device: of the mean.
    """

    convolves = True
    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: Window,
        groups: int = 1,
        bias: bool = True,
        replicas: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        if window.dims != self.dims:
            raise ValueError(f"{type(self).__name__} wants a window of {self.dims} dimensions, got {window}")
        self.in_channels, self.window = in_channels, window
        size = in_channels // groups
        for extent in window.kernel:
            size *= extent
        super().__init__(size, out_channels, bias, replicas, groups)
        shape = (*self.batch_shape, out_channels, self.columns)
        self.mean = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    @classmethod
    def from_conv(
        cls, conv: nn.Conv1d | nn.Conv2d, replicas: Sequence[int], stream: RandomStream, *, same: bool = False
    ) -> Self:
        """A layer that starts from ``conv``'s weights.

        Args:
            conv: gives sizes, window, dtype, device and weights.
            replicas: leading dimensions. The first replica has ``conv``'s weights.
            stream: of the other replicas' initial weights, uniform in +-1/sqrt(fan-in) as ``nn.Conv2d``'s own.
            same: start all replicas from ``conv``'s weights instead.
        """
        weight, bias = conv.weight.detach(), conv.bias
        layer = cls(
            conv.in_channels, conv.out_channels, Window.of(conv), conv.groups, bias is not None, replicas,
            weight.dtype, weight.device,
        )  # fmt: skip
        layer.start_from(layer.mean_of(weight, None if bias is None else bias.detach()), stream, same=same)
        return layer

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_channels // self.groups, *self.window.kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map (*sample, *replicas, B, channels, *space) to (*sample, *replicas, B, out, *space).

        Sample dimensions are there only while weights of several draws are fixed by
        :func:`~noisynat.layers.base.drawn_weights`.

        Raises:
            ValueError: if x has another number of channels or of dimensions.
        """
        weight, grouped = self._drawn or Draw(self.mean)
        lead = weight.dim() - 2 - grouped  # sample and replica dimensions
        if x.dim() != lead + 2 + self.dims or x.shape[lead + 1] != self.in_channels:
            raise ValueError(
                f"layer {self.name!r} takes images of {self.in_channels} channels, "
                f"{'(*replicas, ' if lead else '('}B, {self.in_channels}, *space), got shape {tuple(x.shape)}"
            )
        s = self._by_group_of_examples(x, weight, lead) if grouped else self._apply_weight(x, weight)
        if self._drawn is None and self.training and self._posterior:
            s = s + self._as_images(self._noise(self.activations(x)), s)
        return self._recorded(x, s)

    def inputs_of(self, module: nn.Module, x: Tensor) -> Tensor:
        return x

    def activations(self, inputs: Tensor) -> Tensor:
        batch = inputs.shape[: -self.dims - 1]
        rows = self.window.patches(inputs.flatten(0, -self.dims - 2)).unflatten(0, batch)
        if self.groups > 1:
            rows = rows.unflatten(-1, (self.groups, -1)).movedim(-2, -4)
        return self._with_constant(rows)

    def by_location(self, outputs: Tensor, lead: int = 0) -> Tensor:
        rows = outputs.flatten(-self.dims).mT  # (*, B, T, out)
        return rows if self.groups == 1 else rows.unflatten(-1, (self.groups, -1)).movedim(-2, -4)

    def _as_images(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`by_location`."""
        if self.groups > 1:
            rows = rows.movedim(-4, -2).flatten(-2)
        return rows.mT.reshape(like.shape)

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        lead = weight.shape[:-2]  # networks, which are groups of channels of a single one
        networks = lead.numel()
        flat = weight.reshape(networks * self.out_features, self.columns)
        kernels = flat[:, : self.in_features].unflatten(-1, self.weight_shape[1:])
        bias = flat[:, -1] if self.has_bias else None
        if not lead:
            return self.window.convolve(x, kernels, bias, self.groups)
        of_networks = x.flatten(0, len(lead) - 1) if len(lead) > 1 else x
        channels = of_networks.transpose(0, 1).flatten(1, 2)
        s = self.window.convolve(channels, kernels, bias, networks * self.groups)
        return s.unflatten(1, (networks, self.out_features)).transpose(0, 1).unflatten(0, lead)

    def extra_repr(self) -> str:
        replicas = f", replicas={tuple(self.batch_shape)}" if self.batch_shape else ""
        return (
            f"{self.in_channels}, {self.out_features}, kernel_size={self.window.kernel}, stride={self.window.stride}, "
            f"padding={self.window.padding}, padding_mode={self.window.padding_mode!r}, "
            f"dilation={self.window.dilation}, groups={self.groups}, bias={self.has_bias}{replicas}"
        )


class VariationalConv1d(VariationalConv):
    """:class:`VariationalConv` of sequences (*replicas, B, channels, length)."""

    dims = 1


class VariationalConv2d(VariationalConv):
    """:class:`VariationalConv` of images (*replicas, B, channels, height, width)."""

    dims = 2
