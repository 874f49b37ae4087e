"""Variational normalization layers against PyTorch's, and their posteriors against dense matrices."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.curvature import Dense, Diagonal
from noisynat.layers import VariationalNorm
from noisynat.layers.base import drawn_weights, recording
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream
from tests.layers.test_conv_posterior import gauss_newton, statistics_of, variational
from tests.posteriors.test_noise import by_example, check_moments

STREAM = RandomStream(0)
DRAWS = 10_000
NATURAL = ("diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer")
CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "batch 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch 1d, sequences": (lambda: nn.BatchNorm1d(4), (4, 5)),
    "batch 2d": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
    "group": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "group, sequences": (lambda: nn.GroupNorm(4, 4), (4, 5)),
    "layer": (lambda: nn.LayerNorm(4), (4,)),
    "layer, sequences": (lambda: nn.LayerNorm(4), (5, 4)),
    "layer, images": (lambda: nn.LayerNorm((3, 2)), (4, 3, 2)),
    "layer, no shift": (lambda: nn.LayerNorm(4, bias=False), (5, 4)),
}


def norm_of(case: str) -> Any:
    """With weights that are not 1 and 0, and running statistics that are not those of a batch."""
    norm = CASES[case][0]().double()
    for tensor in [*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())]:
        tensor.data.add_(torch.rand_like(tensor))
    return norm


def inputs(case: str, *lead: int) -> Tensor:
    return torch.randn(*lead, *CASES[case][1], dtype=torch.float64)


def weights_of(layer: Any) -> Tensor:
    """Scales and shifts (units, columns) of the mean."""
    return layer.mean.detach() + torch.tensor([1.0, 0.0], dtype=torch.float64)[: layer.columns]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_normalization_at_the_mean(case: str, training: bool) -> None:
    norm, x = norm_of(case).train(training), inputs(case, 6)
    layer = VariationalNorm.from_norm(norm, (), STREAM).train(training)
    f, s = norm(x), layer(x)
    torch.testing.assert_close(s, f)
    f.square().sum().backward()
    s.square().sum().backward()
    torch.testing.assert_close(layer.mean.grad[:, 0], norm.weight.grad.flatten())
    if layer.has_bias:
        torch.testing.assert_close(layer.mean.grad[:, 1], norm.bias.grad.flatten())
    for mine, theirs in zip(layer.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_products_of_activations_and_weights(case: str) -> None:
    layer, x = VariationalNorm.from_norm(norm_of(case), (), STREAM).eval(), inputs(case, 6)
    with recording([layer]) as records:
        layer(x)
    ((record,),) = records
    a, s = layer.activations(record.inputs), layer.by_location(record.outputs)
    assert a.shape == (layer.out_features, 6, x[0].numel() // layer.out_features, layer.columns)
    torch.testing.assert_close(s.squeeze(-1), torch.einsum("ubtc,uc->ubt", a, weights_of(layer)))
    assert torch.equal(layer._in_place_of(s, record.outputs), record.outputs)
    together = torch.stack([record.outputs, 2 * record.outputs])
    torch.testing.assert_close(layer.by_location(together, 1)[1], 2 * s)


@pytest.mark.parametrize("case", [case for case in CASES if "batch" not in case])
def test_replicas_and_samples_use_their_own_weights(case: str) -> None:
    norm = norm_of(case)
    layer = VariationalNorm.from_norm(norm, (2,), STREAM).eval()
    alone = VariationalNorm.from_norm(norm, (), STREAM).eval()
    x, weights = inputs(case, 3, 2, 6), torch.randn(3, 2, *alone.mean.shape, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights)]):
        s = layer(x)
    with drawn_weights([alone], [Draw(weights[2, 1])]):
        torch.testing.assert_close(s[2, 1], alone(x[2, 1]))
    assert torch.equal(layer.mean[0], layer.mean[1])  # there is nothing random in ones and zeros


@pytest.mark.parametrize("case", CASES)
def test_groups_of_examples_use_the_weights_given_to_them(case: str) -> None:
    layer, x = VariationalNorm.from_norm(norm_of(case), (), STREAM).eval(), inputs(case, 5)
    weights = torch.randn(3, *layer.mean.shape, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights, grouped=True)]):
        s = layer(x)
    for n in range(5):
        with drawn_weights([layer], [Draw(weights[n // 2])]):
            torch.testing.assert_close(s[n], layer(x[n : n + 1])[0])


def test_samples_of_a_batch_normalization_share_what_it_averaged() -> None:
    layer = VariationalNorm.from_norm(norm_of("batch 2d"), (), STREAM).eval()
    x, weights = inputs("batch 2d", 3, 6), torch.randn(3, *layer.mean.shape, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights)]):
        s = layer(x)
    with drawn_weights([layer], [Draw(weights[1])]):
        torch.testing.assert_close(s[1], layer(x[1]))


def test_replicas_of_a_batch_normalization_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="replicas of a batch normalization would share its statistics"):
        noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=9, replicas=2)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, affine=False), nn.LayerNorm(4).requires_grad_(False)])
def test_layers_without_trained_weights_stay(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(3, 4), norm)
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=9)
    assert [layer.name for layer in bnn.layers] == ["0"]


def test_coverage_and_memory_know_them() -> None:
    net = nn.Sequential(nn.LayerNorm((3, 2), bias=False), nn.Flatten(), nn.Linear(6, 4), nn.BatchNorm1d(4))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=9)
    rows = {row.name: row.shape for row in bnn.coverage()}
    assert rows == {"0.weight": (3, 2), "2.weight": (4, 6), "2.bias": (4,), "3.weight": (4,), "3.bias": (4,)}
    assert bnn.coverage().fraction == 1
    assert noisynat.memory_forecast(net, "dense").largest.side == 6 + 28 + 8


# --- posteriors -----------------------------------------------------------------------------------


class Net(nn.Module):
    """A normalization, a nonlinearity and a linear layer."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.norm = norm_of(case)
        self.head = nn.LazyLinear(2).double()
        self(inputs(case, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(x)).flatten(1))


