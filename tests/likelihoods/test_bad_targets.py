"""Targets and arguments that a likelihood must refuse, with a message that says what it takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace

import noisynat
from noisynat.curvature.fisher import default_kind, output_gradients
from noisynat.random import RandomStream

N, K = 4, 3


class LaplaceLikelihood(noisynat.DistributionLikelihood):
    """A user's own."""

    def distribution(self, f: Tensor) -> Distribution:
        return Laplace(f, 0.4)


CATEGORICAL, BERNOULLI = noisynat.CategoricalLikelihood, noisynat.BernoulliLikelihood
POISSON, STUDENT = noisynat.PoissonLikelihood, noisynat.StudentTLikelihood
MATRIX = r"\(4, 3\)"

BAD_TARGETS: dict[str, tuple[type[noisynat.Likelihood], Tensor, type[Exception], str]] = {
    "classes as floats": (CATEGORICAL, torch.zeros(N), TypeError, r"float32, expected integers.*use y.long\(\)"),
    "classes as booleans": (CATEGORICAL, torch.zeros(N).bool(), TypeError, "torch.bool, expected integers"),
    "one-hot rows": (CATEGORICAL, torch.eye(N, K), ValueError, r"one-hot rows become class numbers by y.argmax\(-1\)"),
    "integer one-hot rows": (CATEGORICAL, torch.eye(N, K).long(), ValueError, r"y.argmax\(-1\)"),
    "classes (N, 1)": (CATEGORICAL, torch.zeros(N, 1).long(), ValueError, r"\(4, 1\), .* \(4,\); use y.squeeze\(-1\)"),
    "too few classes": (CATEGORICAL, torch.zeros(3).long(), ValueError, r"\(3,\), expected class numbers \(4,\)$"),
    "a class too high": (CATEGORICAL, torch.tensor([0, 1, 2, 3]), ValueError, "in 0 to 3, expected .* 0 to 2"),
    "a negative class": (CATEGORICAL, torch.tensor([0, -1, 2, 1]), ValueError, "in -1 to 2, expected .* 0 to 2"),
    "binary 2": (BERNOULLI, torch.full((N, K), 2.0), ValueError, "Bernoulli likelihood are 0 or 1"),
    "binary -1": (BERNOULLI, torch.full((N, K), -1.0), ValueError, "Bernoulli likelihood are 0 or 1"),
    "binary 0.5": (BERNOULLI, torch.full((N, K), 0.5), ValueError, "Bernoulli likelihood are 0 or 1"),
    "binary (N,)": (BERNOULLI, torch.zeros(N), ValueError, rf"outputs {MATRIX}; use y.unsqueeze\(-1\)"),
    "binary (N, 1)": (BERNOULLI, torch.zeros(N, 1), ValueError, rf"\(4, 1\), expected that of the outputs {MATRIX}"),
    "a negative count": (POISSON, torch.full((N, K), -1.0), ValueError, "counts, whole numbers from 0 on"),
    "half a count": (POISSON, torch.full((N, K), 1.5), ValueError, "counts, whole numbers from 0 on"),
    "counts (N,)": (POISSON, torch.zeros(N), ValueError, rf"outputs {MATRIX}; use y.unsqueeze\(-1\)"),
    "Student-t (N,)": (STUDENT, torch.zeros(N), ValueError, rf"outputs {MATRIX}; use y.unsqueeze\(-1\)"),
    "Student-t float64": (STUDENT, torch.zeros(N, K).double(), TypeError, r"use y.to\(torch.float32\)"),
    "one's own (N,)": (LaplaceLikelihood, torch.zeros(N), ValueError, rf"outputs {MATRIX}; use y.unsqueeze\(-1\)"),
    "one's own NaN": (LaplaceLikelihood, torch.full((N, K), math.nan), ValueError, "NaN or infinite"),
    "NaN count": (POISSON, torch.full((N, K), math.nan), ValueError, "NaN or infinite"),
}


