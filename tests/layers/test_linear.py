"""VariationalLinear against nn.Linear and against weights written out."""

import pytest
import torch
from torch import Tensor, nn

from noisynat import GaussianLikelihood, GaussianPrior, VariationalNetwork
from noisynat.layers import VariationalLinear
from noisynat.layers.base import drawn_weights, recording
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream

STREAM = RandomStream(0)


def layers(bias: bool = True, replicas: tuple[int, ...] = ()) -> tuple[nn.Linear, VariationalLinear]:
    linear = nn.Linear(3, 2, bias=bias).double()
    return linear, VariationalLinear.from_linear(linear, replicas, STREAM)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def by_hand(weight: Tensor, x: Tensor) -> Tensor:
    """W [x, 1] of one weight (out, in + 1) and one input (in,)."""
    return weight[:, :-1] @ x + weight[:, -1]


# --- the mean -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 2, 5, 3)])
def test_equals_linear_at_the_mean(bias: bool, shape: tuple[int, ...]) -> None:
    linear, layer = layers(bias)
    x = normal(*shape)
    torch.testing.assert_close(layer.eval()(x), linear(x))


def test_bias_is_the_last_column_of_the_mean() -> None:
    linear, layer = layers()
    assert torch.equal(layer.mean[:, :3], linear.weight)
    assert torch.equal(layer.mean[:, 3], linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_those_of_linear(bias: bool) -> None:
    linear, layer = layers(bias)
    x = normal(4, 3)
    linear(x).square().sum().backward()
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close(layer.mean.grad[:, :3], linear.weight.grad)
    if bias:
        torch.testing.assert_close(layer.mean.grad[:, 3], linear.bias.grad)


@pytest.mark.parametrize("locations", [(), (5,), (2, 3)])
def test_replicas_use_their_own_weights(locations: tuple[int, ...]) -> None:
    _, layer = layers(replicas=(2,))
    x = normal(2, 4, *locations, 3)
    f = layer.eval()(x)
    assert f.shape == (2, 4, *locations, 2)
    for r in range(2):
        expected = x[r] @ layer.mean[r, :, :3].T + layer.mean[r, :, 3]
        torch.testing.assert_close(f[r], expected)


def test_one_replica_equals_linear() -> None:
    linear, layer = layers(replicas=(1,))
    x = normal(1, 4, 3)
    torch.testing.assert_close(layer.eval()(x), linear(x))


@pytest.mark.parametrize("replicas", [(), (2,)])
def test_wrong_width(replicas: tuple[int, ...]) -> None:
    _, layer = layers(replicas=replicas)
    layer.name = "hidden"
    with pytest.raises(ValueError, match="layer 'hidden' takes 3 inputs, got 4 features"):
        layer(normal(*replicas, 5, 4))


def test_dtype_is_kept() -> None:
    for dtype in (torch.float32, torch.float64):
        assert VariationalLinear.from_linear(nn.Linear(3, 2, dtype=dtype), (2,), STREAM).mean.dtype == dtype


def test_repr_tells_the_sizes() -> None:
    assert "in_features=3, out_features=2, bias=True, replicas=(2,)" in repr(layers(replicas=(2,))[1])
    assert "replicas" not in repr(layers()[1])


# --- initialization -------------------------------------------------------------------------------


def test_first_replica_has_the_given_weights_and_the_others_their_own() -> None:
    linear, layer = layers(replicas=(4,))
    assert torch.equal(layer.mean[0, :, :3], linear.weight)
    assert torch.equal(layer.mean[0, :, 3], linear.bias)
    rows = layer.mean.detach().flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_other_replicas_start_as_linear_does() -> None:
    """Uniform in +-1/sqrt(in), weights and bias."""
    layer = VariationalLinear.from_linear(nn.Linear(16, 50), (40,), STREAM)
    start = layer.mean[1:].detach()
    assert start.abs().max() <= 0.25
    assert start.abs().max() > 0.249
    assert abs(start.var() - 0.25**2 / 3) < 5e-4


def test_same_start_gives_all_replicas_the_given_weights() -> None:
    linear = nn.Linear(3, 2)
    layer = VariationalLinear.from_linear(linear, (3,), STREAM, same=True)
    assert torch.equal(layer.mean[..., :3], linear.weight.expand(3, 2, 3))


def test_mean_does_not_share_memory_with_the_linear() -> None:
    linear, layer = layers()
    layer.mean.data.fill_(7)
    assert not (linear.weight == 7).any()


# --- drawn weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("locations", [(), (5,)])
@pytest.mark.parametrize("training", [True, False])
def test_drawn_weight_replaces_mean_and_noise(locations: tuple[int, ...], training: bool) -> None:
    network = VariationalNetwork(nn.Linear(3, 2).double(), GaussianLikelihood(0.1), num_data=5).train(training)
    (layer,) = network.layers
    weight, x = normal(2, 4), normal(6, *locations, 3)
    with drawn_weights([layer], [Draw(weight)]):
        torch.testing.assert_close(layer(x), x @ weight[:, :3].T + weight[:, 3])


def test_drawn_weights_with_sample_and_replica_dimensions() -> None:
    _, layer = layers(replicas=(2,))
    weight, x = normal(7, 2, 2, 4), normal(7, 2, 5, 3)
    with drawn_weights([layer], [Draw(weight)]):
        f = layer(x)
    assert f.shape == (7, 2, 5, 2)
    torch.testing.assert_close(f[6, 1, 4], by_hand(weight[6, 1], x[6, 1, 4]))


@pytest.mark.parametrize("replicas", [(), (2,)])
def test_weights_drawn_per_example(replicas: tuple[int, ...]) -> None:
    _, layer = layers(replicas=replicas)
    weight, x = normal(*replicas, 5, 2, 4), normal(*replicas, 5, 3, 3)
    with drawn_weights([layer], [Draw(weight, grouped=True)]):
        f = layer(x)
    last = (1,) * len(replicas)
    assert f.shape == (*replicas, 5, 3, 2)
    torch.testing.assert_close(f[last][4, 2], by_hand(weight[last][4], x[last][4, 2]))


@pytest.mark.parametrize("replicas", [(), (2,)])
@pytest.mark.parametrize("examples", [6, 7, 9])
def test_weights_drawn_for_groups(replicas: tuple[int, ...], examples: int) -> None:
    """Three weights for 6, 7 or 9 examples of two locations each."""
    _, layer = layers(replicas=replicas)
    weight, x = normal(*replicas, 3, 2, 4), normal(*replicas, examples, 2, 3)
    with drawn_weights([layer], [Draw(weight, grouped=True)]):
        f = layer(x)
    last, size = (1,) * len(replicas), -(-examples // 3)
    assert f.shape == (*replicas, examples, 2, 2)
    for n in range(examples):
        torch.testing.assert_close(f[last][n, 1], by_hand(weight[last][n // size], x[last][n, 1]))


def test_drawn_weights_nest_and_are_undone_by_exceptions() -> None:
    _, layer = layers()
    outer, inner = Draw(normal(2, 4)), Draw(normal(2, 4))
    with drawn_weights([layer], [outer]):
        with drawn_weights([layer], [inner]):
            assert layer._drawn is inner
        with pytest.raises(KeyError), drawn_weights([layer], [inner]):
            raise KeyError
        assert layer._drawn is outer
    assert layer._drawn is None


def test_a_wrong_number_of_draws_leaves_no_draw_behind() -> None:
    two = [layers()[1], layers()[1]]
    with pytest.raises(ValueError), drawn_weights(two, [Draw(normal(2, 4))]):
        pass
    assert [layer._drawn for layer in two] == [None, None]


def test_drawn_weights_do_not_touch_the_mean() -> None:
    _, layer = layers()
    before = layer.mean.detach().clone()
    with drawn_weights([layer], [Draw(normal(2, 4))]):
        layer(normal(4, 3))
    assert torch.equal(layer.mean, before)


# --- recording ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "columns"), [(True, 4), (False, 3)])
@pytest.mark.parametrize(("locations", "count"), [((), 1), ((5,), 5), ((2, 3), 6)])
def test_records_activations_with_the_constant_one(
    bias: bool, columns: int, locations: tuple[int, ...], count: int
) -> None:
    _, layer = layers(bias)
    x = normal(4, *locations, 3).requires_grad_()
    with recording([layer]) as ((), *rest):
        assert not rest
    with recording([layer]) as records:
        f = layer.eval()(x)
    (record,) = records[0]
    assert record.inputs.shape == (4, count, columns)
    assert not record.inputs.requires_grad
    assert torch.equal(record.inputs[..., :3], x.detach().reshape(4, count, 3))
    if bias:
        assert (record.inputs[..., 3] == 1).all()
    assert record.outputs.shape == (4, count, 2)
    assert torch.equal(record.outputs.flatten(), f.flatten())


def test_recorded_outputs_are_in_the_graph() -> None:
    _, layer = layers()
    with recording([layer]) as records:
        f = layer(normal(4, 3))
    (gradient,) = torch.autograd.grad(f.square().sum() / 2, records[0][0].outputs)
    torch.testing.assert_close(gradient.squeeze(-2), f)


def test_every_use_is_recorded_and_recording_ends() -> None:
    _, layer = layers()
    with recording([layer]) as records:
        layer(normal(4, 3))
        layer(normal(2, 3))
    layer(normal(1, 3))
    assert [len(record.inputs) for record in records[0]] == [4, 2]


def test_recordings_nest_and_are_undone_by_exceptions() -> None:
    _, layer = layers()
    with recording([layer]) as outer:
        with pytest.raises(KeyError), recording([layer]):
            raise KeyError
        layer(normal(4, 3))
    assert len(outer[0]) == 1
    assert layer._records is None


# --- train and eval -------------------------------------------------------------------------------


def test_train_samples_and_eval_is_the_mean() -> None:
    linear = nn.Linear(3, 2).double()
    network = VariationalNetwork(linear, GaussianLikelihood(0.1), GaussianPrior(), num_data=5)
    x = normal(4, 3)
    assert not torch.isclose(network.train()(x), network(x)).any()
    torch.testing.assert_close(network.eval()(x), linear(x))
    assert torch.equal(network(x), network(x))


def test_training_noise_leaves_mean_and_global_generator_alone() -> None:
    network = VariationalNetwork(nn.Linear(3, 2).double(), GaussianLikelihood(0.1), num_data=5)
    x, before = normal(4, 3), network.layers[0].mean.detach().clone()
    state = torch.get_rng_state()
    network(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(network.layers[0].mean, before)


def test_a_layer_without_posterior_says_so() -> None:
    _, layer = layers()
    with pytest.raises(RuntimeError, match="has no posterior; put it into a VariationalNetwork"):
        _ = layer.posterior
