"""The variational linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisynat.curvature.inverse import KroneckerBasisInverse
from noisynat.layers.base import VariationalLayer
from noisynat.layers.fused import NoisyLinear
from noisynat.posteriors.draws import Draw
from noisynat.precision import is_reduced
from noisynat.random import RandomStream


class VariationalLinear(VariationalLayer):
    """``nn.Linear`` with a Gaussian posterior over its weight and bias, jointly.

    Inputs are (*replicas, B, *locations, in), outputs (*replicas, B, *locations, out). Locations (positions of a
    sequence) share the weight: their noise is drawn jointly.

    Args:
        in_features: inputs.
        out_features: outputs.
        bias: whether there is a bias column.
        replicas: leading dimensions of the parameters.
        dtype: of the mean.
        device: of the mean.
    """

    is_product = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        replicas: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, replicas)
        shape = (*self.batch_shape, out_features, self.columns)
        self.mean = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, replicas: Sequence[int], stream: RandomStream, *, same: bool = False
    ) -> VariationalLinear:
        """A layer that starts from ``linear``'s weights.

        Args:
            linear: gives sizes, dtype, device and weights.
            replicas: leading dimensions. The first replica has ``linear``'s weights.
            stream: of the other replicas' initial weights, uniform in +-1/sqrt(in) as ``nn.Linear``'s own.
            same: start all replicas from ``linear``'s weights instead.
        """
        weight, bias = linear.weight.detach(), linear.bias
        layer = cls(linear.in_features, linear.out_features, bias is not None, replicas, weight.dtype, weight.device)
        layer.start_from(layer.mean_of(weight, None if bias is None else bias.detach()), stream, same=same)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (*sample, *replicas, B, *locations, in) to (*sample, *replicas, B, *locations, out).

        Sample dimensions are there only while weights of several draws are fixed by
        :func:`~noisynat.layers.base.drawn_weights`.

        Raises:
            ValueError: if the last dimension of x is not ``in_features``.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(f"layer {self.name!r} takes {self.in_features} inputs, got {x.shape[-1]} features")
        noisy = self._drawn is None and self.training and bool(self._posterior)
        root = self._fused_root(x) if noisy else None
        if root is not None:
            return self._fused(x, root)
        weight, grouped = self._drawn or Draw(self.mean)
        lead = weight.dim() - 2 - grouped  # sample and replica dimensions
        a = self._with_constant(x.reshape(*x.shape[: lead + 1], -1, self.in_features))
        s = _by_group(a, weight) if grouped else (a.flatten(-3, -2) @ weight.mT).unflatten(-2, a.shape[-3:-1])
        if noisy:
            s = s + self._noise(a)
        return self._recorded(a, s).reshape(*x.shape[:-1], self.out_features)

    def inputs_of(self, module: nn.Module, x: Tensor) -> Tensor:
        return self._with_constant(x.reshape(len(x), -1, self.in_features))

    def activations(self, inputs: Tensor) -> Tensor:
        return inputs

    def by_location(self, outputs: Tensor, lead: int = 0) -> Tensor:
        return outputs.reshape(*outputs.shape[: lead + len(self.batch_shape) + 1], -1, self.out_features)

    def _fused_root(self, x: Tensor) -> KroneckerBasisInverse | None:
        """The root of the covariance, if all of the layer is one operation; not with locations or reduced precision."""
        if x.dim() != self.mean.dim() or is_reduced(x.device):
            return None
        return self.posterior.fused_root(x.shape[-2], self.reused)

    def _fused(self, x: Tensor, root: KroneckerBasisInverse) -> Tensor:
        assert self._stream is not None
        a = self._with_constant(x.detach())
        normal = self._stream.normal((*a.shape[:-1], self.out_features), a)
        s: Tensor = NoisyLinear.apply(x, a, self.mean, root, self.posterior.noise_scale, normal)
        return s if self._records is None else self._recorded(a.unsqueeze(-2), s.unsqueeze(-2)).squeeze(-2)

    def extra_repr(self) -> str:
        replicas = f", replicas={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.has_bias}{replicas}"


def _by_group(a: Tensor, weight: Tensor) -> Tensor:
    """Outputs (*replicas, B, T, out) for inputs a (*replicas, B, T, columns), by G weights for groups of examples.

    Groups are consecutive and of equal size but for the last, for which the inputs are padded.
    """
    examples, groups = a.shape[-3], weight.shape[-3]
    if examples == groups:
        return a @ weight.mT
    size = -(-examples // groups)
    padded = functional.pad(a, (0, 0, 0, 0, 0, groups * size - examples))
    rows = padded.unflatten(-3, (groups, size))
    s = (rows.flatten(-3, -2) @ weight.mT).unflatten(-2, rows.shape[-3:-1])
    return s.flatten(-4, -3).narrow(-3, 0, examples)
