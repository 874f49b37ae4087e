"""Which gradients feed the curvature, against exact matrices by automatic differentiation."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from noisynat import GaussianLikelihood, VariationalNetwork
from noisynat.curvature import fisher
from noisynat.random import RandomStream

OUTPUTS, NOISE = 3, 0.5


def net(*sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return nn.Sequential(*modules[:-1]).double()


def data(examples: int = 4, outputs: int = OUTPUTS) -> tuple[Tensor, Tensor]:
    return torch.randn(examples, 2, dtype=torch.float64), torch.randn(examples, outputs, dtype=torch.float64)


def blocks(module: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Jacobians of the outputs in every layer's [weight, bias], row-major: (B, K, D_layer)."""
    parameters = dict(module.named_parameters())
    jacobians = jacrev(lambda p: functional_call(module, p, (x,)))(parameters)
    result = []
    for i, layer in enumerate(module):
        if isinstance(layer, nn.Linear):
            parts = [jacobians[f"{i}.weight"]]
            if layer.bias is not None:
                parts.append(jacobians[f"{i}.bias"].unsqueeze(-1))
            result.append(torch.cat(parts, dim=-1).flatten(-2))
    return result


def exact_ggn(jacobian: Tensor) -> Tensor:
    """(1/B) sum_b J_b^T H J_b with H = I / sigma^2."""
    return sum(j.T @ j for j in jacobian) / len(jacobian) / NOISE**2


def averages(
    module: nn.Module, x: Tensor, y: Tensor, kind: str | None, structure: str = "dense", loss_scale: float = 1.0
) -> list[dict[str, Tensor]]:
    """Statistics of one batch at the mean, per posterior."""
    network = VariationalNetwork(
        module, GaussianLikelihood(NOISE), posterior=structure, num_data=10, initial_precision=0.0, seed=0
    ).eval()
    network.fisher = kind
    for posterior in network.posteriors:
        posterior.curvature.statistics_due = True
    (loss_scale * network.loss(x, y)).backward()
    result = []
    for posterior in network.posteriors:
        posterior.curvature.commit(0.0)
        result.append({key: average.debiased() for key, average in posterior.curvature.averages.items()})
    return result


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
def test_ggn_is_the_exact_gauss_newton_matrix(activation: type[nn.Module]) -> None:
    module, (x, y) = net(2, 3, OUTPUTS, activation=activation), data()
    expected = exact_ggn(torch.cat(blocks(module, x), dim=-1))
    torch.testing.assert_close(averages(module, x, y, "ggn")[0]["C"], expected)


def test_ggn_per_layer_and_its_diagonal() -> None:
    module, (x, y) = net(2, 3, OUTPUTS), data()
    dense = averages(module, x, y, "ggn", "dense_per_layer")
    diagonal = averages(module, x, y, "ggn", "diagonal")
    for c, d, jacobian in zip(dense, diagonal, blocks(module, x), strict=True):
        torch.testing.assert_close(c["C"], exact_ggn(jacobian))
        torch.testing.assert_close(d["c"].flatten(), exact_ggn(jacobian).diagonal())


def test_ggn_of_outputs_with_their_own_noise() -> None:
    module, (x, y) = net(2, OUTPUTS), data()
    likelihood = GaussianLikelihood("gamma", a0=2.0, b0=1.0, num_outputs=OUTPUTS, initial_std=0.3)
    likelihood.bind(10, torch.Size(), torch.float64)
    precision = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    likelihood.residual = ((2 + 5) / precision - 1) / 5  # b = b0 + N/2 residual = a / precision
    columns = fisher.output_gradients(likelihood, module(x), y, "ggn", RandomStream(0))
    for b in range(len(x)):
        torch.testing.assert_close(columns[:, b].T @ columns[:, b], precision.diag())


def test_empirical_fisher_squares_gradients_of_single_examples() -> None:
    module, (x, y) = net(2, 3, OUTPUTS), data()
    jacobian = torch.cat(blocks(module, x), dim=-1)
    residual = (y - module(x)).detach() / NOISE**2
    gradients = torch.stack([j.T @ r for j, r in zip(jacobian, residual, strict=True)])
    expected = sum(torch.outer(row, row) for row in gradients) / len(gradients)
    torch.testing.assert_close(averages(module, x, y, "empirical")[0]["C"], expected)
    mean = gradients.mean(0)
    assert not torch.allclose(expected, torch.outer(mean, mean), rtol=0.1)


