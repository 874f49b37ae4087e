"""Fisher matrices and their approximations against Jacobians, and correlations over space that are known."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.diagnostics import APPROXIMATIONS, compare_fisher, spatial_correlation
from tests.layers.test_conv_posterior import gauss_newton, jacobian, variational


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 2, groups=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), nn.Tanh(),
        nn.Linear(3, 2),
    ).double()  # fmt: skip


X = torch.randn(5, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_fisher_matrix_is_that_of_the_jacobians() -> None:
    net = small().eval()
    found = compare_fisher(variational(net), X)
    j = torch.cat([jacobian(net, name, X) for name in found.names], dim=-1)
    torch.testing.assert_close(found.exact, torch.einsum("bki,bkj->ij", j, j) / len(X) / 0.25)
    assert found.names == ("0", "1", "4", "6")
    assert found.sizes == (4 * 5, 4 * 2, 3 * 25, 2 * 4)


def test_the_blocks_are_those_of_the_layers() -> None:
    net = small().eval()
    found = compare_fisher(variational(net), X)
    blocks = torch.block_diag(*(gauss_newton(net, name, X) for name in found.names))
    torch.testing.assert_close(found.approximations["block_diagonal"], blocks)
    diagonal = torch.diag(found.exact.diagonal())
    torch.testing.assert_close(found.approximations["diagonal"], diagonal)
    expected = (found.exact - diagonal).norm() / found.exact.norm()
    assert found.error("diagonal") == pytest.approx(expected.item())


def test_errors_have_the_order_that_theory_gives() -> None:
    """EK-FAC has the best diagonal in the basis in which Kronecker factors have another (George et al. 2018)."""
    found = compare_fisher(variational(small()), X)
    errors = [found.error(name) for name in APPROXIMATIONS]
    assert list(found.approximations) == list(APPROXIMATIONS)
    assert errors[0] < errors[1] < errors[2]
    assert f"kronecker {errors[2]:.3f}" in str(found)


def test_one_example_has_a_kronecker_fisher_in_a_linear_layer() -> None:
    found = compare_fisher(variational(small()), X[:1])
    errors = found.block_errors("kronecker").diagonal()
    assert errors[2:].max() < 1e-6
    assert errors[0] > 1e-3  # the convolution sees several locations


def test_block_errors_by_hand() -> None:
    found = compare_fisher(variational(small()), X)
    first, last = slice(0, 20), slice(103, 111)
    exact = found.exact
    expected = exact[first, last].norm() / (exact[first, first].norm() * exact[last, last].norm()).sqrt()
    torch.testing.assert_close(found.block_errors("kronecker")[0, 3], expected)


def test_rules_of_weight_sharing_are_told_apart() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean(-1)

    bnn, x = variational(Pooled()), torch.randn(6, 2, 5, dtype=torch.float64)
    errors = [compare_fisher(bnn, x, sharing=rule).error("kronecker") for rule in ("expand", "reduce")]
    assert errors[1] < 1e-10 < errors[0]


def test_nothing_changes() -> None:
    net = small()
    bnn = variational(net).train()
    bnn.net[1].eval()
    modes = [module.training for module in bnn.modules()]
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    compare_fisher(bnn, X)
    spatial_correlation(bnn, X, "0", 1)
    assert [module.training for module in bnn.modules()] == modes
    assert all(torch.equal(value, bnn.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for p in bnn.parameters())


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"replicas": 2}, {}, "without replicas"),
        ({}, {"approximations": ["kfac"]}, "got 'kfac'"),
        ({}, {"sharing": "sum"}, "sharing is one of"),
    ],
)
def test_what_is_refused(settings: Any, arguments: Any, message: str) -> None:
    bnn = variational(nn.Linear(3, 2).double(), **settings)
    with pytest.raises(ValueError, match=message):
        compare_fisher(bnn, torch.randn(4, 3, dtype=torch.float64), **arguments)


def test_large_networks_and_reused_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 5000 weights"):
        compare_fisher(variational(nn.Linear(100, 100).double()), torch.zeros(1, 100, dtype=torch.float64))
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="layer '0' is used 2 times"):
        compare_fisher(variational(nn.Sequential(layer, nn.Tanh(), layer).double()), torch.randn(4, 3).double())


# --- over space -----------------------------------------------------------------------------------


def test_correlations_of_a_moving_average() -> None:
    """x_t = e_t + e_(t+1) along one dimension: correlation 1/2 at a distance of 1, and none beyond."""
    noise = torch.randn(2000, 1, 6, 13, dtype=torch.float64)
    x = 3 + noise[..., :-1] + noise[..., 1:]
    bnn = variational(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(144, 1)).double())
    found = spatial_correlation(bnn, x, "0", 2).activations
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[2, 1:4] = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_correlations_of_derivatives_by_hand() -> None:
    """With one linear output, the derivative in a channel is that output's weight, for every example."""
    net = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(4, 1)).double()
    weight = torch.tensor([[1.0, 2.0, -1.0, 3.0]], dtype=torch.float64)
    net[2].weight.data.copy_(weight)
    found = spatial_correlation(variational(net), torch.randn(7, 1, 4, dtype=torch.float64), "0", 1).derivatives
    w = weight[0]
    beside = (w[1:] @ w[:-1] / (w[1:] @ w[1:] * (w[:-1] @ w[:-1])).sqrt()).item()
    torch.testing.assert_close(found, torch.tensor([beside, 1.0, beside], dtype=torch.float64))


def test_correlations_that_are_not_there() -> None:
    bnn = variational(small())
    with pytest.raises(ValueError, match=r"'4' is no convolution .* there are 0"):
        spatial_correlation(bnn, X, "4")
    with pytest.raises(ValueError, match=r"radius 2 does not fit images of \(2, 3\)"):
        spatial_correlation(bnn, X, "0", 2)
    assert noisynat.diagnostics.spatial_correlation is spatial_correlation
