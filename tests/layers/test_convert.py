"""Which layers become variational, and what coverage() says of the others."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from noisynat.layers import VariationalLayer, VariationalLinear, convert
from noisynat.layers.convert import coverage
from noisynat.random import RandomStream


def converted(net: nn.Module, replicas: tuple[int, ...] = ()) -> tuple[nn.Module, list[VariationalLayer]]:
    return convert(net, replicas, RandomStream(0))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.PReLU(2)))


def names(layers: list[VariationalLayer]) -> list[str]:
    return [layer.name for layer in layers]


class Siblings(nn.Module):
    """Two names for one child of one parent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x).tanh())


class Tied(nn.Module):
    """Two layers with one weight, as embeddings and their decoders have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(x)))


def test_nested_layers_are_found_in_order() -> None:
    net, layers = converted(mlp())
    assert names(layers) == ["0", "2.0"]
    assert layers == [net[0], net[2][0]]
    assert [layer.reused for layer in layers] == [False, False]


def test_converted_net_computes_the_same_at_the_mean() -> None:
    net, x = mlp(), torch.randn(5, 3)
    torch.testing.assert_close(converted(net)[0].eval()(x), net(x))


def test_original_net_is_not_changed() -> None:
    net = mlp()
    before = copy.deepcopy(net.state_dict())
    result, layers = converted(net)
    for parameter in result.parameters():
        parameter.data.fill_(7)
    assert isinstance(net[0], nn.Linear)
    assert not any(isinstance(module, VariationalLayer) for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not {id(module) for module in net.modules()} & {id(module) for module in [*result.modules(), *layers]}


def test_a_linear_alone() -> None:
    linear = nn.Linear(3, 2)
    net, layers = converted(linear)
    assert isinstance(net, VariationalLinear)
    assert layers == [net]
    assert net.name == "linear"
    assert [row.name for row in coverage(net, "kronecker", ())] == ["weight", "bias"]


@pytest.mark.parametrize("training", [True, False])
def test_train_mode_is_kept(training: bool) -> None:
    _, layers = converted(mlp().train(training))
    assert [layer.training for layer in layers] == [training, training]


def test_a_shared_layer_is_converted_everywhere() -> None:
    linear = nn.Linear(3, 3)
    net, layers = converted(nn.Sequential(linear, nn.Sequential(nn.Tanh(), linear)))
    assert len(layers) == 1
    assert layers[0].reused
    assert net[0] is net[1][1] is layers[0]


def in_sequence() -> nn.Sequential:
    linear = nn.Linear(3, 3)
    return nn.Sequential(linear, nn.Tanh(), linear)


@pytest.mark.parametrize("make", [Siblings, in_sequence])
def test_siblings_that_are_one_layer_are_converted_everywhere(make: Callable[[], nn.Module]) -> None:
    original = make()
    net, layers = converted(original)
    assert len(layers) == 1
    assert layers[0].reused
    assert not any(isinstance(module, nn.Linear) for module in net.modules())
    x = torch.randn(4, 3)
    torch.testing.assert_close(net.eval()(x), original(x))


def test_a_layer_in_a_shared_parent_is_reused() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    net, layers = converted(nn.Sequential(block, block))
    assert len(layers) == 1
    assert layers[0].reused
    assert net[0] is net[1]


def test_tied_weights_stay_tied_point_estimates() -> None:
    net, layers = converted(Tied())
    assert names(layers) == ["head"]
    assert net.decoder.weight is net.encoder.weight


@pytest.mark.parametrize("frozen", [["weight", "bias"], ["bias"]])
def test_frozen_layers_stay_as_they_are(frozen: list[str]) -> None:
    net = mlp()
    for name in frozen:
        getattr(net[0], name).requires_grad_(False)
    result, layers = converted(net)
    assert names(layers) == ["2.0"]
    details = {row.name: row.detail for row in coverage(result, "kronecker", ())}
    assert all(details[f"0.{name}"] == "Linear, frozen" for name in frozen)


def test_subclasses_of_linear_stay_as_they_are() -> None:
    """Their owner may use the weight itself, as attention does with out_proj's."""
    net, layers = converted(nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 1)))
    assert names(layers) == ["1"]
    assert not isinstance(net[0].out_proj, VariationalLayer)