@pytest.mark.parametrize("structure", NATURAL)
@pytest.mark.parametrize("case", CASES)
def test_curvature_is_exact_up_to_its_structure(case: str, structure: Any) -> None:
    """The Gauss-Newton block of all units, or of each, or its diagonal; Kronecker forms have a matrix for each unit."""
    net, x = Net(case).eval(), inputs(case, 3)
    bnn = variational(net, structure)
    statistics_of(bnn, x)
    layer, curvature = bnn.layers[0], bnn.posteriors[0].curvature
    units, columns = layer.mean.shape
    exact = gauss_newton(net, "norm", x)
    blocks = exact.unflatten(0, (units, columns)).unflatten(-1, (units, columns))
    if structure in ("dense", "dense_per_layer"):
        torch.testing.assert_close(curvature.latest()[: len(exact), : len(exact)], exact)
    elif structure == "diagonal":
        assert isinstance(curvature, Diagonal)
        torch.testing.assert_close(curvature.averages["c"].value.flatten(), exact.diagonal())
    else:
        assert isinstance(curvature, Dense)
        torch.testing.assert_close(curvature.latest(), torch.stack([blocks[u, :, u] for u in range(units)]))


@pytest.mark.parametrize("noise", ["auto", "shared", "per_example", "flipout"])
@pytest.mark.parametrize("structure", ["kronecker", "diagonal", "dense_per_layer", "mean_field"])
@pytest.mark.parametrize("case", ["layer, sequences", "group"])
def test_noise_is_joint_over_locations(case: str, structure: str, noise: str) -> None:
    if noise == "flipout" and structure in ("kronecker", "dense_per_layer"):
        pytest.skip("has no noise at the outputs")
    torch.manual_seed(1)
    norm, x = norm_of(case), inputs(case, 2)
    one = variational(nn.Sequential(norm, nn.Flatten()), structure, num_data=4, noise=noise)
    many = variational(norm, structure, num_data=4, noise=noise, replicas=DRAWS, init="weights")
    if structure != "mean_field":
        statistics_of(one, x)
        state = one.posteriors[0].curvature.state_tensors()
        expanded = {key: value.expand(DRAWS, *value.shape).clone() for key, value in state.items()}
        many.posteriors[0].curvature.load_tensors(expanded)
    layer = one.layers[0]
    with recording([layer]) as records:
        one.eval()(x)
    a = layer.activations(records[0][0].inputs)  # (units, B, T, columns)
    units, columns = layer.mean.shape
    j = torch.zeros(*x.shape[:1], a.shape[2], units, units, columns, dtype=x.dtype)
    for unit in range(units):
        j[:, :, unit, unit] = a[unit]
    places = layer._in_place_of(torch.arange(j[..., 0, 0].numel()).reshape(2, -1, units).movedim(-1, 0)[..., None], x)
    j = j.flatten(0, 2)[places.flatten()].flatten(1)  # in the order of the outputs
    joint = j @ one.posteriors[0].covariance().detach() @ j.T
    with torch.no_grad():
        everywhere = x.expand(DRAWS, *x.shape)
        deviations = (many.train()(everywhere) - many.eval()(everywhere)).flatten(1)
    check_moments(deviations, joint if noise == "shared" else by_example(joint, len(joint) // 2))


@pytest.mark.parametrize("structure", NATURAL)
def test_a_prior_is_about_scales_of_one(structure: str) -> None:
    """KL(q || p) by dense algebra, with the scale's mean less 1."""
    bnn = variational(Net("layer").eval(), structure, num_data=4)
    statistics_of(bnn, inputs("layer", 3))
    posterior = bnn.posteriors[0]
    sigma, mean = posterior.covariance(), torch.cat([layer.mean.detach().flatten() for layer in posterior.layers])
    if structure != "dense":
        assert torch.equal(mean.unflatten(0, (4, 2))[:, 0], bnn.net.norm.mean[:, 0].detach())
    expected = (sigma.trace() + mean @ mean - len(mean) - torch.logdet(sigma)) / 2
    torch.testing.assert_close(posterior.kl_divergence(), expected)


@pytest.mark.parametrize("structure", [*NATURAL, "mean_field"])
def test_a_network_with_all_kinds_of_layers_trains(structure: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 6),
        nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2),
    )  # fmt: skip
    bnn = noisynat.VariationalNetwork(
        net, noisynat.CategoricalLikelihood(), posterior=structure, num_data=40, kl_weight=0.1
    )
    x = torch.randn(40, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0).long()
    if structure == "mean_field":
        optimizer: Any = torch.optim.Adam(bnn.parameters(), lr=0.02)
    else:
        optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.05, kl_clip=0.01)
    history = noisynat.fit(bnn, optimizer, [(x, y)], 60, progress=False)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    again = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), posterior=structure, num_data=40)
    again.load_state_dict(bnn.state_dict())
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    torch.testing.assert_close(again.predict(x, 3, generators[0]).probs, bnn.predict(x, 3, generators[1]).probs)
