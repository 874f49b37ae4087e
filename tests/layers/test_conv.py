"""Variational convolutions against PyTorch's, and against patches cut out by hand."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.layers import VariationalConv1d, VariationalConv2d
from noisynat.layers.base import drawn_weights, recording
from noisynat.layers.conv import Window
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # of PyTorch's own

STREAM = RandomStream(0)
CASES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"kernel_size": 1},
    {"kernel_size": (3, 2)},
    {"stride": 2},
    {"stride": (2, 1)},
    {"padding": 1},
    {"padding": (2, 1)},
    {"padding": "valid"},
    {"padding": "same", "kernel_size": (2, 3)},
    {"padding": "same", "kernel_size": 4, "padding_mode": "reflect"},
    {"dilation": 2},
    {"dilation": (1, 2), "padding": "same"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate", "stride": 2},
    {"padding": (1, 2), "padding_mode": "circular"},
    {"groups": 2},
    {"groups": 4, "out_channels": 4, "padding": 1, "bias": False},
    {"groups": 2, "stride": 2, "padding": 1, "dilation": 2, "padding_mode": "circular"},
]


def conv_of(case: dict[str, Any], dims: int = 2) -> nn.Conv1d | nn.Conv2d:
    """An ordinary layer; of sequences, what of the case is of the first dimension."""
    settings = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **case}
    if dims == 1:
        settings = {key: value[0] if isinstance(value, tuple) else value for key, value in settings.items()}
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    return kind(**settings).double()


def layer_of(conv: Any, replicas: tuple[int, ...] = ()) -> Any:
    kind = VariationalConv1d if isinstance(conv, nn.Conv1d) else VariationalConv2d
    return kind.from_conv(conv, replicas, STREAM)


def images(*lead: int, dims: int = 2) -> Tensor:
    return torch.randn(*lead, 4, *(6, 7)[:dims], dtype=torch.float64)


def source(index: int, size: int, mode: str) -> int | None:
    """Which entry of a row of ``size`` a place in or beside it shows, None for none."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "circular":
        return index % size
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    return -index if index < 0 else 2 * (size - 1) - index  # reflect


def patches_by_hand(x: Tensor, window: Window) -> Tensor:
    """(B, T, channels * kernel) of x (B, channels, height, width), entry by entry."""
    sizes = x.shape[2:]
    places = []
    for size, k, s, d, (before, after) in zip(
        sizes, window.kernel, window.stride, window.dilation, window.padding, strict=True
    ):
        places.append((size + before + after - d * (k - 1) - 1) // s + 1)
    rows = []
    for place in product(*(range(n) for n in places)):
        row = []
        for channel, *offset in product(range(x.shape[1]), *(range(k) for k in window.kernel)):
            at = [
                source(p * s + o * d - before, size, window.padding_mode)
                for p, s, o, d, (before, _), size in zip(
                    place, window.stride, offset, window.dilation, window.padding, sizes, strict=True
                )
            ]
            row.append(torch.zeros(len(x)).to(x) if None in at else x[(slice(None), channel, *at)])
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, 1)


# --- the mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_convolution_at_the_mean(case: dict[str, Any], dims: int) -> None:
    conv = conv_of(case, dims)
    layer, x = layer_of(conv), images(3, dims=dims)
    torch.testing.assert_close(layer.eval()(x), conv(x))
    conv(x).square().sum().backward()
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close(layer.mean.grad[:, : layer.in_features], conv.weight.grad.flatten(1))
    if layer.has_bias:
        torch.testing.assert_close(layer.mean.grad[:, -1], conv.bias.grad)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_replicas_use_their_own_weights(case: dict[str, Any]) -> None:
    conv = conv_of(case)
    layer = layer_of(conv, (2, 3)).eval()
    x = images(2, 3, 5)
    s = layer(x)
    torch.testing.assert_close(s[0, 0], conv(x[0, 0]))
    assert not torch.equal(layer.mean[0, 0], layer.mean[1, 2])
    with torch.no_grad():
        conv.weight.copy_(layer.mean[1, 2, :, : layer.in_features].unflatten(-1, conv.weight.shape[1:]))
        if layer.has_bias:
            conv.bias.copy_(layer.mean[1, 2, :, -1])
    torch.testing.assert_close(s[1, 2], conv(x[1, 2]))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("examples", [5, 6])