def test_sampled_fisher_is_the_ggn_in_expectation() -> None:
    """20 000 copies of two examples; the products of normal gradients have variance below 3 C_ii C_jj."""
    module, (x, y) = net(2, 2, OUTPUTS), data(2)
    copies = 20_000
    sampled = averages(module, x.repeat(copies, 1), y.repeat(copies, 1), "mc")[0]["C"]
    expected = exact_ggn(torch.cat(blocks(module, x), dim=-1))
    diagonal = expected.diagonal()
    tolerance = 6 * (3 * torch.outer(diagonal, diagonal) / copies).sqrt()
    assert ((sampled - expected).abs() <= tolerance).all()
    assert not torch.equal(sampled, expected)


def test_sampled_fisher_does_not_see_the_targets() -> None:
    module, (x, y) = net(2, 3, OUTPUTS), data()
    first, second = (averages(module, x, targets, "mc")[0]["C"] for targets in (y, y + 5))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["ggn", "mc", "empirical"])
def test_statistics_do_not_depend_on_the_scale_of_the_loss(kind: str) -> None:
    module, (x, y) = net(2, 3, OUTPUTS), data()
    for structure in ("diagonal", "kronecker"):
        first = averages(module, x, y, kind, structure)
        second = averages(module, x, y, kind, structure, loss_scale=100.0)
        assert all(torch.equal(one[key], two[key]) for one, two in zip(first, second, strict=True) for key in one)


@pytest.mark.parametrize("bias", [True, False])
def test_kfac_is_exact_for_deep_linear_nets(bias: bool) -> None:
    module, (x, y) = net(2, 3, 4, OUTPUTS, activation=nn.Identity, bias=bias), data(6)
    factors = averages(module, x, y, "ggn", "kronecker")
    for factor, jacobian in zip(factors, blocks(module, x), strict=True):
        torch.testing.assert_close(torch.kron(factor["S"], factor["A"]), exact_ggn(jacobian))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_kfac_is_exact_for_one_datum_and_any_net(activation: type[nn.Module]) -> None:
    module, (x, y) = net(2, 3, 4, OUTPUTS, activation=activation), data(1)
    factors = averages(module, x, y, "ggn", "kronecker")
    for factor, jacobian in zip(factors, blocks(module, x), strict=True):
        torch.testing.assert_close(torch.kron(factor["S"], factor["A"]), exact_ggn(jacobian))


def test_default_is_exact_for_few_outputs_and_sampled_for_many() -> None:
    assert [fisher.default_kind(outputs) for outputs in (1, 10, 11, 1000)] == ["ggn", "ggn", "mc", "mc"]
    assert [fisher.default_kind(outputs, wide=True) for outputs in (1, 2, 3, 10)] == ["ggn", "ggn", "mc", "mc"]


@pytest.mark.parametrize(("kind", "columns"), [("ggn", OUTPUTS), ("mc", 1), ("empirical", 1)])
def test_number_of_columns(kind: str, columns: int) -> None:
    likelihood = GaussianLikelihood(NOISE)
    likelihood.bind(10, torch.Size([2]), torch.float64)
    f = torch.zeros(2, 4, OUTPUTS, dtype=torch.float64)
    gradients = fisher.output_gradients(likelihood, f, f + 1, kind, RandomStream(0))
    assert gradients.shape == (columns, 2, 4, OUTPUTS)
    assert not f.requires_grad


def gradients_by_column(f: Tensor, outputs: Sequence[Tensor], columns: Tensor) -> list[Tensor]:
    return [
        torch.stack([torch.autograd.grad((f * column).sum(), s, retain_graph=True)[0] for column in columns])
        for s in outputs
    ]


def test_layer_gradients() -> None:
    first, second, columns = nn.Linear(2, 3).double(), nn.Linear(3, 2).double(), torch.randn(4, 5, 2).double()
    hidden = first(torch.randn(5, 2, dtype=torch.float64))
    f, unused = second(hidden.tanh()), first(torch.randn(5, 2, dtype=torch.float64))
    expected = gradients_by_column(f, [hidden, f], columns)
    result = fisher.layer_gradients(f, [hidden, f, unused], columns)
    torch.testing.assert_close(result[:2], expected)
    assert torch.equal(result[2], torch.zeros(4, 5, 3).double())
    f.sum().backward()  # the graph is kept for the loss
