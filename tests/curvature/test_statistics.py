"""How activations and gradients become the averages that curvatures are made of."""

import pytest
import torch
from torch import Tensor

from noisynat.curvature import Curvature, sharing
from noisynat.curvature.statistics import MovingAverage
from tests.curvature.cases import (
    IN,
    OUT,
    STRUCTURES,
    Batch,
    elements,
    factor_a,
    factor_s,
    fisher,
    make,
    random_batch,
)


def values(curvature: Curvature) -> dict[str, Tensor]:
    return {key: average.value for key, average in curvature.averages.items()}


def same(first: Curvature, second: Curvature) -> None:
    for key, value in values(first).items():
        torch.testing.assert_close(value, values(second)[key])


def join(*batches: Batch) -> Batch:
    return torch.cat([a for a, _ in batches], dim=-3), torch.cat([g for _, g in batches], dim=-3)


# --- one batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("locations", [1, 4])
def test_statistics_of_one_batch_by_hand(locations: int, batch: tuple[int, ...], columns: int) -> None:
    data = random_batch(batch, locations=locations, columns=columns)
    expected = {
        "A": [factor_a(a) for a, _ in elements(batch, data)],
        "S": [factor_s(g) for _, g in elements(batch, data)],
        "C": [fisher(a, g) for a, g in elements(batch, data)],
        "c": [fisher(a, g).diagonal().reshape(OUT, IN) for a, g in elements(batch, data)],
    }
    expected["a"] = [a.diagonal() for a in expected["A"]]
    expected["s"] = [s.diagonal() for s in expected["S"]]
    expected["d"] = expected["c"]  # the basis of a new EigenCorrected is the identity's
    for name in STRUCTURES:
        curvature = make(name, batch)
        curvature.update(*data, decay=0.0)
        for key, value in values(curvature).items():
            torch.testing.assert_close(value, torch.stack(expected[key]).reshape(value.shape))


def test_expand_rule_keeps_the_scale_of_one_example() -> None:
    """With equal locations, T of them: the exact gradient is T times one location's, expand counts the locations."""
    a, g = random_batch(locations=1)
    curvature = make("kronecker")
    curvature.update(a.expand(-1, 4, -1), g.expand(-1, -1, 4, -1), decay=0.0)
    torch.testing.assert_close(curvature.averages["A"].value, 4 * factor_a(a))
    torch.testing.assert_close(curvature.averages["S"].value, factor_s(g))


def test_example_gradients_sum_over_locations() -> None:
    a, g = random_batch((2,), examples=3, locations=4)
    gradients = sharing.example_gradients(a, g)
    assert gradients.shape == (2, 2, 3, OUT, IN)
    expected = sum(torch.outer(g[1, 0, 2, t], a[0, 2, t]) for t in range(4))
    torch.testing.assert_close(gradients[1, 0, 2], expected)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("locations", [1, 3])
def test_a_duplicated_batch_has_the_same_statistics(name: str, locations: int) -> None:
    data = random_batch(locations=locations)
    once, twice = make(name), make(name)
    once.update(*data)
    twice.update(*join(data, data))
    same(once, twice)


@pytest.mark.parametrize("name", STRUCTURES)
def test_activations_without_batch_dimensions_serve_all_elements(name: str) -> None:
    a, g = random_batch((3,))
    shared, copied = make(name, (3,)), make(name, (3,))
    shared.update(a[:1].expand(3, -1, -1, -1), g)
    copied.update(a[:1].repeat(3, 1, 1, 1), g)
    same(shared, copied)


# --- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("locations", [1, 3])
@pytest.mark.parametrize("sizes", [(4, 4), (1, 5, 2)])
def test_micro_batches_pool_to_one_batch(name: str, locations: int, sizes: tuple[int, ...]) -> None:
    parts = [random_batch((2,), examples=size, locations=locations) for size in sizes]
    pooled, whole = make(name, (2,)), make(name, (2,))
    for part in parts:
        pooled.accumulate(*part)
    pooled.commit(0.7)
    whole.update(*join(*parts), decay=0.7)
    same(pooled, whole)


@pytest.mark.parametrize("name", STRUCTURES)
def test_discarded_micro_batches_do_not_count(name: str) -> None:
    curvature, expected = make(name), make(name)
    data = random_batch()
    curvature.accumulate(*random_batch())
    assert curvature.has_pending
    curvature.discard()
    assert not curvature.has_pending
    curvature.update(*data)
    expected.update(*data)
    same(curvature, expected)


@pytest.mark.parametrize("name", STRUCTURES)
def test_commit_of_nothing_does_nothing(name: str) -> None:
    curvature = make(name)
    curvature.commit(0.5)
    same(curvature, make(name))


@pytest.mark.parametrize("name", STRUCTURES)
def test_statistics_act_from_the_next_refresh_only(name: str) -> None:
    curvature = make(name)
    curvature.refresh(0.1)
    before = curvature.to_dense().clone()
    curvature.update(*random_batch(), decay=0.5)
    assert torch.equal(curvature.to_dense(), before)
    curvature.refresh(0.1)
    assert not torch.allclose(curvature.to_dense(), before)