def test_replicas_start_from_different_weights_and_the_first_from_the_nets() -> None:
    net = mlp()[:2]
    _, (layer,) = converted(net, (3,))
    assert torch.equal(layer.mean[0, :, :3], net[0].weight)
    assert not torch.isclose(layer.mean[1], layer.mean[2]).all()
    _, (same,) = convert(net, (3,), RandomStream(0), same_start=True)
    assert torch.equal(same.mean[2, :, :3], net[0].weight)


def test_initial_weights_follow_the_stream() -> None:
    first, second = (converted(mlp(), (2,))[1][0].mean[1] for _ in range(2))
    assert torch.equal(first, second)
    other = convert(mlp(), (2,), RandomStream(1))[1][0].mean[1]
    assert not torch.equal(first, other)


# --- coverage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [(), (3,)])
def test_coverage_has_a_row_per_parameter_of_the_original(replicas: tuple[int, ...]) -> None:
    net = mlp()
    rows = coverage(converted(net, replicas)[0], "diagonal", replicas)
    assert {row.name: row.shape for row in rows} == {key: tuple(p.shape) for key, p in net.named_parameters()}
    assert len(rows) == 5
    kinds = {row.name: (row.kind, row.detail) for row in rows}
    assert kinds["2.0.bias"] == ("posterior", "diagonal")
    assert kinds["2.1.weight"] == ("point estimate", "PReLU")


def test_coverage_fraction_counts_entries() -> None:
    assert coverage(converted(mlp())[0], "diagonal", ()).fraction == (16 + 10) / (16 + 10 + 2)
    assert coverage(nn.Tanh(), "diagonal", ()).fraction == 0


def test_coverage_without_bias() -> None:
    rows = list(coverage(converted(nn.Linear(3, 2, bias=False))[0], "diagonal", ()))
    assert [(row.name, row.count) for row in rows] == [("weight", 6)]


def test_coverage_of_a_scalar_parameter() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    (row,) = coverage(converted(Scaled())[0], "diagonal", ())
    assert row.count == 1
    assert "scalar" in str(coverage(Scaled(), "diagonal", ()))


def test_coverage_prints_a_table() -> None:
    lines = str(coverage(converted(mlp())[0], "diagonal", ())).splitlines()
    assert lines[0].split() == ["parameter", "shape", "entries", "kind", "detail"]
    assert lines[2].split() == ["0.weight", "4x3", "12", "posterior", "diagonal"]
    assert lines[-2].split() == ["2.1.weight", "2", "2", "point", "estimate", "PReLU"]
    assert lines[-1] == "92.9% of the entries have a posterior"


# --- some layers only -------------------------------------------------------------------------


class Body(nn.Module):
    """A body of two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["body.0", "body.2", "head"]),
        (["head"], ["head"]),
        (["body.*"], ["body.0", "body.2"]),
        (["head", "*.0"], ["body.0", "head"]),
    ],
)
def test_layers_by_name_or_pattern(only: list[str] | None, expected: list[str]) -> None:
    net, layers = convert(Body(), (), RandomStream(0), only=only)
    assert names(layers) == expected
    plain = [name for name, module in net.named_modules() if type(module) is nn.Linear]
    assert sorted([*plain, *expected]) == ["body.0", "body.2", "head"]


def test_a_name_of_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tail' fits no layer.*these can: body\.0, body\.2, head"):
        convert(Body(), (), RandomStream(0), only=["head", "tail"])


def test_a_frozen_layer_cannot_be_asked_for() -> None:
    net = Body()
    net.head.requires_grad_(False)
    with pytest.raises(ValueError, match="'head' fits no layer that can have a posterior"):
        convert(net, (), RandomStream(0), only=["head"])
