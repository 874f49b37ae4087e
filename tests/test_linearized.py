"""The linearized predictive against Jacobians by automatic differentiation and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import noisynat
from noisynat.layers.base import drawn_weights
from noisynat.posteriors.families import STRUCTURES

ALL: list[Any] = list(STRUCTURES)


class Reused(nn.Module):
    """A network of its own kind: one layer serves twice, and two outputs come from different depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.again(hidden))) + hidden[..., :2]


def make(net: nn.Module, structure: Any = "kronecker", **options: Any) -> noisynat.VariationalNetwork:
    settings: dict[str, Any] = {"num_data": 20, "seed": 0, **options}
    likelihood = noisynat.GaussianLikelihood(noise=0.3)
    return noisynat.VariationalNetwork(net.double(), likelihood, posterior=structure, **settings)


def mlp(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))


def expansion(bnn: noisynat.VariationalNetwork, x: Tensor, draws: list[Any]) -> Tensor:
    """f(x; M) + J (W - M) by automatic differentiation in the layers' means."""
    of_parameter = {id(parameter): name for name, parameter in bnn.net.named_parameters()}
    names = [of_parameter[id(layer.mean)] for layer in bnn.layers]
    means = tuple(layer.mean.detach() for layer in bnn.layers)
    moves = tuple(draw.weight - mean for draw, mean in zip(draws, means, strict=True))

    def outputs(*weights: Tensor) -> Tensor:
        return functional_call(bnn.net, dict(zip(names, weights, strict=True)), (x,))  # type: ignore[no-any-return]

    bnn.eval()
    value, change = torch.autograd.functional.jvp(outputs, means, moves)  # type: ignore[no-untyped-call]
    return value + change  # type: ignore[no-any-return]


@pytest.mark.parametrize("structure", ALL)
@pytest.mark.parametrize("net", [mlp(), Reused()], ids=["stack", "reused"])
def test_samples_are_the_first_order_expansion(structure: Any, net: nn.Module) -> None:
    bnn, x = make(net, structure), torch.randn(6, 3).double()
    draws = list(bnn._sampler.draw(4, bnn.evaluation_stream, single=True))
    expected = torch.stack([expansion(bnn, x, draw) for draw in draws])
    torch.testing.assert_close(bnn._sampler.evaluate_linearized(x, draws), expected)


def test_several_draws_at_once_are_the_same_as_one_by_one() -> None:
    bnn, x = make(mlp(), replicas=3), torch.randn(3, 6, 3).double()
    (together,) = bnn._sampler.draw(4, bnn.evaluation_stream)
    apart = [[type(draw)(draw.weight[s]) for draw in together] for s in range(4)]
    sampler = bnn._sampler
    torch.testing.assert_close(sampler.evaluate_linearized(x, [together]), sampler.evaluate_linearized(x, apart))


def test_replicas_expand_about_their_own_means() -> None:
    bnn, x = make(mlp(), replicas=(2, 3)), torch.randn(6, 3).double()
    together = bnn.predict(x, num_samples=5, predictive="linearized")
    assert together.samples.shape == (5, 2, 3, 6, 2)
    centre = bnn.eval()(x)
    many = bnn.predict(x, num_samples=4000, predictive="linearized")
    error = (many.mean - centre).abs() / many.epistemic_variance.sqrt()
    assert error.max() < 5 / 4000**0.5


@pytest.mark.parametrize("structure", ALL)
def test_a_linear_network_is_its_own_expansion(structure: Any) -> None:
    bnn, x = make(nn.Linear(3, 2), structure), torch.randn(6, 3).double()
    sampled, linearized = (
        bnn.predict(x, num_samples=7, generator=torch.Generator().manual_seed(1), predictive=kind)
        for kind in ("sampled", "linearized")
    )
    torch.testing.assert_close(linearized.samples, sampled.samples)


def test_dense_variance_is_that_of_the_jacobian() -> None:
    """Var f = J Sigma J^T (Immer et al. 2021, equation 9), with Sigma as a matrix."""
    bnn, x = make(mlp(1), "dense"), torch.randn(4, 3).double()
    layers = list(bnn.layers)

    def output(*weights: Tensor) -> Tensor:
        with drawn_weights(layers, [noisynat.posteriors.draws.Draw(weight) for weight in weights]):
            return bnn.net(x)[:, 0]

    blocks = torch.autograd.functional.jacobian(output, tuple(layer.mean.detach() for layer in layers))
    jacobian = torch.cat([block.flatten(1) for block in blocks], dim=1)
    expected = jacobian @ bnn.posteriors[0].covariance() @ jacobian.T
    samples = bnn.predict(x, num_samples=40_000, predictive="linearized").samples[..., 0]
    torch.testing.assert_close(torch.cov(samples.T), expected, rtol=0, atol=0.03 * expected.diagonal().max().item())


def test_rows_per_pass_do_not_matter_and_nothing_changes() -> None:
    bnn, x = make(mlp()), torch.randn(6, 3).double()
    bnn.train()
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    whole, parts = (
        bnn.predict(x, 5, torch.Generator().manual_seed(0), size, predictive="linearized").samples for size in (None, 4)
    )
    torch.testing.assert_close(whole, parts)
    assert not whole.requires_grad
    assert bnn.training
    assert all(layer.mean.grad is None for layer in bnn.layers)
    after = bnn.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'sampled' or 'linearized', got 'laplace'"):
        make(mlp()).predict(torch.zeros(1, 3).double(), predictive="laplace")  # type: ignore[arg-type]