def network(likelihood: noisynat.Likelihood, **settings: Any) -> noisynat.VariationalNetwork:
    return noisynat.VariationalNetwork(nn.Linear(2, K), likelihood, num_data=N, **settings)


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets_are_refused(case: str) -> None:
    """By the loss and the ELBO, before anything changes."""
    likelihood, y, error, message = BAD_TARGETS[case]
    bnn, x = network(likelihood()), torch.zeros(N, 2)
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    with pytest.raises(error, match=message):
        bnn.loss(x, y)
    with pytest.raises(error, match=message):
        bnn.elbo(x, y, num_samples=2)
    assert all(torch.equal(value, before[key]) for key, value in bnn.state_dict().items() if key in before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_class_numbers_are_integers_of_any_size(dtype: torch.dtype) -> None:
    y = torch.tensor([0, 1, 2, 1])
    bnn = network(CATEGORICAL()).eval()
    assert torch.equal(bnn.loss(torch.zeros(N, 2), y.to(dtype)), bnn.loss(torch.zeros(N, 2), y))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
@pytest.mark.parametrize("likelihood", [BERNOULLI, POISSON])
def test_zeros_and_ones_are_of_any_dtype(likelihood: type[noisynat.Likelihood], dtype: torch.dtype) -> None:
    y = torch.eye(N, K)
    bnn = network(likelihood()).eval()
    assert torch.equal(bnn.loss(torch.zeros(N, 2), y.to(dtype)), bnn.loss(torch.zeros(N, 2), y))


def test_classes_need_two_outputs() -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 1), CATEGORICAL(), num_data=N)
    with pytest.raises(ValueError, match="2 outputs or more; for one, use BernoulliLikelihood"):
        bnn.loss(torch.zeros(N, 2), torch.zeros(N).long())


@pytest.mark.parametrize("shape", [(N, 1), (N, K), (3,)])
def test_predictions_of_classes_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    pred = network(CATEGORICAL()).predict(torch.zeros(N, 2), num_samples=2)
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        pred.log_prob(torch.zeros(shape).long())


@pytest.mark.parametrize("df", [0.0, -1.0, math.inf, math.nan])
def test_degrees_of_freedom_are_positive_and_finite(df: float) -> None:
    with pytest.raises(ValueError, match="df must be positive and finite"):
        STUDENT(df=df)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "gamma"}, "noise is a scale or 'learned', got 'gamma'"),
        ({"noise": -1.0}, "noise must be positive and finite"),
        ({"step_size": 0.0}, r"step_size must be in \(0, 1\]"),
        ({"num_outputs": 0}, "num_outputs must be at least 1"),
    ],
)
def test_arguments_of_student_t_noise_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STUDENT(**settings)


@pytest.mark.parametrize("optimizer", [noisynat.NoisyKFAC, noisynat.NoisyNaturalGradient])
def test_gauss_newton_without_a_root_is_refused_when_asked_for(optimizer: Any) -> None:
    """By the optimizer, not in the middle of training; the default is the sampled Fisher, which works."""
    bnn = network(LaplaceLikelihood())
    with pytest.raises(ValueError, match=r"LaplaceLikelihood has no hessian_root: use fisher='mc'"):
        optimizer(bnn, fisher="ggn")
    for working in ("mc", "empirical", None):
        step = optimizer(bnn, fisher=working)
        bnn.loss(torch.zeros(N, 2), torch.zeros(N, K)).backward()
        step.step()


def test_a_root_of_ones_own_is_used() -> None:
    """Overriding hessian_root is enough: it becomes the default and may be asked for."""

    class WithRoot(LaplaceLikelihood):
        def hessian_root(self, f: Tensor) -> Tensor:
            return torch.eye(f.shape[-1]).unsqueeze(1) / 0.4 * torch.ones_like(f)

    class Narrower(WithRoot):
        def distribution(self, f: Tensor) -> Distribution:
            return Laplace(f, 0.2)

    assert not LaplaceLikelihood.has_hessian_root
    for likelihood in (WithRoot(), Narrower()):
        bnn = network(likelihood)
        optimizer = noisynat.NoisyKFAC(bnn, fisher="ggn")
        bnn.loss(torch.zeros(N, 2), torch.zeros(N, K)).backward()
        optimizer.step()
        kind = default_kind(K, likelihood.has_hessian_root)
        columns = output_gradients(likelihood, torch.zeros(N, K), torch.zeros(N, K), kind, RandomStream(0))
        assert len(columns) == K  # of the root; the sampled Fisher has one


def test_a_likelihood_without_a_distribution_is_incomplete() -> None:
    with pytest.raises(TypeError, match=r"abstract.*distribution"):
        type("Incomplete", (noisynat.DistributionLikelihood,), {})()
