"""Draws of all of a network's weights, and the network's function under them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from noisynat.curvature.fisher import layer_gradients
from noisynat.layers.base import VariationalLayer, drawn_weights, recording
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream

_WEIGHTS_AT_ONCE = 2**20  # entries of the draws that one vectorized forward pass carries
_ACTIVATIONS_AT_ONCE = 2**22  # entries of the widest activation of such a pass


class FunctionSampler:
    """Posterior draws of a network's function.

    Where the network is a plain stack of layers, many draws go through one forward pass, as leading dimensions;
    otherwise they go one by one.

    Args:
        net: the converted network.
        layers: its variational layers.
        posteriors: of those layers' weights.
    """

    def __init__(self, net: nn.Module, layers: Sequence[VariationalLayer], posteriors: Sequence[Posterior]) -> None:
        self.net, self.layers, self.posteriors = net, tuple(layers), tuple(posteriors)
        self.replicas = self.layers[0].batch_shape

    @property
    def carries_samples(self) -> bool:
        """Whether one forward pass takes many draws."""
        return _carries_samples(self.net)

    @property
    def draws_at_once(self) -> int:
        """How many draws one forward pass takes without much memory."""
        return max(_WEIGHTS_AT_ONCE // sum(layer.mean.numel() for layer in self.layers), 1)

    def draw(
        self, count: int, stream: RandomStream, *, single: bool = False, controls: list[Tensor] | None = None
    ) -> Iterator[list[Draw]]:
        """Draws of all weights, one per layer in the network's order; several at once where the network carries them.

        Args:
            count: how many.
            stream: of the random numbers.
            single: whether every draw is to stand alone.
            controls: gets the ELBO's control variate of every draw, (S, *replicas).

        Raises:
            ValueError: if count is not positive.
        """
        if count < 1:
            raise ValueError(f"num_samples must be at least 1, got {count}")
        vectorized = not single and self.carries_samples
        most = self.draws_at_once if vectorized else 1
        for start in range(0, count, most):
            sample = (min(most, count - start),)
            drawn: dict[int, Draw] = {}
            control = torch.zeros(())
            for posterior in self.posteriors:
                deviations, norm = posterior.draw_deviations(sample, stream)
                if controls is not None:
                    control = control.to(norm.device) + posterior.quadratic_loss(deviations, norm)
                for layer, deviation in zip(posterior.layers, deviations, strict=True):
                    weight = (layer.mean + deviation).detach()
                    drawn[id(layer)] = Draw(weight if vectorized else weight.squeeze(0))
            if controls is not None:
                controls.append(control)
            yield [drawn[id(layer)] for layer in self.layers]

    def mirror(self, draws: Sequence[Draw]) -> list[Draw]:
        """The mirror images of draws about the posterior mean."""
        return [Draw(2 * layer.mean.detach() - draw.weight) for layer, draw in zip(self.layers, draws, strict=True)]

    def evaluate(self, x: Tensor, draws: Sequence[Sequence[Draw]], others: dict[str, Tensor] | None = None) -> Tensor:
        """Outputs (S, *replicas, N, K) at x (*replicas, N, in), in evaluation mode whatever mode the network is in.

        Args:
            x: inputs.
            draws: of the weights, one per layer, each with samples leading or alone.
            others: point estimates and buffers to be used in place of the network's own, by name.
        """
        net = partial(functional_call, self.net, others) if others else self.net
        outputs = []
        with self._evaluation_mode():
            for draw in draws:
                sample = draw[0].weight.shape[: draw[0].weight.dim() - 2 - len(self.replicas)]
                with drawn_weights(self.layers, draw):
                    f = net(x.expand(*sample, *x.shape))
                outputs.append(f if sample else f.unsqueeze(0))
        return torch.cat(outputs)

    def evaluate_linearized(self, x: Tensor, draws: Sequence[Sequence[Draw]]) -> Tensor:
        """Outputs (S, *replicas, N, K) of the network linearized in its weights about the mean.

        f(x; M) + sum over layers of df/dW (W - M): per layer, the Jacobian of an example is the outer product of
        what is back-propagated to the layer's output and of its input, so it is never formed.
        """
        with self._evaluation_mode(), torch.enable_grad(), recording(self.layers) as records:
            f = self.net(x)
            columns = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
            columns = columns.reshape(-1, *(1,) * (f.dim() - 1), f.shape[-1]).expand(-1, *f.shape)
            uses = [record for of_layer in records for record in of_layer]
            gradients = iter(layer_gradients(f, [use.outputs for use in uses], columns))
        per_layer = [
            [(layer.activations(use.inputs), layer.by_location(next(gradients), 1)) for use in of_layer]
            for layer, of_layer in zip(self.layers, records, strict=True)
        ]
        outputs = []
        for draw in draws:
            samples = draw[0].weight.dim() - 2 - len(self.replicas)
            total = f.detach().expand(*draw[0].weight.shape[:samples], *f.shape)
            for layer, drawn, uses_of_layer in zip(self.layers, draw, per_layer, strict=True):
                deviation = drawn.weight - layer.mean.detach()
                for a, g in uses_of_layer:
                    total = total + _first_order(a, g, deviation, layer.groups)
            outputs.append(total if samples else total.unsqueeze(0))
        return torch.cat(outputs)

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """The network in evaluation mode inside the block, whatever mode it is in."""
        modes = [(module, module.training) for module in self.net.modules()]
        self.net.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def rows_per_pass(self, draw: Sequence[Draw]) -> int:
        """Rows of the data that one forward pass with ``draw`` takes without much memory."""
        widest = max(max(layer.columns, layer.out_features) for layer in self.layers)
        networks = draw[0].weight.shape[:-2].numel()
        return max(_ACTIVATIONS_AT_ONCE // (widest * networks), 1)


def _first_order(a: Tensor, g: Tensor, deviation: Tensor, groups: int) -> Tensor:
    """What deviations of a weight change in the outputs, (*sample, *replicas, N, K).

    Args:
        a: activations (*replicas, [groups,] N, T, columns).
        g: derivatives (K, *replicas, [groups,] N, T, out / groups) of the outputs.
        deviation: (*sample, *replicas, out, columns).
        groups: of outputs with inputs of their own.
    """
    if groups > 1:
        deviation = deviation.unflatten(-2, (groups, -1))
    moved = (a.flatten(-3, -2) @ deviation.mT).unflatten(-2, a.shape[-3:-1])  # (*sample, *replicas, N, T, out)
    changes = torch.stack([(moved * of_output).sum((-2, -1)) for of_output in g], dim=-1)
    return changes if groups == 1 else changes.sum(-3)


_ELEMENTWISE = (nn.Identity, nn.Dropout, nn.LayerNorm, nn.Linear)
_NOT_ELEMENTWISE = (nn.MultiheadAttention, nn.PReLU, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)


def _carries_samples(net: nn.Module) -> bool:
    """Whether a forward pass of ``net`` works with any leading dimensions: plain stacks of layers do."""
    if isinstance(net, (VariationalLayer, *_ELEMENTWISE)):
        return True
    if type(net) is nn.Sequential:
        return all(_carries_samples(child) for child in net)
    return type(net).__module__ == "torch.nn.modules.activation" and not isinstance(net, _NOT_ELEMENTWISE)
