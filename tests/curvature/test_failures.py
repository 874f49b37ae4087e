"""The failure ladder: bad batch elements keep their last good inverse, the others go on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from noisynat import CurvatureError
from noisynat.curvature import Curvature
from tests.curvature.cases import STRUCTURES, make, random_batch

BATCH = (3,)
STATISTIC = {
    "diagonal": "c", "kronecker": "A", "factored": "A", "eigen_corrected": "d", "dense": "C", "truncated": "A",
    "truncated_factored": "S", "one_diagonal": "a", "other_diagonal": "s", "diagonal_factors": "a",
    "rank_one": "S", "whole_and_diagonal": "S",
}  # fmt: skip
FAILING = [(name, "nan") for name in STRUCTURES] + [
    ("diagonal", "negative"), ("eigen_corrected", "negative"), ("factored", "negative"), ("dense", "negative"),
    *[(name, "infinite") for name in STRUCTURES],
]  # fmt: skip
BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda value: value * torch.nan,
    "infinite": lambda value: value * torch.inf,
    "negative": lambda value: -10 * value - 10 * torch.eye(*value.shape, dtype=value.dtype),
}


def trained(name: str) -> Curvature:
    curvature = make(name, BATCH, name="hidden.2")
    curvature.update(*random_batch(BATCH), 0.5)
    curvature.refresh(0.1)
    return curvature


def spoil(curvature: Curvature, name: str, kind: str, element: int = 1) -> None:
    value = curvature.averages[STATISTIC[name]].value
    value[element] = BAD[kind](value[element])


@pytest.mark.parametrize(("name", "kind"), FAILING)
def test_a_bad_element_keeps_its_last_good_inverse(name: str, kind: str) -> None:
    curvature = trained(name)
    noise = torch.randn(*BATCH, *curvature.shape, dtype=torch.float64)
    before = {"solve": curvature.solve(noise), "root": curvature.sqrt_solve(noise), "logdet": curvature.logdet()}
    before["dense"] = curvature.to_dense()
    spoil(curvature, name, kind)
    curvature.refresh(0.7)
    assert curvature.failures.tolist() == [0, 1, 0]
    after = {"solve": curvature.solve(noise), "root": curvature.sqrt_solve(noise), "logdet": curvature.logdet()}
    after["dense"] = curvature.to_dense()
    for key, value in after.items():
        torch.testing.assert_close(value[1], before[key][1])


@pytest.mark.parametrize(("name", "kind"), FAILING)
def test_the_other_elements_are_refreshed(name: str, kind: str) -> None:
    curvature, healthy = trained(name), make(name, BATCH)
    healthy.load_tensors(curvature.state_tensors())
    data = random_batch(BATCH)
    for c in (curvature, healthy):
        c.update(*data, 0.5)
    spoil(curvature, name, kind)
    curvature.refresh(0.7)
    healthy.refresh(0.7)
    torch.testing.assert_close(curvature.to_dense()[[0, 2]], healthy.to_dense()[[0, 2]])
    torch.testing.assert_close(curvature.logdet()[[0, 2]], healthy.logdet()[[0, 2]])


@pytest.mark.parametrize("name", STRUCTURES)
def test_three_failures_in_a_row_raise_an_error_that_says_where(name: str) -> None:
    curvature = trained(name)
    spoil(curvature, name, "nan")
    curvature.refresh(0.1)
    curvature.refresh(0.1)
    before = curvature.logdet()
    with pytest.raises(CurvatureError, match=r"'hidden\.2' could not be factorized 3 times in a row"):
        curvature.refresh(0.1)
    assert torch.equal(curvature.logdet(), before)


def test_error_gives_the_condition_number() -> None:
    curvature = make("dense", name="joint")
    indefinite = torch.diag(torch.tensor([-200.0, 1, 1, 1, 1, 2], dtype=torch.float64))
    curvature.averages["C"].value = indefinite
    curvature.refresh(0.1)
    curvature.refresh(0.1)
    with pytest.raises(CurvatureError, match=r"'C': '2.0e\+02'"):
        curvature.refresh(0.1)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_good_refresh_ends_the_row(name: str) -> None:
    curvature = trained(name)
    statistic = curvature.averages[STATISTIC[name]]
    for _ in range(2):
        good = statistic.value.clone()
        for failures in (1, 2):
            spoil(curvature, name, "nan")
            curvature.refresh(0.1)
            assert curvature.failures.tolist() == [0, failures, 0]
        statistic.value = good
        curvature.refresh(0.1)
        assert curvature.failures.tolist() == [0, 0, 0]


def test_failures_of_different_elements_do_not_add_up() -> None:
    curvature = trained("dense")
    good = curvature.averages["C"].value.clone()
    for element in (0, 1, 2, 0):
        curvature.averages["C"].value = good.clone()
        spoil(curvature, "dense", "nan", element)
        curvature.refresh(0.1)
        assert curvature.failures.tolist() == [int(i == element) for i in range(3)]


@pytest.mark.parametrize("name", STRUCTURES)
def test_singular_statistics_are_no_failure(name: str) -> None:
    """One example's Fisher has rank one; the damping makes it invertible."""
    curvature = make(name, initial_precision=0.0)
    curvature.update(*random_batch(examples=1, columns=1), 0.0)
    curvature.refresh(1e-8)
    assert curvature.failures.item() == 0
    assert torch.isfinite(curvature.logdet())


def test_factors_whose_product_overflows_are_a_failure() -> None:
    curvature = trained("kronecker")
    before = curvature.logdet()
    for average in curvature.averages.values():
        average.value[1] *= 1e200
    curvature.refresh(0.1)
    assert curvature.failures.tolist() == [0, 1, 0]
    torch.testing.assert_close(curvature.logdet(), before)


@pytest.mark.parametrize("name", STRUCTURES)
def test_counters_and_the_last_good_inverse_survive_saving(name: str) -> None:
    curvature = trained(name)
    spoil(curvature, name, "nan")
    curvature.refresh(0.7)
    other = make(name, BATCH)
    other.load_tensors(curvature.state_tensors())
    assert other.failures.tolist() == [0, 1, 0]
    assert torch.equal(other.logdet(), curvature.logdet())
    assert torch.equal(other.to_dense(), curvature.to_dense())


@pytest.mark.parametrize("name", ["diagonal", "dense"])
def test_redamp_that_fails_keeps_the_damping(name: str) -> None:
    curvature = trained(name)
    before = curvature.to_dense()
    damping = torch.tensor([0.5, -1e3, 0.5], dtype=torch.float64)[:, None, None]
    curvature.redamp(damping)
    torch.testing.assert_close(curvature.to_dense()[1], before[1])
    torch.testing.assert_close(curvature.to_dense()[0] - before[0], 0.4 * torch.eye(6, dtype=torch.float64))
