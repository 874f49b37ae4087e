"""The state of a posterior: saved, loaded, moved."""

import math

import pytest
import torch

from noisynat import GaussianPrior
from noisynat.curvature import Dense, Diagonal
from noisynat.layers import VariationalLinear
from noisynat.posteriors import NaturalPosterior
from noisynat.random import RandomStream
from tests.curvature.cases import random_batch
from tests.posteriors.builders import (
    KL_WEIGHT,
    STRUCTURES,
    linear_network,
    only_posterior,
)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_state_dict_round_trip(structure: str) -> None:
    first, second = linear_network(structure, 2), linear_network(structure, 2, kl_weight=1.0, seed=5)
    second_posterior = only_posterior(second)
    second_posterior.load_state_dict(only_posterior(first).state_dict())
    second_posterior._kl_weight = KL_WEIGHT  # which the network's own state carries
    assert torch.equal(second_posterior.covariance(), only_posterior(first).covariance())


def test_state_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"curvature\.average\.A has shape \(3, 3\), expected \(2, 3, 3\)"):
        only_posterior(linear_network("kronecker", 2)).load_state_dict(
            only_posterior(linear_network("kronecker")).state_dict()
        )


def test_state_without_a_curvature_is_refused() -> None:
    posterior = only_posterior(linear_network("kronecker"))
    state = {key: value for key, value in posterior.state_dict().items() if key != "curvature.weight.S"}
    with pytest.raises(RuntimeError, match=r"Missing key.*curvature\.weight\.S"):
        posterior.load_state_dict(state)


def test_moving_to_another_dtype_moves_the_curvature() -> None:
    posterior = only_posterior(linear_network("kronecker"))
    posterior.float()
    dtypes = {value.dtype for value in posterior.curvature.state_tensors().values()}
    assert dtypes == {torch.float32, torch.int64}
    assert posterior.curvature.to_dense().dtype == torch.float32


def test_dense_curvature_of_a_float32_network_is_kept_in_float64() -> None:
    layer = VariationalLinear(2, 1)
    settings = {"num_data": 5, "kl_weight": 1.0, "noise_mode": "auto", "structure": "dense"}
    for curvature, dtype in ((Diagonal, torch.float32), (Dense, torch.float64)):
        posterior = NaturalPosterior([layer], [GaussianPrior()], curvature, **settings)
        assert next(iter(posterior.curvature.averages.values())).value.dtype == dtype
        assert posterior.draw((), RandomStream(0))[0].dtype == torch.float32
        assert math.isfinite(posterior.kl_divergence().detach())


def test_accumulate_gives_a_batch_to_the_curvature() -> None:
    posterior = only_posterior(linear_network("kronecker"))
    a, g = random_batch()
    posterior.accumulate([a], [g])
    assert posterior.curvature.has_pending
