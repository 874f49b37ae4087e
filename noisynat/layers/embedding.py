"""The variational embedding: a linear layer of indicators, whose inputs' second moments are a diagonal matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisynat.layers.base import VariationalLayer
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream


class VariationalEmbedding(VariationalLayer):
    """``nn.Embedding`` with a Gaussian posterior over its table.

    Inputs are whole numbers (*replicas, B, *locations), outputs (*replicas, B, *locations, dim). The mean is the
    table's transpose, (*replicas, dim, entries). An entry's inputs are never those of another, so a Kronecker posterior
    keeps only the diagonal of A, how often each entry occurs, and entries are independent of each other.

    Args:
        entries: of the table.
        dim: of a vector.
        replicas: leading dimensions of the parameters.
        dtype: of the mean.
        device: of the mean.
    """

    convolves = True
    diagonal_inputs = True

    def __init__(
        self,
        entries: int,
        dim: int,
        replicas: Sequence[int] = (),
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(entries, dim, bias=False, replicas=replicas)
        self.mean = nn.Parameter(torch.zeros((*self.batch_shape, dim, entries), dtype=dtype, device=device))

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, replicas: Sequence[int], stream: RandomStream, *, same: bool = False
    ) -> Self:
        """A layer that starts from ``embedding``'s table.

        Args:
            embedding: gives sizes, dtype, device and table.
            replicas: leading dimensions. The first replica has ``embedding``'s table.
            stream: of the other replicas' initial tables, N(0, 1) as ``nn.Embedding``'s own.
            same: start all replicas from ``embedding``'s table instead.
        """
        weight = embedding.weight.detach()
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, replicas, weight.dtype, weight.device)
        layer.start_from(layer.mean_of(weight, None), stream, same=same)
        return layer

    @property
    def fan_in(self) -> int:
        return 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.in_features, self.out_features

    def joined(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weight.T

    def parted(self, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        return matrix.T, None

    def initial(self, like: Tensor, stream: RandomStream) -> Tensor:
        return stream.normal(like.shape, like)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*sample, *replicas, B, *locations) to (*sample, *replicas, B, *locations, dim).

        Raises:
            ValueError: if x is no whole numbers.
        """
        if x.is_floating_point() or x.is_complex():
            raise ValueError(f"layer {self.name!r} takes whole numbers, got {x.dtype}")
        weight, grouped = self._drawn or Draw(self.mean)
        lead = weight.dim() - 2 - grouped  # sample and replica dimensions
        s = self._by_group_of_examples(x, weight, lead) if grouped else self._apply_weight(x, weight)
        if self._drawn is None and self.training and self._posterior:
            s = s + self._noise(self.activations(x)).reshape(s.shape)
        return self._recorded(x, s)

    def inputs_of(self, module: nn.Module, x: Tensor) -> Tensor:
        return x

    def activations(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(*inputs.shape[: len(self.batch_shape) + 1], -1)
        return functional.one_hot(rows, self.in_features).to(self.mean.dtype)

    def by_location(self, outputs: Tensor, lead: int = 0) -> Tensor:
        return outputs.reshape(*outputs.shape[: lead + len(self.batch_shape) + 1], -1, self.out_features)

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        lead = weight.shape[:-2]
        table = weight.mT.reshape(-1, self.out_features)  # of all networks, one under the other
        first = self.in_features * torch.arange(lead.numel(), device=x.device)
        return functional.embedding(x + first.reshape(*lead, *(1,) * (x.dim() - len(lead))), table)

    def extra_repr(self) -> str:
        replicas = f", replicas={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"{self.in_features}, {self.out_features}{replicas}"