# --- averages over batches ------------------------------------------------------------------------


def test_initial_value_has_weight_decay_to_the_k() -> None:
    average = MovingAverage(torch.full((1, 1), 3.0, dtype=torch.float64))
    row = torch.tensor([[2.0]], dtype=torch.float64)
    for _ in range(5):
        average.accumulate(row, row, 1.0)
        average.commit(0.9, torch.tensor(True))
    torch.testing.assert_close(average.debiased().item(), 3 * 0.9**5 + 4 * (1 - 0.9**5))


@pytest.mark.parametrize("name", STRUCTURES)
def test_initial_precision_decays_as_decay_to_the_k(name: str) -> None:
    """With gradients of zero what remains is the initial precision."""
    curvature = make(name, initial_precision=4.0)
    a, g = random_batch()
    for _ in range(3):
        curvature.update(a, 0 * g, decay=0.8)
    shown = next(key for key in ("c", "d", "C", "S", "s") if key in values(curvature))
    initial = 2.0 if shown in "Ss" else 4.0  # S and A share the precision
    value = values(curvature)[shown]
    expected = initial * 0.8**3 * torch.ones_like(value)
    torch.testing.assert_close(value, expected if shown.islower() else torch.eye(len(value)) * expected)


@pytest.mark.parametrize("name", STRUCTURES)
def test_without_initial_precision_the_average_is_debiased(name: str) -> None:
    """Three equal batches: a debiased average is that batch's statistics from the first one on."""
    data, curvature = random_batch(), make(name, initial_precision=0.0)
    for _ in range(3):
        curvature.update(*data, decay=0.9)
        debiased = {key: average.debiased() for key, average in curvature.averages.items()}
        expected = {"A": factor_a(data[0]), "S": factor_s(data[1]), "C": fisher(*data)}
        expected["c"] = expected["d"] = expected["C"].diagonal().reshape(OUT, IN)
        expected |= {key.lower(): expected[key].diagonal().unsqueeze(-1) for key in "AS"}
        for key, value in debiased.items():
            torch.testing.assert_close(value, expected[key])


def test_debiased_average_of_different_batches() -> None:
    batches = [random_batch() for _ in range(3)]
    curvature = make("dense", initial_precision=0.0)
    for data in batches:
        curvature.update(*data, decay=0.5)
    expected = (0.25 * fisher(*batches[0]) + 0.5 * fisher(*batches[1]) + fisher(*batches[2])) / 1.75
    torch.testing.assert_close(curvature.averages["C"].debiased(), expected)


def test_average_of_nothing_is_zero() -> None:
    assert torch.equal(make("dense", initial_precision=0.0).averages["C"].debiased(), torch.zeros(6, 6).double())


# --- what is not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("where", ["a", "g"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("initial_precision", [1.0, 0.0])
def test_a_batch_that_is_not_finite_is_skipped_where_it_is(
    name: str, where: str, bad: float, initial_precision: float
) -> None:
    curvature, expected = make(name, (3,), initial_precision), make(name, (3,), initial_precision)
    good, (a, g), last = random_batch((3,)), random_batch((3,)), random_batch((3,))
    for c in (curvature, expected):
        c.update(*good, decay=0.7)
    before = {key: average.debiased() for key, average in expected.averages.items()}
    expected.update(a, g, decay=0.7)
    after = {key: average.debiased() for key, average in expected.averages.items()}
    a, g = a.clone(), g.clone()
    (a[1, 2] if where == "a" else g[0, 1, 2])[0, 0] = bad
    curvature.update(a, g, decay=0.7)
    assert curvature.skipped.tolist() == [0, 1, 0]
    for key, average in curvature.averages.items():
        torch.testing.assert_close(average.debiased()[1], before[key][1])
        torch.testing.assert_close(average.debiased()[[0, 2]], after[key][[0, 2]])
    curvature.update(*last, decay=0.7)  # and the next one counts again
    assert curvature.skipped.tolist() == [0, 1, 0]
    assert all(not torch.equal(average.debiased()[1], before[key][1]) for key, average in curvature.averages.items())


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_bad_micro_batch_skips_the_pooled_batch_once(name: str) -> None:
    curvature = make(name)
    a, g = random_batch()
    for gradients in (g, g * torch.nan, g * torch.nan):
        curvature.accumulate(a, gradients)
    curvature.commit(0.5)
    assert curvature.skipped.item() == 1
    same(curvature, make(name))


@pytest.mark.parametrize("size", [1, 300])
def test_single_precision_does_not_drift_with_large_batches(size: int) -> None:
    """Added row by row to the average, 2000 equal rows of weight 0.01 / 2000 each would all round the same way."""
    average = MovingAverage(torch.ones(size, size))
    rows = torch.full((2000, size), 1 / 0.3)
    for _ in range(2000 if size == 1 else 500):
        average.accumulate(rows, rows, 2000.0)
        average.commit(0.99, torch.tensor(True))
    expected = 1 / 0.09 + (1 - 1 / 0.09) * (0.0 if size == 1 else 0.99**500)
    torch.testing.assert_close(average.value, torch.full((size, size), expected), rtol=1e-4, atol=0)