def test_groups_of_examples_use_the_weights_given_to_them(groups: int, examples: int) -> None:
    conv = conv_of({"groups": groups})
    layer, x = layer_of(conv), images(examples)
    weights = torch.randn(3, *layer.mean.shape, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights, grouped=True)]):
        s = layer(x)
    for n in range(examples):
        with drawn_weights([layer], [Draw(weights[n // 2])]):
            torch.testing.assert_close(s[n], layer(x[n : n + 1])[0])


def test_samples_lead() -> None:
    layer, x = layer_of(conv_of({}), (2,)), images(3, 2, 5)
    weights = torch.randn(3, *layer.mean.shape, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights)]):
        s = layer(x)
    with drawn_weights([layer], [Draw(weights[1])]):
        torch.testing.assert_close(s[1], layer(x[1]))


def test_initial_weights_of_replicas_are_those_of_pytorch() -> None:
    conv = nn.Conv2d(4, 50, 5)
    others = VariationalConv2d.from_conv(conv, (3,), STREAM).mean[1:].detach()
    assert others.abs().max() < 0.1  # 1 / sqrt(4 * 25)
    assert others.std() == pytest.approx(conv.weight.std().item(), rel=0.05)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (4, 6, 6), (2, 1, 4, 6, 6)])
def test_wrong_images(shape: tuple[int, ...]) -> None:
    layer = layer_of(conv_of({}))
    layer.name = "first"
    with pytest.raises(ValueError, match=r"layer 'first' takes images of 4 channels, \(B, 4, \*space\)"):
        layer(torch.zeros(shape, dtype=torch.float64))


def test_a_window_of_other_dimensions() -> None:
    with pytest.raises(ValueError, match="a window of 1 dimensions"):
        VariationalConv1d(2, 3, Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))))


# --- what statistics see --------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_patches_by_hand(case: dict[str, Any]) -> None:
    layer, x = layer_of(conv_of(case)), images(3)
    torch.testing.assert_close(layer.window.patches(x), patches_by_hand(x, layer.window))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("replicas", [(), (2,)])
def test_outputs_are_products_of_activations_and_weights(
    case: dict[str, Any], dims: int, replicas: tuple[int, ...]
) -> None:
    layer = layer_of(conv_of(case, dims), replicas).eval()
    with recording([layer]) as records:
        layer(images(*replicas, 3, dims=dims))
    ((record,),) = records
    a, s = layer.activations(record.inputs), layer.by_location(record.outputs)
    groups, _, columns = layer.matrix_shape
    mean = layer.mean if groups == 1 else layer.mean.unflatten(-2, (groups, -1))
    lead = replicas if groups == 1 else (*replicas, groups)
    assert a.shape == (*lead, 3, record.outputs.shape[-dims:].numel(), columns)
    torch.testing.assert_close(s, torch.einsum("...btc,...oc->...bto", a, mean))
    if layer.has_bias:
        assert (a[..., -1] == 1).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_deviations_are_put_back_in_their_places(groups: int) -> None:
    layer, x = layer_of(conv_of({"groups": groups}), (2,)), images(2, 3)
    s = layer.eval()(x)
    assert torch.equal(layer._as_images(layer.by_location(s), s), s)


def test_coverage_and_memory_know_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, (3, 2), groups=2), nn.Flatten(), nn.Linear(60, 2))
    bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=9)
    rows = {row.name: row.shape for row in bnn.coverage()}
    assert rows == {"0.weight": (6, 2, 3, 2), "0.bias": (6,), "2.weight": (2, 60), "2.bias": (2,)}
    forecast = {row.name: row for row in noisynat.memory_forecast(net).rows}
    assert forecast["0"].bytes == 2 * 4 * (3 * (3**2 + 13**2) + 2 * 3 * 13)  # two groups of 3 x 13 weights
    assert noisynat.memory_forecast(net, "dense_per_layer").largest.side == 2 * 61
    assert noisynat.memory_forecast(net, "dense").largest.side == 6 * 13 + 2 * 61


@pytest.mark.parametrize("change", [{"requires_grad": False}, {"subclass": True}])
def test_frozen_convolutions_and_subclasses_stay(change: dict[str, bool]) -> None:
    class Mine(nn.Conv2d):
        pass

    conv = Mine(1, 2, 3) if "subclass" in change else nn.Conv2d(1, 2, 3).requires_grad_(False)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 2))
    bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=9)
    assert [layer.name for layer in bnn.layers] == ["2"]
