"""The fused noisy layer against the same thing in single operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.layers.fused import NoisyLinear
from noisynat.layers.linear import VariationalLinear

STRUCTURES = ("diagonal", "kronecker", "matrix_normal", "eigen_corrected")


def network(structure: Any, replicas: Any, *, bias: bool = True, outputs: int = 3) -> noisynat.VariationalNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Tanh(), nn.Linear(5, outputs, bias=bias)).double()
    bnn = noisynat.VariationalNetwork(
        net, noisynat.GaussianLikelihood(0.5), posterior=structure, num_data=20, replicas=replicas, seed=2
    )
    optimizer = noisynat.NoisyNaturalGradient(bnn, refresh_every=1)
    for _ in range(3):  # so that no basis is the identity's
        optimizer.zero_grad()
        bnn.loss(torch.randn(7, 4).double(), torch.randn(7, outputs).double()).backward()
        optimizer.step()
    for posterior in bnn.posteriors:
        posterior.curvature.statistics_due = False
    return bnn


def outputs_and_gradients(bnn: noisynat.VariationalNetwork, x: Tensor) -> list[Tensor]:
    bnn.zero_grad()
    x = x.clone().requires_grad_()
    f = bnn(x)
    (f * torch.linspace(0.5, 2, f.numel(), dtype=f.dtype).view_as(f)).sum().backward()
    assert x.grad is not None
    return [f.detach(), x.grad, *(layer.mean.grad for layer in bnn.layers)]  # type: ignore[list-item]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("replicas", [None, 2, (2, 3)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_values_and_gradients_are_those_of_single_operations(
    structure: str, replicas: Any, bias: bool, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, found = torch.randn(6, 4).double(), []
    for fused in (True, False):
        bnn = network(structure, replicas, bias=bias, outputs=outputs)
        if not fused:
            monkeypatch.setattr(VariationalLinear, "_fused_root", lambda *_: None)
        found.append(outputs_and_gradients(bnn, x))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_it_is_one_operation_of_the_graph() -> None:
    f = network("kronecker", None)(torch.randn(6, 4).double())
    assert "NoisyLinear" in str(f.grad_fn.next_functions[0][0].next_functions)  # type: ignore[union-attr]


def test_gradients_by_finite_differences() -> None:
    bnn = network("kronecker", 2)
    layer = bnn.layers[0]
    root = layer.posterior.fused_root(6, False)
    assert root is not None
    x, normal = torch.randn(2, 6, 4).double().requires_grad_(), torch.randn(2, 6, 5).double()

    def outputs(x: Tensor, mean: Tensor) -> Tensor:
        a = torch.cat([x.detach(), torch.ones(2, 6, 1).double()], dim=-1)
        result: Tensor = NoisyLinear.apply(x, a, mean, root, 0.1, normal)
        return result

    torch.autograd.gradcheck(outputs, (x, layer.mean.detach().clone().requires_grad_()))


@pytest.mark.parametrize("noise", ["shared", "flipout", "per_example"])
def test_other_noise_is_not_fused(noise: Any) -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(4, 5), noisynat.GaussianLikelihood(0.5), num_data=9, noise=noise)
    assert bnn.posteriors[0].fused_root(6, False) is None


def test_standard_deviations_that_are_trained_are_not_fused() -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(4, 5), noisynat.GaussianLikelihood(0.5), None, "mean_field", num_data=9)
    assert bnn.posteriors[0].fused_root(6, False) is None
    bnn.negative_elbo(torch.randn(3, 4), torch.randn(3, 5)).backward()
    assert all(parameter.grad is not None for parameter in bnn.parameters())
