"""The necessary work of a step, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import CONTENDERS
from benchmarks.floor import STAGES, Plan, Rates, Work, passes, product, step_floor, step_work
from benchmarks.networks import NETWORKS, Network, digits, images, table

LAYERS = [(3, 5), (2, 4)]  # (out, columns), the first layer first
BATCH = 7


def flops(plan: Plan, stage: str) -> float:
    return step_work(LAYERS, BATCH, plan)[stage].flops


def test_a_product_and_a_pass_by_hand() -> None:
    assert product(2, 3, 4) == Work(flops=48, bytes=4 * (2 * 3 + 3 * 4 + 2 * 4), thin=48)
    assert product(100, 200, 100) == Work(flops=4e6, bytes=4 * 5e4)
    assert passes(3, 10) == Work(0, 3 * 10 * 4)


def test_a_floor_is_the_larger_of_operations_and_bytes() -> None:
    rates = Rates(flops=100.0, bytes=10.0, thin=20.0, normals=5.0)
    assert Work(1000, 50, thin=400, normals=20).seconds(rates) == 6 + 20 + 4
    assert Work(1000, 50).seconds(rates) == 10
    assert Work(100, 50).seconds(rates) == 5
    assert 3 * Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(13, 26, 39, 52)


def test_forward_and_backward_of_every_gradient_method() -> None:
    """2 B o c forward, as much for the weights' gradients, and for those of the inputs of all layers but the first."""
    first, second = 2 * 7 * 3 * 5, 2 * 7 * 2 * 4
    for name in ("adam", "sgd"):
        assert flops(Plan(name), "forward") == first + second
        assert flops(Plan(name), "backward") == first + 2 * second
        assert sum(flops(Plan(name), stage) for stage in STAGES) == 2 * first + 3 * second
    assert step_work(LAYERS, BATCH, Plan("adam"))["mean step"].bytes == 7 * 4 * (15 + 8)
    assert step_work(LAYERS, BATCH, Plan("sgd"))["mean step"].bytes == 3 * 4 * (15 + 8)


@pytest.mark.parametrize(
    "network",
    [digits("small", (20,), 16), digits("small", (30, 20), 8), images("small", (2, 3, 10), kernel=3)],
    ids=lambda network: network.title,
)
def test_forward_and_backward_as_torch_counts_them(network: Network) -> None:
    """The bias's column is in our count and not in torch's."""
    trainer = CONTENDERS["adam"].build(network, torch.device("cpu"))
    x, y = network.batches(torch.device("cpu"))[0]
    with FlopCounterMode(display=False) as counter:
        trainer.step(x, y)
    without_bias = [layer._replace(columns=layer.columns - 1) for layer in network.layer_shapes()]
    work = step_work(without_bias, network.batch, Plan("adam"))
    assert counter.get_total_flops() == sum(work[stage].flops for stage in ("forward", "backward"))


def test_noise_and_its_way_back_by_hand() -> None:
    """Exact damping, local: a Q_A, squares times root^2, Q_S: 2 B (c^2 + o c + o^2) a layer."""
    one, two = 2 * 7 * (25 + 15 + 9), 2 * 7 * (16 + 8 + 4)
    plan = Plan("kronecker", "local")
    assert flops(plan, "noise") == one + two
    assert flops(plan, "backward") - flops(Plan("adam"), "backward") == two  # the first layer's inputs are data
    assert flops(Plan("diagonal", "local"), "noise") == 2 * 7 * (15 + 8)
    assert flops(Plan("matrix_normal", "local"), "noise") == 7 * (25 + 9) + 7 * (16 + 4)  # triangular, no root
    assert flops(Plan("kronecker", "shared"), "noise") == 2 * (9 * 5 + 3 * 25) + 2 * (4 * 4 + 2 * 16)
    assert flops(Plan("kronecker", "none"), "noise") == 0


def test_statistics_by_hand() -> None:
    """A and S are symmetric: B c^2 and K B o^2; K passes back to the inputs of all layers but the first."""
    plan = Plan("kronecker", "none", columns=3, stats_every=4)
    factors = 7 * 25 + 3 * 7 * 9 + 7 * 16 + 3 * 7 * 4
    assert flops(plan, "statistics") == (factors + 3 * 2 * 7 * 8) / 4
    diagonal = Plan("diagonal", "none", columns=3)
    assert flops(diagonal, "statistics") == 2 * 7 * (15 + 8) + 3 * 2 * 7 * 8


def test_one_output_needs_no_second_pass() -> None:
    plan = Plan("kronecker", "none")
    work = step_work([(3, 5), (1, 4)], BATCH, plan)["statistics"]
    assert work.flops == 7 * (25 + 9 + 16 + 1)


