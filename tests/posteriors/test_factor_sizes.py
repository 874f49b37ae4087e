"""How much of Kronecker factors is kept: by rank, by the largest size that is formed, and by default."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import noisynat
from noisynat.curvature import Diagonal, EigenCorrected, Kronecker, TruncatedKronecker
from noisynat.posteriors.families import FactorSizes


def make(net: nn.Module, posterior: Any = "kronecker", **settings: Any) -> noisynat.VariationalNetwork:
    return noisynat.VariationalNetwork(
        net, noisynat.GaussianLikelihood(0.5), posterior=posterior, num_data=20, **settings
    )


def train(bnn: noisynat.VariationalNetwork, steps: int = 3) -> None:
    optimizer = noisynat.NoisyKFAC(bnn)
    inputs, outputs = bnn.layers[0].in_features, bnn.layers[-1].out_features
    for _ in range(steps):
        optimizer.zero_grad()
        bnn.loss(torch.randn(6, inputs), torch.randn(6, outputs)).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("sizes", "structure", "shape", "expected"),
    [
        (FactorSizes(), "kronecker", (256, 256), None),
        (FactorSizes(), "kronecker", (10, 257), (10, 32)),
        (FactorSizes(), "matrix_normal", (1000, 785), (32, 32)),
        (FactorSizes(), "eigen_corrected", (1000, 785), None),
        (FactorSizes(), "diagonal", (1000, 785), None),
        (FactorSizes(None), "kronecker", (1000, 785), None),
        (FactorSizes(40), "kronecker", (40, 30), None),
        (FactorSizes(40), "kronecker", (40, 41), (40, 40)),
        (FactorSizes("auto", 500), "kronecker", (1000, 300), (None, 32)),
        (FactorSizes(None, 500), "kronecker", (1000, 300), (None, 300)),
        (FactorSizes("auto", 100), "kronecker", (90, 200), (90, None)),
        (FactorSizes("auto", 100), "eigen_corrected", (90, 200), (90, None)),
        (FactorSizes(7, 100), "matrix_normal", (150, 200), (None, None)),
    ],
)
def test_what_is_kept(sizes: FactorSizes, structure: str, shape: tuple[int, int], expected: Any) -> None:
    assert sizes.kept(structure, shape) == expected


@pytest.mark.parametrize(
    ("posterior", "rank", "expected"),
    [
        ("kronecker", "auto", TruncatedKronecker), ("kronecker", None, Kronecker), ("kronecker", 400, Kronecker),
        ("matrix_normal", "auto", TruncatedKronecker), ("eigen_corrected", "auto", EigenCorrected),
        ("diagonal", "auto", Diagonal),
    ],
)  # fmt: skip
def test_wide_layers_are_truncated_by_default(posterior: str, rank: Any, expected: type) -> None:
    bnn = make(nn.Linear(300, 2), posterior, rank=rank)
    assert type(bnn.posteriors[0].curvature) is expected


def test_layers_are_judged_one_by_one() -> None:
    bnn = make(nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 400)))
    assert [type(p.curvature) for p in bnn.posteriors] == [Kronecker, TruncatedKronecker]
    train(bnn)


@pytest.mark.parametrize("posterior", ["kronecker", "matrix_normal", "eigen_corrected"])
def test_of_a_factor_that_is_too_large_only_the_diagonal_is_ever_there(posterior: Any) -> None:
    """10,000 inputs: a factor of them would have 10^8 entries; no tensor has more than the weights."""
    net = nn.Sequential(nn.Linear(10_000, 6), nn.Tanh(), nn.Linear(6, 1))
    with pytest.warns(
        UserWarning, match=r"layer '0' has Kronecker factors of 10001 rows, more than max_factor_dim=8192"
    ):
        bnn = make(net, posterior)
    train(bnn)
    first, second = (layer_posterior.curvature for layer_posterior in bnn.posteriors)
    largest = max(value.numel() for value in {**first.state_tensors(), **first.prepared}.values())
    assert largest == 10_001
    assert type(second) is (EigenCorrected if posterior == "eigen_corrected" else Kronecker)
    assert torch.isfinite(bnn.predict(torch.randn(2, 10_000), 3).mean).all()
    assert torch.isfinite(bnn.posteriors[0].kl_divergence())


def test_small_networks_are_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(nn.Linear(1000, 1000))


@pytest.mark.parametrize("rank", [0, -3, 1.5, "all"])
def test_ranks_are_whole_positive_numbers(rank: Any) -> None:
    with pytest.raises(ValueError, match="rank is a positive whole number, None or 'auto'"):
        make(nn.Linear(3, 2), rank=rank)


def test_a_largest_size_is_a_whole_positive_number() -> None:
    with pytest.raises(ValueError, match="max_factor_dim is a positive whole number, got 0"):
        make(nn.Linear(3, 2), max_factor_dim=0)


@pytest.mark.parametrize("posterior", ["diagonal", "eigen_corrected", "dense", "mean_field"])
def test_a_rank_is_refused_where_there_is_none(posterior: Any) -> None:
    with pytest.raises(
        ValueError, match=f"rank=5 is for 'kronecker' and 'matrix_normal' posteriors, not for '{posterior}'"
    ):
        make(nn.Linear(3, 2), posterior, rank=5)


@pytest.mark.parametrize("posterior", ["kronecker", "matrix_normal"])
def test_a_truncated_posterior_goes_on_as_a_dense_one(posterior: Any) -> None:
    bnn = make(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), posterior, rank=2)
    assert isinstance(bnn.posteriors[0].curvature, TruncatedKronecker)
    train(bnn, 12)
    dense = bnn.with_posterior("dense")
    blocks = [layer_posterior.curvature.latest() for layer_posterior in bnn.posteriors]
    expected = torch.linalg.inv(torch.block_diag(*blocks) + torch.eye(29).double() / 20) / 20
    torch.testing.assert_close(dense.posteriors[0].covariance().double(), expected, rtol=1e-4, atol=1e-7)
