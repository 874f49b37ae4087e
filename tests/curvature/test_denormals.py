"""Nothing that training computes with becomes denormal, however small gradients and statistics become."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.curvature import fisher
from noisynat.random import RandomStream
from tests.curvature.cases import IN, OUT, STRUCTURES, make


def denormals(value: Tensor) -> int:
    return int(((value.abs() < torch.finfo(value.dtype).tiny) & (value != 0)).sum())


@pytest.mark.parametrize("name", STRUCTURES)
def test_averages_of_vanished_statistics_go_to_zero(name: str) -> None:
    """From 1e-26 down: 0.9^400 = 5e-19 leaves 1e-44 in single precision, a denormal number."""
    curvature = make(name, dtype=torch.float32)
    for average in curvature.averages.values():
        average.value *= 1e-26
    zeros = torch.zeros(5, 1, IN), torch.zeros(1, 5, 1, OUT)
    for step in range(400):
        curvature.update(*zeros, 0.9)
        if step % 5 == 0:
            curvature.refresh(1e-3)
        assert not any(denormals(average.value) for average in curvature.averages.values())
    curvature.refresh(1e-3)
    state = {**curvature.state_tensors(), **curvature.prepared}
    assert not {key: denormals(value) for key, value in state.items() if value.is_floating_point() and denormals(value)}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("vanished", ["A", "S", "both"])
def test_a_factor_that_has_vanished_leaves_the_damping(name: str, vanished: str) -> None:
    """C = 0: the inverse is that of the damping alone, in every structure."""
    curvature = make(name, dtype=torch.float32)
    a, g = 10 * torch.randn(5, 1, IN), 10 * torch.randn(1, 5, 1, OUT)  # over nothing, they overflow
    curvature.update(0 * a if vanished in ("A", "both") else a, 0 * g if vanished in ("S", "both") else g, 0.0)
    curvature.refresh(1e-5)
    v = torch.randn(OUT, IN)
    torch.testing.assert_close(curvature.solve(v), 1e5 * v, rtol=1e-3, atol=1.0)
    assert not curvature.failures.any()


@pytest.mark.parametrize("kind", ["ggn", "mc", "empirical"])
def test_gradients_of_what_is_certain_are_zero(kind: Any) -> None:
    """exp(-90) = 8e-40 is denormal in single precision."""
    f = torch.tensor([[90.0, 0.0, 1.0], [0.0, 95.0, -3.0]])
    likelihood = noisynat.CategoricalLikelihood()
    assert denormals(f.softmax(-1))
    columns = fisher.output_gradients(likelihood, f, torch.tensor([0, 1]), kind, RandomStream(0))
    assert not denormals(columns)


@pytest.mark.parametrize("posterior", ["diagonal", "kronecker", "matrix_normal", "eigen_corrected"])
@pytest.mark.parametrize("width", [16, 300])
def test_a_memorized_batch_leaves_no_denormals(posterior: Any, width: int) -> None:
    """Dead inputs, dead units, and a batch of which the network is certain."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
    with torch.no_grad():
        net[0].bias[:5] = -100  # never active
        net[2].weight *= 200 / width**0.5
    bnn = noisynat.VariationalNetwork(
        net, noisynat.CategoricalLikelihood(), posterior=posterior, num_data=10**6, kl_weight=1e-3
    )
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=1e-3, betas=(0.9, 0.5), fisher="mc", stats_every=1)
    x = torch.randn(10, 8)
    x[:, :3] = 0
    with torch.no_grad():
        y = bnn.eval()(x).argmax(-1)
    for _ in range(300):
        optimizer.zero_grad()
        bnn.train().loss(x, y).backward()
        optimizer.step()
    for layer, layer_posterior in zip(bnn.layers, bnn.posteriors, strict=True):
        curvature = layer_posterior.curvature
        found = {**curvature.state_tensors(), **curvature.prepared, "mean": layer.mean, **optimizer.state[layer.mean]}
        bad = {key: denormals(value) for key, value in found.items() if value.is_floating_point()}
        assert not any(bad.values()), {key: count for key, count in bad.items() if count}
