"""A layer with a posterior over its weight: the mean, the noise of a forward pass, and what the pass records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from noisynat.posteriors.draws import Draw

if TYPE_CHECKING:
    from noisynat.posteriors.base import Posterior
    from noisynat.random import RandomStream


class Record(NamedTuple):
    """One use of a layer in one forward pass, of which its :meth:`VariationalLayer.statistics` tell the rest."""

    inputs: Tensor  # (*replicas, B, ...), detached
    outputs: Tensor  # (*replicas, B, ...), in the graph


class VariationalLayer(nn.Module, ABC):
    """Base of the layers with a weight posterior N(mean, Sigma).

    The parameter :attr:`mean` (*replicas, out, columns) holds the posterior mean, always; where there is a bias it is
    the last of in + 1 columns, and its input is 1. In ``train()`` a forward pass samples; in ``eval()`` it uses the
    mean; inside :func:`drawn_weights` it uses the weights given there.

    Args:
        in_features: inputs of an output, the bias's constant not counted.
        out_features: outputs.
        bias: whether the last column is a bias.
        replicas: leading dimensions of every tensor.
        groups: of outputs, consecutive and of one size, that have inputs of their own. They have nothing in common but
            the layer: the posterior is one of (*replicas, groups) weights (out / groups, columns).
    """

    mean: nn.Parameter
    is_product = False
    """Whether the outputs are a product with the inputs, to which noise is added for less than weights are drawn."""
    convolves = False
    """Whether every example uses the weight at many locations."""
    diagonal_inputs = False
    """Whether of a Kronecker posterior's factor A only the diagonal is kept, as that is all there is."""
    full_covariance = False
    """Whether a Kronecker posterior is to have a full matrix for each group instead, as that is small."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, replicas: Sequence[int] = (), groups: int = 1
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.has_bias, self.groups = in_features, out_features, bias, groups
        self.columns = in_features + bias
        self.batch_shape = torch.Size(replicas)
        self.name = type(self).__name__
        self.reused = False  # whether the network calls this layer in several places
        self._posterior: tuple[Posterior, ...] = ()  # in a tuple, so as not to be registered: the network owns it
        self._stream: RandomStream | None = None
        self._drawn: Draw | None = None
        self._records: list[Record] | None = None

    @property
    def posterior(self) -> Posterior:
        """The posterior that this layer's weight belongs to.

        Raises:
            RuntimeError: if no network has given the layer one.
        """
        if not self._posterior:
            raise RuntimeError(f"layer {self.name!r} has no posterior; put it into a VariationalNetwork")
        return self._posterior[0]

    def attach(self, posterior: Posterior, stream: RandomStream) -> None:
        """Give the layer its posterior and the stream of its training noise."""
        self._posterior = (posterior,)
        self._stream = stream

    @torch.no_grad()
    def start_from(self, mean: Tensor, stream: RandomStream, *, same: bool) -> None:
        """Give the first replica the mean (out, columns), or all of them if ``same``; the others' are random."""
        start = mean.expand(self.mean.shape).clone()
        if self.batch_shape and not same:
            start = self.initial(start, stream)
            start.view(-1, *mean.shape)[0] = mean
        self.mean.copy_(start)

    def initial(self, like: Tensor, stream: RandomStream) -> Tensor:
        """Weights as PyTorch's own layer begins with: uniform in +-1/sqrt(in)."""
        bound = max(self.in_features, 1) ** -0.5
        return bound * (2 * stream.uniform(like.shape, like) - 1)

    @property
    def fan_in(self) -> int:
        """How many inputs an output is the sum of, the bias's constant not counted."""
        return self.in_features

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """(groups, out / groups, columns) of the weight."""
        return self.groups, self.out_features // self.groups, self.columns

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the original layer's weight, without the bias."""
        return self.out_features, self.in_features

    def joined(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A weight of :attr:`weight_shape` and a bias, or gradients in them, as one matrix (out, columns)."""
        rows = weight.reshape(self.out_features, self.in_features)
        return rows if bias is None else torch.cat([rows, bias.reshape(-1, 1)], dim=-1)

    def parted(self, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inverse of :meth:`joined`; the bias is (out,)."""
        weight = matrix[:, : self.in_features].reshape(self.weight_shape)
        return weight, matrix[:, -1] if self.has_bias else None

    def mean_of(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The mean (out, columns) at which this layer is the ordinary one with these weights."""
        return self.joined(weight, bias)

    def weights_of(self, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inverse of :meth:`mean_of`."""
        return self.parted(mean)

    @abstractmethod
    def inputs_of(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a record would say of the inputs x (B, ...) of the ordinary layer ``module``."""

    @abstractmethod
    def activations(self, inputs: Tensor) -> Tensor:
        """What a record's inputs (*replicas, B, ...) bring to the weight: (*replicas, [groups,] B, T, columns)."""

    @abstractmethod
    def by_location(self, outputs: Tensor, lead: int = 0) -> Tensor:
        """Tensors like a record's outputs (*, *replicas, B, ...), with ``lead`` dimensions in front, by location.

        Returns:
            (*, *replicas, [groups,] B, T, out / groups).
        """

    def _apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Outputs (*lead, B, ...) for inputs x (*lead, B, ...) by weights (*lead, out, columns)."""
        raise NotImplementedError

    def _by_group_of_examples(self, x: Tensor, weight: Tensor, lead: int) -> Tensor:
        """As :meth:`_apply_weight` by G weights (*lead, G, out, columns) for consecutive groups of examples.

        Groups are few, and of equal size but for the last.
        """
        size = -(-x.shape[lead] // weight.shape[lead])
        parts = zip(x.split(size, lead), weight.unbind(lead), strict=True)
        return torch.cat([self._apply_weight(part, of_part) for part, of_part in parts], dim=lead)

    def _with_constant(self, rows: Tensor) -> Tensor:
        """Rows (*, in) with the bias's input, if there is a bias: (*, columns)."""
        return functional.pad(rows, (0, 1), value=1.0) if self.has_bias else rows

    def _recorded(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The outputs, after a record of this use if one is wanted; what follows may change them in place."""
        if self._records is None:
            return outputs
        self._records.append(Record(inputs.detach(), outputs))
        return outputs.clone()

    def _noise(self, a: Tensor) -> Tensor:
        assert self._stream is not None
        return self.posterior.output_noise(a, self.reused, self._stream)


@contextmanager
def drawn_weights(layers: Sequence[VariationalLayer], draws: Sequence[Draw]) -> Iterator[None]:
    """Make ``layers`` use the weights ``draws``, one each, inside the block; parameters are not touched."""
    before = [layer._drawn for layer in layers]
    try:
        for layer, draw in zip(layers, draws, strict=True):
            layer._drawn = draw
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer._drawn = previous


@contextmanager
def recording(layers: Sequence[VariationalLayer]) -> Iterator[list[list[Record]]]:
    """Record the forward passes inside the block: one list of records per layer."""
    before = [layer._records for layer in layers]
    records: list[list[Record]] = [[] for _ in layers]
    try:
        for layer, mine in zip(layers, records, strict=True):
            layer._records = mine
        yield records
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer._records = previous
