"""Functions drawn from the posterior, fixed once and for all: for Thompson sampling and for pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from noisynat import border
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream
from noisynat.sampling import FunctionSampler


class SampledFunctions:
    """S posterior draws of a network's function: the same x gives the same f, always, also when training goes on.

    ``functions(x)`` evaluates all of them, ``functions[i]`` is one, a slice some, and iterating gives one after the
    other. :meth:`state_dict` is plain tensors, for ``torch.save``;
    :meth:`noisynat.VariationalNetwork.load_functions` makes functions of it.

    Args:
        sampler: of the network.
        weights: per layer (S, *replicas, out, columns).
        others: point estimates and buffers of the network, by name.

    Example:
        >>> import torch, noisynat
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(2, 1), noisynat.GaussianLikelihood(0.1), num_data=9)
        >>> functions = bnn.sample_functions(5)
        >>> functions(torch.zeros(3, 2)).shape, functions[0](torch.zeros(3, 2)).shape
        (torch.Size([5, 3, 1]), torch.Size([3, 1]))
    """

    def __init__(self, sampler: FunctionSampler, weights: Sequence[Tensor], others: dict[str, Tensor]) -> None:
        self._sampler, self._weights, self._others = sampler, list(weights), others

    @classmethod
    @torch.no_grad()
    def drawn(cls, sampler: FunctionSampler, count: int, stream: RandomStream) -> SampledFunctions:
        """``count`` functions of the posterior as it is now; see :meth:`noisynat.VariationalNetwork.sample_functions`.

        Raises:
            ValueError: if ``count`` is not positive.
        """
        if count < 1:
            raise ValueError(f"num_functions must be at least 1, got {count}")
        draws = list(sampler.draw(count, stream, single=True))
        weights = [torch.stack([draw.weight for draw in of_layer]) for of_layer in zip(*draws, strict=True)]
        means = {id(layer.mean) for layer in sampler.layers}
        parameters = {name: p for name, p in sampler.net.named_parameters() if id(p) not in means}
        others = {name: value.detach().clone() for name, value in [*parameters.items(), *sampler.net.named_buffers()]}
        return cls(sampler, weights, others)

    @classmethod
    def of_state(cls, sampler: FunctionSampler, state: dict[str, Any]) -> SampledFunctions:
        """The functions that :meth:`state_dict` was taken of, by a network of the same shape.

        Raises:
            ValueError: if the layers or the weights' shapes are other ones.
        """
        weights = state["weights"]
        expected = {layer.name: layer.mean.shape for layer in sampler.layers}
        if {name: weight.shape[1:] for name, weight in weights.items()} != expected:
            raise ValueError(
                f"the functions are of layers {', '.join(f'{k} {tuple(w.shape[1:])}' for k, w in weights.items())}, "
                f"this network's are {', '.join(f'{k} {tuple(shape)}' for k, shape in expected.items())}"
            )
        like = sampler.layers[0].mean
        others = {name: value.to(like.device) for name, value in state["others"].items()}
        return cls(sampler, [weights[name].to(like) for name in expected], others)

    def __len__(self) -> int:
        """S."""
        return len(self._weights[0])

    @overload
    def __getitem__(self, index: int) -> SampledFunction: ...

    @overload
    def __getitem__(self, index: slice) -> SampledFunctions: ...

    def __getitem__(self, index: int | slice) -> SampledFunction | SampledFunctions:
        """A :class:`SampledFunction`, or some as :class:`SampledFunctions`."""
        if isinstance(index, slice):
            return SampledFunctions(self._sampler, [weight[index] for weight in self._weights], self._others)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} functions, no number {index}")
        return SampledFunction(self[index % len(self) : index % len(self) + 1])

    def __iter__(self) -> Iterator[SampledFunction]:
        return (self[index] for index in range(len(self)))

    def __call__(self, x: Tensor) -> Tensor:
        """All functions at the same inputs; differentiable in x.

        Args:
            x: (N, in) or (*replicas, N, in).

        Returns:
            f, (S, *replicas, N, K).

        Raises:
            ValueError, TypeError: if x has another shape or dtype, or is not finite.
        """
        sampler = self._sampler
        x = border.with_replicas(border.checked_inputs(x, sampler.layers[0].mean), sampler.replicas)
        return sampler.evaluate(x, self._draws(), self._others)

    def each(self, x: Tensor) -> Tensor:
        """Every function at inputs of its own, as when each is optimized; differentiable in x.

        Args:
            x: (S, *replicas, N, in).

        Returns:
            f, (S, *replicas, N, K).

        Raises:
            ValueError, TypeError: if x has another shape or dtype, or is not finite.
        """
        lead = (len(self), *self._sampler.replicas)
        if x.dim() < len(lead) + 2 or x.shape[: len(lead)] != lead:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected inputs of each function, {(*lead, 'N', 'in')}")
        border.checked_inputs(x.flatten(0, len(lead) - 1), self._sampler.layers[0].mean)
        parts = [self._sampler.evaluate(x[i], [draw], self._others) for i, draw in enumerate(self._one_by_one())]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Weights by layer and everything else that the functions depend on, as tensors."""
        names = [layer.name for layer in self._sampler.layers]
        return {"weights": dict(zip(names, self._weights, strict=True)), "others": dict(self._others)}

    def _one_by_one(self) -> list[list[Draw]]:
        return [[Draw(weight[i]) for weight in self._weights] for i in range(len(self))]

    def _draws(self) -> list[list[Draw]]:
        """As many at once as a forward pass carries."""
        if not self._sampler.carries_samples:
            return self._one_by_one()
        most = self._sampler.draws_at_once
        return [[Draw(weight[i : i + most]) for weight in self._weights] for i in range(0, len(self), most)]


class SampledFunction:
    """One of :class:`SampledFunctions`.

    Args:
        alone: a single function.
    """

    def __init__(self, alone: SampledFunctions) -> None:
        self._alone = alone

    def __call__(self, x: Tensor) -> Tensor:
        """f (*replicas, N, K) at x (N, in) or (*replicas, N, in); differentiable in x."""
        return self._alone(x)[0]
