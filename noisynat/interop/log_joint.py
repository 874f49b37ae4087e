"""The log joint density log p(y, w) of a network's weights and its data, as a function of one flat vector.

This is what Hamiltonian Monte Carlo follows. It depends on the network's prior and likelihood alone, never on its
variational posterior.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisynat import border
from noisynat.layers.linear import VariationalLinear
from noisynat.likelihoods import GaussianLikelihood
from noisynat.posteriors.draws import Draw
from noisynat.sampling import _carries_samples

if TYPE_CHECKING:
    from noisynat.network import VariationalNetwork


class LogJoint:
    """log p(w) + log p(y | w) of a network without replicas, in float64, normalized.

    The weights of all variational layers are one vector (D,): row-major, layer after layer in the network's order. A
    noise precision with a gamma prior is integrated out,

        log p(y | w) = log Gamma(a) - log Gamma(a0) + a0 log b0 - a log(b0 + |y - f|^2 / 2) - P/2 log 2 pi,
        a = a0 + P/2,

    with P residuals per precision (Bishop 2006, section 2.3.6), which loses nothing: given the weights it is
    Gamma(a, b0 + |y - f|^2 / 2), see :meth:`noise_precision`.

    Args:
        network: gives the architecture, the prior and the likelihood. Learned noise is fixed where it stands.
        x: all training inputs (N, in).
        y: all training targets (N, K).

    Raises:
        ValueError: if the network has replicas, a KL weight other than 1, a prior that is fitted or a likelihood that
            is not Gaussian, or if the data are not ``num_data`` examples of the right shape.
    """

    def __init__(self, network: VariationalNetwork, x: Tensor, y: Tensor) -> None:
        check_supported(network)
        if network.kl_weight != 1:
            raise ValueError(f"a cold posterior is not p(w | y): set kl_weight to 1, it is {network.kl_weight:g}")
        if any(prior.empirical_bayes for posterior in network.posteriors for prior in posterior.priors):
            raise ValueError("the prior must be fixed, and this network's is fitted by empirical Bayes")
        if len(x) != network.num_data:
            raise ValueError(f"all training data are needed: got {len(x)} examples, num_data is {network.num_data}")
        self.network = double_copy(network)
        layers = self.network.layers
        self.dim = sum(layer.mean.numel() for layer in layers)
        self.x = inputs_of(self.network, x)
        y = border.checked_targets(y).cpu().double()
        self.prior_variance = torch.cat(
            [
                eta.expand(layer.mean.shape).flatten()
                for layer, eta in zip(layers, prior_variances(self.network), strict=True)
            ]
        )
        with torch.no_grad():
            f = self._forward(torch.zeros(self.dim, dtype=torch.float64))
        assert isinstance(self.network.likelihood, GaussianLikelihood)
        self.y = self.network.likelihood.check_targets(f, y)
        self.likelihood = self.network.likelihood
        self._stack = _stack(self.network.net) if self.x.dim() == 2 else None
        self._gradient = self._gradient_by_autograd if self._stack is None else self._gradient_of_stack
        self._columns = self.x.mT.contiguous()
        self._log_normalizer = -0.5 * float(torch.log(2 * math.pi * self.prior_variance).sum())

    # --- weights ----------------------------------------------------------------------------------

    def unpack(self, weights: Tensor) -> list[Tensor]:
        """Weights (*sample, D) as one (*sample, out, columns) per layer."""
        return unpack(self.network, weights)

    @torch.no_grad()
    def functions(self, weights: Tensor, x: Tensor) -> Tensor:
        """Outputs f (S, N, K) at x (N, in) of weights (S, D), in float64."""
        return functions(self.network, self.unpack(weights), inputs_of(self.network, x))

    # --- densities --------------------------------------------------------------------------------

    def __call__(self, weights: Tensor) -> Tensor:
        """log p(y, w) of weights (D,): (), differentiable."""
        return with_gradient(weights, self.value_and_gradient)

    def value_and_gradient(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y, w) () and its gradient (D,) at weights (D,)."""
        log_likelihood, gradient = self._gradient(weights)
        scaled = weights / self.prior_variance
        return log_likelihood - 0.5 * weights.dot(scaled) + self._log_normalizer, gradient - scaled

    def noise_precision(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """The noise precision given weights (S, D): the fixed one, or a draw from its gamma, (S, precisions)."""
        likelihood = self.likelihood
        if likelihood.kind != "gamma":
            return likelihood.precision.expand(len(weights), -1).clone()
        squares = (self.functions(weights, self.x) - self.y).square().sum(-2)  # (S, K)
        if likelihood.num_outputs == 1:
            squares = squares.sum(-1, keepdim=True)
        shape = likelihood.a0 + self._pairs / 2
        gamma = torch._standard_gamma(torch.full_like(squares, shape), generator=generator)
        return gamma / (likelihood.b0 + squares / 2)

    @property
    def _pairs(self) -> int:
        """Residuals per precision."""
        return len(self.y) * (self.y.shape[-1] if self.likelihood.num_outputs == 1 else 1)

    def _log_likelihood(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | f) and its gradient in f, for residuals f - y (N, K)."""
        likelihood, count = self.likelihood, residual.numel()
        if likelihood.kind != "gamma":
            precision = likelihood.precision.expand(residual.shape[-1])
            scaled = residual * precision
            value = 0.5 * (len(residual) * torch.log(precision / (2 * math.pi)).sum() - (scaled * residual).sum())
            return value, -scaled
        a, squares = likelihood.a0 + self._pairs / 2, residual.square().sum(0)
        if likelihood.num_outputs == 1:
            squares = squares.sum(0, keepdim=True)
        b = likelihood.b0 + squares / 2
        one = math.lgamma(a) - math.lgamma(likelihood.a0) + likelihood.a0 * math.log(likelihood.b0)
        value = len(b) * one - a * b.log().sum() - count / 2 * math.log(2 * math.pi)
        return value, residual * (-a / b)

    def _forward(self, weights: Tensor) -> Tensor:
        return functions(self.network, [weight.unsqueeze(0) for weight in self.unpack(weights)], self.x)[0]

    def _gradient_by_autograd(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | w) and its gradient of any network."""
        with torch.enable_grad():
            weights = weights.detach().requires_grad_(True)
            f = self._forward(weights)
            value, gradient = self._log_likelihood(f.detach() - self.y)
            return value, torch.autograd.grad(f, weights, gradient)[0]

    def _gradient_of_stack(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a plain stack of layers, by hand: a third of the time that autograd takes of a small network."""
        assert self._stack is not None
        h, inputs, matrices = self._columns, [], self.unpack(weights)
        for weight, (bias, activation) in zip(matrices, self._stack, strict=True):
            inputs.append(h)
            h = torch.addmm(weight[:, -1:], weight[:, :-1], h) if bias else torch.mm(weight, h)
            if activation is not None:
                h = activation.apply_(h)
        value, g = self._log_likelihood(h.mT - self.y)
        g, gradient = g.mT, torch.empty_like(weights)
        last = h
        for weight, part, (bias, activation), h in reversed(
            list(zip(matrices, self.unpack(gradient), self._stack, inputs, strict=True))
        ):
            if activation is not None:
                g = g * activation.slope(last)
            torch.mm(g, h.mT, out=part[:, : h.shape[0]])
            if bias:
                part[:, -1] = g.sum(1)
            if h is not self._columns:
                g = torch.mm(weight[:, : h.shape[0]].mT, g)
            last = h
        return value, gradient


def with_gradient(position: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """The value of a function that computes value () and gradient (D,) together, differentiable."""
    value: Tensor = _WithGradient.apply(position, function)
    return value


class _WithGradient(torch.autograd.Function):
    """A scalar function of a vector that computes its gradient along with its value."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, gradient = function(weights)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


# --- what a network is made of --------------------------------------------------------------------


def check_supported(network: VariationalNetwork) -> None:
    """Raises ValueError if the network has replicas or a likelihood other than the Gaussian one of constant noise."""
    if network.replicas:
        raise ValueError(f"the network has {network.replicas.numel()} replicas; Pyro's part works on networks without")
    if type(network.likelihood) is not GaussianLikelihood:  # a subclass is another likelihood
        raise ValueError(f"the likelihood must be a GaussianLikelihood, got {type(network.likelihood).__name__}")


def prior_variances(network: VariationalNetwork) -> list[Tensor]:
    """The prior variance () of every layer's weights, in the network's order, float64."""
    of_layer = {
        id(layer): eta
        for posterior in network.posteriors
        for layer, eta in zip(posterior.layers, posterior.prior_variance, strict=True)
    }
    return [of_layer[id(layer)] for layer in network.layers]


def double_copy(network: VariationalNetwork) -> VariationalNetwork:
    """A copy on the CPU, in float64 and evaluation mode, whose parameters stay as they are."""
    return copy.deepcopy(network).cpu().double().eval().requires_grad_(False)


def inputs_of(network: VariationalNetwork, x: Tensor) -> Tensor:
    """Checked inputs for such a copy."""
    return border.checked_inputs(x.cpu().double() if x.is_floating_point() else x.cpu(), network.layers[0].mean)


def unpack(network: VariationalNetwork, weights: Tensor) -> list[Tensor]:
    """Weights (*sample, D) as one (*sample, out, columns) per layer."""
    shapes = [(layer.out_features, layer.columns) for layer in network.layers]
    parts = weights.split([rows * columns for rows, columns in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


def functions(network: VariationalNetwork, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs f (S, N, K) at x (N, in) of weights (S, out, columns) per layer; gradients reach the weights."""
    sampler, count = network._sampler, len(weights[0])
    if _carries_samples(network.net):
        rows = sampler.rows_per_pass([Draw(weight) for weight in weights])
        parts = [sampler.evaluate(part, [[Draw(weight) for weight in weights]]) for part in x.split(rows)]
        return torch.cat(parts, dim=1)
    draws = [[Draw(weight[s]) for weight in weights] for s in range(count)]
    return sampler.evaluate(x, draws)


class _Rectifier:
    """max(0, s)."""

    @staticmethod
    def apply_(s: Tensor) -> Tensor:
        return s.clamp_(min=0)

    @staticmethod
    def slope(h: Tensor) -> Tensor:
        """The derivative, from the activation's value h."""
        return h.sign()


class _Tanh:
    """tanh(s)."""

    @staticmethod
    def apply_(s: Tensor) -> Tensor:
        return s.tanh_()

    @staticmethod
    def slope(h: Tensor) -> Tensor:
        """The derivative, from the activation's value h."""
        return 1 - h.square()


_Activation = type[_Rectifier] | type[_Tanh]
_ACTIVATIONS: dict[type[nn.Module], _Activation] = {nn.ReLU: _Rectifier, nn.Tanh: _Tanh}


def _stack(net: nn.Module) -> list[tuple[bool, _Activation | None]] | None:
    """Per layer, whether it has a bias and the activation after it; None if ``net`` is not such a stack."""
    layers: list[tuple[bool, _Activation | None]] = []
    for module in net if type(net) is nn.Sequential else [net]:
        if isinstance(module, VariationalLinear) and not module.reused:
            layers.append((module.has_bias, None))
        elif type(module) in _ACTIVATIONS and layers and layers[-1][1] is None:
            layers[-1] = (layers[-1][0], _ACTIVATIONS[type(module)])
        else:
            return None
    return layers