def test_refresh_and_preconditioning_by_hand() -> None:
    cubes = 27 + 125 + 8 + 64
    assert flops(Plan("kronecker", refresh_every=5), "refresh") == pytest.approx(9 * cubes / 5)
    assert flops(Plan("matrix_normal"), "refresh") == pytest.approx(2 / 3 * cubes)
    there = 2 * (3 * 3 * 5 + 3 * 25) + 2 * (2 * 2 * 4 + 2 * 16)
    assert flops(Plan("matrix_normal"), "precondition") == there
    assert flops(Plan("kronecker"), "precondition") == 2 * there


def test_a_batch_that_is_smaller_than_the_layer_makes_preconditioning_cheaper() -> None:
    work = step_work([(100, 100)], 2, Plan("matrix_normal"))["precondition"]
    assert work.flops == 2 * 2 * (100**2 + 100**2 + 100 * 100)  # instead of 4 * 100^3


def test_replicas_multiply_all_of_it() -> None:
    one, many = (step_work(LAYERS, BATCH, Plan("eigen_corrected", "local", replicas=r)) for r in (1, 20))
    assert all(many[stage] == 20 * one[stage] for stage in STAGES)


def test_the_floor_of_a_step_is_per_stage() -> None:
    rates = Rates(flops=1e3, bytes=1e2, thin=1e3, normals=1e3)
    floors = step_floor(LAYERS, BATCH, Plan("adam"), rates)
    assert tuple(floors) == STAGES
    assert floors["mean step"] == 7 * 4 * 23 / 1e2


@pytest.mark.parametrize(
    "network", [table(), digits("mlp", (1000, 1000)), NETWORKS["lenet"]], ids=lambda network: network.name
)
def test_layers_are_found_with_their_bias(network: Network) -> None:
    expected = {
        "table": [(50, 14, 1), (1, 51, 1)],
        "mlp": [(1000, 785, 1), (1000, 1001, 1), (10, 1001, 1)],
        "lenet": [(6, 26, 784), (16, 151, 100), (120, 401, 1), (84, 121, 1), (10, 85, 1)],
    }
    assert network.layer_shapes() == expected[network.name]


def test_truncated_factors_by_hand() -> None:
    """r = 2 of each factor: into the leading directions of both sides and back, 8 r o c; two products a refresh."""
    layers, o, c = [(30, 40)], 30, 40
    plan = Plan("kronecker", "local", rank=2)
    work = step_work(layers, BATCH, plan)
    assert work["precondition"].flops == 8 * 2 * o * c
    assert work["noise"].flops == 2 * BATCH * (c * 2 + 2 * 2 + 2 * o)
    assert work["refresh"].flops == sum(2 * 2 * n * n * 2 + 2 * 2 * 2 * n * 2 for n in (o, c))
    assert step_work(layers, BATCH, Plan("kronecker", "shared", rank=2))["noise"].flops == 8 * 2 * o * c
    whole = step_work(layers, BATCH, Plan("kronecker", "local", rank=None))
    assert whole == step_work(layers, BATCH, Plan("kronecker", "local", rank=40))
    assert step_work([(256, 256)], BATCH, Plan("kronecker"))["refresh"].flops == 9 * 2 * 256**3  # nothing left out
    assert step_work([(256, 257)], BATCH, Plan("kronecker"))["refresh"].flops < 2 * 256**3


def test_convolutions_by_hand() -> None:
    """Rows are B T, noise is four draws of the weight, and statistics are of as many examples as are fed."""
    o, c, t = 3, 5, 11
    rows, fed = BATCH * t, 2 * t
    work = step_work([(o, c, t), (o, c, t)], BATCH, Plan("kronecker", "auto", columns=2, stats_examples=2))
    assert work["forward"].flops == 2 * 2 * rows * o * c
    assert work["backward"].flops == 3 * 2 * rows * o * c
    assert work["noise"].flops == 2 * 4 * 2 * (o * o * c + o * c * c)
    assert work["statistics"].flops == 2 * (fed * c * c + 2 * fed * o * o) + 2 * 2 * rows * o * c
    flipped = step_work([(o, c, t)], BATCH, Plan("kronecker", "flipout"))
    assert flipped["noise"].flops == 2 * rows * (c * c + o * o + o * c)


def test_separable_noise_counts_where_it_is_chosen() -> None:
    wide = [(1000, 1000)]
    chosen, local = (step_work(wide, 128, Plan("kronecker", n, rank=None))["noise"].flops for n in ("auto", "local"))
    assert chosen == 2 * (128 * 1000 * 1000 + 2 * 128 * 1000 * 32 + 32 * 1000 * 1000)
    assert chosen < local
