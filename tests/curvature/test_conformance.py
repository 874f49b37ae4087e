"""What every structure must do, against its dense matrix.

A new structure is one line in ``cases.STRUCTURES`` and its dense matrix in ``cases.curvature_matrix``.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from noisynat.curvature import Curvature
from tests.curvature.cases import (
    FACTORED,
    IN,
    OUT,
    STRUCTURES,
    Batch,
    curvature_matrix,
    damped_matrix,
    elements,
    make,
    random_batch,
)

DECAY = 0.8
BATCHES = [(), (3,), (2, 3)]
DAMPINGS = [1e-6, 0.05, 1e2]


@dataclass
class Case:
    """A curvature that has seen two batches, and the history that dense matrices are computed from."""

    name: str
    batch: tuple[int, ...]
    curvature: Curvature
    history: list[Batch]

    def dense(self, damping: Tensor | float) -> Tensor:
        """(*batch, D, D)."""
        dampings = torch.as_tensor(damping, dtype=torch.float64).expand(*self.batch, OUT, IN).reshape(-1, OUT, IN)
        if self.name in FACTORED:
            dampings = dampings[:, 0, 0]
        per_element = zip(*[elements(self.batch, data) for data in self.history], strict=True)
        matrices = [
            damped_matrix(self.name, history, DECAY, damping)
            for history, damping in zip(per_element, dampings, strict=True)
        ]
        return torch.stack(matrices).reshape(*self.batch, OUT * IN, OUT * IN)


def make_case(name: str, batch: tuple[int, ...]) -> Case:
    curvature = make(name, batch)
    history = [random_batch(batch), random_batch(batch, examples=4)]
    for a, g in history:
        curvature.update(a, g, DECAY)
    curvature.refresh(0.05)
    return Case(name, batch, curvature, history)


@pytest.fixture(params=BATCHES, ids=str)
def batch(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return request.param


@pytest.fixture(params=STRUCTURES)
def case(request: pytest.FixtureRequest, batch: tuple[int, ...]) -> Case:
    return make_case(request.param, batch)


def vec(matrix: Tensor) -> Tensor:
    return matrix.flatten(-2).unsqueeze(-1)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def check_all_answers(curvature: Curvature, dense: Tensor) -> None:
    """Every answer about C + gamma I, against the matrix (*batch, D, D)."""
    batch, inverse = dense.shape[:-2], torch.linalg.inv(dense)
    close(curvature.to_dense(), dense)
    close(curvature.logdet(), torch.logdet(dense))
    close(curvature.trace_inverse(), inverse.diagonal(dim1=-2, dim2=-1).sum(-1))
    close(curvature.inverse.inverse_diagonal().flatten(-2), inverse.diagonal(dim1=-2, dim2=-1))
    matrix = torch.randn(*batch, OUT, IN, dtype=torch.float64)
    close(vec(curvature.solve(matrix)), inverse @ vec(matrix))
    close(covariance_of(curvature), inverse)


def covariance_of(curvature: Curvature) -> Tensor:
    """L L^T, from what the root makes of every unit vector."""
    batch, size = curvature.batch_shape, OUT * IN
    units = torch.eye(size, dtype=torch.float64).reshape(size, *(1,) * len(batch), OUT, IN)
    root = curvature.sqrt_solve(units.expand(size, *batch, OUT, IN)).flatten(-2).movedim(0, -1)
    return root @ root.mT


@pytest.mark.parametrize("damping", DAMPINGS)
def test_answers_agree_with_the_dense_matrix(case: Case, damping: float) -> None:
    case.curvature.refresh(damping)
    check_all_answers(case.curvature, case.dense(damping))


@pytest.mark.parametrize("name", STRUCTURES)
@hypothesis_settings(max_examples=15)
@given(exponent=st.floats(-6, 2))
def test_answers_at_any_damping(name: str, exponent: float) -> None:
    case = make_case(name, (2,))
    case.curvature.redamp(10**exponent)
    check_all_answers(case.curvature, case.dense(10**exponent))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("damping", [1e-6, 1e-3])
def test_answers_where_the_statistics_alone_are_singular(name: str, damping: float) -> None:
    """Two examples and one column: rank two of six."""
    curvature, data = make(name, initial_precision=0.0), random_batch(examples=2, columns=1)
    curvature.update(*data, 0.0)
    curvature.refresh(damping)
    check_all_answers(curvature, damped_matrix(name, [data], 0.0, damping, 0.0))


def test_every_batch_element_may_have_its_own_damping(case: Case) -> None:
    damping = torch.rand(*case.batch, 1, 1, dtype=torch.float64) + 0.01
    case.curvature.refresh(damping)
    check_all_answers(case.curvature, case.dense(damping))


def test_dense_damping_may_differ_from_weight_to_weight(batch: tuple[int, ...]) -> None:
    case = make_case("dense", batch)
    damping = torch.rand(*batch, OUT, IN, dtype=torch.float64) + 0.01
    case.curvature.refresh(damping)
    check_all_answers(case.curvature, case.dense(damping))


@pytest.mark.parametrize("extra", [1e-3, 2.0])
def test_extra_damping_is_damping_of_the_solve(case: Case, extra: float) -> None:
    matrix = torch.randn(*case.batch, OUT, IN, dtype=torch.float64)
    expected = torch.linalg.solve(case.dense(0.05 + extra), vec(matrix))
    close(vec(case.curvature.solve(matrix, extra)), expected)


def test_extra_damping_leaves_everything_else_as_it_was(case: Case) -> None:
    matrix = torch.randn(*case.batch, OUT, IN, dtype=torch.float64)
    case.curvature.solve(matrix, 1.0)
    check_all_answers(case.curvature, case.dense(0.05))


def test_extra_damping_is_not_remembered_from_an_earlier_inverse(case: Case) -> None:
    matrix = torch.randn(*case.batch, OUT, IN, dtype=torch.float64)
    case.curvature.solve(matrix, 0.5)
    case.curvature.refresh(0.3)
    close(vec(case.curvature.solve(matrix, 0.5)), torch.linalg.solve(case.dense(0.8), vec(matrix)))
    close(vec(case.curvature.solve(matrix, 0.7)), torch.linalg.solve(case.dense(1.0), vec(matrix)))


@pytest.mark.parametrize("extra", [0.0, 0.3])
def test_a_step_is_the_solution_and_measures_it(case: Case, extra: float) -> None:
    v = torch.randn(*case.batch, OUT, IN, dtype=torch.float64)
    expected = torch.linalg.solve(case.dense(0.05 + extra), vec(v))
    step, target = case.curvature.step(v, extra), torch.randn(*case.batch, OUT, IN, dtype=torch.float64)
    close(step.inner, (expected * vec(v)).sum((-2, -1)))
    factor = torch.rand(*case.batch, 1, 1, dtype=torch.float64)
    moved = vec(target) + factor * expected
    step.add_to(target, factor)
    close(vec(target), moved)


def test_sample_dimensions(case: Case) -> None:
    noise = torch.randn(4, 2, *case.batch, OUT, IN, dtype=torch.float64)
    deviations = case.curvature.sqrt_solve(noise)
    assert deviations.shape == noise.shape
    torch.testing.assert_close(deviations[3, 1], case.curvature.sqrt_solve(noise[3, 1]))
    norms = (vec(deviations).mT @ case.dense(0.05) @ vec(deviations))[..., 0, 0]
    close(norms, noise.square().sum((-2, -1)))  # L^T (C + gamma I) L = I


def test_redamp_equals_refresh_with_the_same_statistics(case: Case) -> None:
    case.curvature.redamp(0.7)
    check_all_answers(case.curvature, case.dense(0.7))


def test_redamp_keeps_the_statistics_of_the_last_refresh(case: Case) -> None:
    case.curvature.update(*random_batch(case.batch), 0.5)
    case.curvature.redamp(0.7)
    check_all_answers(case.curvature, case.dense(0.7))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("precision", [1.0, 0.25])
def test_starts_from_the_initial_precision(batch: tuple[int, ...], precision: float, name: str) -> None:
    curvature = make(name, batch, precision)
    curvature.refresh(0.5)
    expected = (precision**0.5 + 0.5**0.5) ** 2 if name in FACTORED else precision + 0.5
    dense = expected * torch.eye(OUT * IN, dtype=torch.float64)
    close(curvature.to_dense(), dense.expand(*batch, *dense.shape))


def test_elements_of_a_batch_do_not_mix(case: Case) -> None:
    if not case.batch:
        return
    alone = make(case.name)
    for data in case.history:
        alone.update(*elements(case.batch, data)[-1], DECAY)
    alone.refresh(0.05)
    close(case.curvature.to_dense().reshape(-1, OUT * IN, OUT * IN)[-1], alone.to_dense())


def test_initial_precision_must_not_be_negative() -> None:
    for name in STRUCTURES:
        with pytest.raises(ValueError, match="initial_precision must be at least 0, got -1"):
            make(name, initial_precision=-1)


def test_unknown_damping_form() -> None:
    with pytest.raises(ValueError, match="'exact' or 'factored', got 'none'"):
        STRUCTURES["kronecker"](2, 3, damping_form="none")


# --- state ----------------------------------------------------------------------------------------


def saved(curvature: Curvature) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in curvature.state_tensors().items()}


@pytest.mark.parametrize("between_refreshes", [False, True])
@pytest.mark.parametrize("initial_precision", [1.0, 0.0])
@pytest.mark.parametrize("name", STRUCTURES)
def test_training_resumed_from_the_state_is_bit_equal(
    name: str, initial_precision: float, between_refreshes: bool
) -> None:
    first, second = (make(name, (2,), initial_precision) for _ in range(2))
    for _ in range(3):
        first.update(*random_batch((2,)), DECAY)
        first.refresh(0.1)
    if between_refreshes:
        first.update(*random_batch((2,)), DECAY)
    second.accumulate(*random_batch((2,)))  # what was pending is of another run
    second.load_tensors(saved(first))
    for step in range(3):
        noise = torch.randn(2, OUT, IN, dtype=torch.float64)
        assert torch.equal(second.sqrt_solve(noise), first.sqrt_solve(noise))
        assert torch.equal(second.solve(noise, 0.5), first.solve(noise, 0.5))
        assert torch.equal(second.to_dense(), first.to_dense())
        data = random_batch((2,))
        for curvature in (first, second):
            curvature.update(*data, DECAY)
            if step:
                curvature.refresh(0.2)
    assert saved(first).keys() == saved(second).keys()
    assert all(torch.equal(value, saved(second)[key]) for key, value in saved(first).items())


@pytest.mark.parametrize("name", STRUCTURES)
def test_loaded_state_is_a_copy(name: str) -> None:
    first, second = make(name), make(name)
    first.update(*random_batch(), DECAY)
    state = saved(first)
    second.load_tensors(state)
    before = {key: value.clone() for key, value in state.items()}
    second.update(*random_batch(), DECAY)
    second.refresh(0.1)
    assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("name", STRUCTURES)
def test_curvature_matrix_of_the_cases_is_a_fisher_where_the_structure_is_exact(name: str) -> None:
    """The oracle's own check: with one example and one column every structure's exact part is the Fisher's."""
    a, g = random_batch(examples=1, columns=1)
    exact = torch.outer(torch.kron(g.flatten(), a.flatten()), torch.kron(g.flatten(), a.flatten()))
    matrix = curvature_matrix(name, [(a, g)], 0.0, 0.0)
    if name in ("kronecker", "factored", "dense"):
        close(matrix, exact)
    else:
        close(matrix.trace(), exact.trace())
