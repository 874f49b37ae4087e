"""Where to look next, against closed forms and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat import acquisition
from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.discrete import Binary, Classes
from noisynat.likelihoods.observation import NormalNoise
from noisynat.random import RandomStream

NOISE = NormalNoise(torch.tensor([[0.5]]).double())


def prediction(
    samples: Tensor, observation: ObservationModel = NOISE, weights: Tensor | None = None
) -> noisynat.Predictive:
    return noisynat.Predictive(samples.double(), observation, RandomStream(0), weights)


# --- expected improvement ---------------------------------------------------------------------

MEAN, STD = torch.tensor([-1.0, 0.0, 0.3, 2.0]).double(), torch.tensor([0.5, 1.0, 0.1, 2.0]).double()


def closed_form(best: float, sign: float) -> tuple[Tensor, Tensor]:
    """E[max(sign (f - best), 0)] of f ~ N(MEAN, STD^2) and the standard deviation of what is averaged."""
    gain = sign * (MEAN - best)
    z = gain / STD
    density, mass = (-z.square() / 2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(z)
    first = gain * mass + STD * density
    second = (gain.square() + STD.square()) * mass + gain * STD * density
    return first, (second - first.square()).clamp(min=0).sqrt()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("best", [-0.5, 0.4])
def test_expected_improvement_is_the_closed_form_of_a_gaussian(best: float, maximize: bool) -> None:
    """Within 4 standard errors of 200,000 samples; the noise of y does not count."""
    count = 200_000
    pred = prediction((MEAN + STD * torch.randn(count, 4).double()).unsqueeze(-1))
    found = acquisition.expected_improvement(pred, best, maximize=maximize)
    expected, std = closed_form(best, 1.0 if maximize else -1.0)
    assert found.shape == (4,)
    assert bool(((found - expected).abs() <= 4 * std / count**0.5 + 1e-12).all())


def test_expected_improvement_of_a_linear_network_is_that_of_its_gaussian_function() -> None:
    """A linear network is its own linearization, and its function at every x is normal."""
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 1).double(), noisynat.GaussianLikelihood(0.3), num_data=4, seed=0)
    x, count = torch.randn(5, 2).double(), 40_000
    pred = bnn.predict(x, num_samples=count, predictive="linearized")
    columns = torch.cat([x, torch.ones(5, 1).double()], dim=-1)
    variance = (columns @ bnn.posteriors[0].covariance() * columns).sum(-1).detach()
    mean = bnn.eval()(x).detach().squeeze(-1)
    z = (0.2 - mean) / variance.sqrt()
    expected = (0.2 - mean) * torch.special.ndtr(z) + variance.sqrt() * (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    found = acquisition.expected_improvement(pred, 0.2)
    assert bool(((found - expected).abs() < 4 * variance.sqrt() / count**0.5).all())


def test_expected_improvement_by_hand() -> None:
    pred = prediction(torch.tensor([[1.0, 5.0], [3.0, 2.0]]).unsqueeze(-1))
    torch.testing.assert_close(acquisition.expected_improvement(pred, 2.5), torch.tensor([0.75, 0.25]).double())
    of_each = acquisition.expected_improvement(pred, torch.tensor([2.5, 3.0]), maximize=True)
    torch.testing.assert_close(of_each, torch.tensor([0.25, 1.0]).double())


def test_expected_improvement_on_what_each_function_has_found() -> None:
    """Two functions at two candidates and two known points, of which their lowest are 2 and 4."""
    pred = prediction(torch.tensor([[1.0, 5.0, 2.0, 3.0], [3.0, 2.0, 7.0, 4.0]]).unsqueeze(-1))
    best = pred.means[:, 2:, 0].amin(-1, keepdim=True)
    expected = torch.tensor([(1 + 1) / 2, (0 + 2) / 2, 0.0, 0.0]).double()
    torch.testing.assert_close(acquisition.expected_improvement(pred, best), expected)


def test_expected_improvement_is_of_one_output() -> None:
    with pytest.raises(ValueError, match="of one output, this prediction has 2"):
        acquisition.expected_improvement(prediction(torch.zeros(3, 4, 2)), 0.0)


# --- BALD -------------------------------------------------------------------------------------

CERTAIN = 60.0  # a logit whose probability is 1 in float64


def test_bald_of_certain_classes() -> None:
    """Two samples that disagree tell log 2 about which of them is right; two that agree, nothing."""
    disagree, agree = [[CERTAIN, 0, 0], [0, CERTAIN, 0]], [[CERTAIN, 0, 0], [CERTAIN, 0, 0]]
    undecided = [[0.0, 0, 0], [0, 0, 0]]
    pred = prediction(torch.tensor([disagree, agree, undecided]).movedim(1, 0), Classes())
    expected = torch.tensor([math.log(2), 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(acquisition.bald(pred), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        pred.entropy[-1], torch.tensor(math.log(3), dtype=torch.float64)
    )  # uncertain, but not for BALD


def test_bald_of_uncertain_classes_by_hand() -> None:
    """Probabilities (0.9, 0.1) and (0.3, 0.7): entropy of their mean less the mean of their entropies."""
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()
    mean = (0.6, 0.4)
    entropies = [-sum(p * math.log(p) for p in row) for row in (mean, (0.9, 0.1), (0.3, 0.7))]
    expected = entropies[0] - (entropies[1] + entropies[2]) / 2
    torch.testing.assert_close(
        acquisition.bald(prediction(probs.log().unsqueeze(1), Classes())), torch.tensor([expected], dtype=torch.float64)
    )


def test_bald_adds_binary_targets_up() -> None:
    """Of three outputs, two disagree for certain."""
    f = torch.tensor([[[CERTAIN, -CERTAIN, CERTAIN]], [[-CERTAIN, CERTAIN, CERTAIN]]])
    torch.testing.assert_close(
        acquisition.bald(prediction(f, Binary())),
        torch.tensor([2 * math.log(2)], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


def test_bald_of_numbers_far_apart_and_together() -> None:
    """Two normals that hardly overlap tell which sample it is; two that coincide, nothing."""
    pred = prediction(torch.tensor([[[-20.0], [1.0]], [[20.0], [1.0]]]))
    torch.testing.assert_close(
        acquisition.bald(pred), torch.tensor([math.log(2), 0.0], dtype=torch.float64), rtol=0, atol=1e-6
    )


# --- expected variance reduction --------------------------------------------------------------


def test_reduction_is_what_a_target_does_to_a_gaussian_posterior() -> None:
    """Of a linear function with a known posterior: the variance before less that after the exact update."""
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
    count, noise = 400_000, 0.25
    weights = torch.randn(count, 2).double() @ torch.linalg.cholesky(covariance).mT
    candidates, reference = torch.tensor([[1.0, 0.0], [1.0, -2.0]]).double(), torch.randn(3, 2).double()
    pred = prediction((weights @ torch.cat([candidates, reference]).mT).unsqueeze(-1))
    found = acquisition.expected_variance_reduction(pred, slice(2, None))[:2]
    for x, reduction in zip(candidates, found, strict=True):
        after = torch.linalg.inv(torch.linalg.inv(covariance) + torch.outer(x, x) / noise)
        before_less_after = (reference @ (covariance - after) * reference).sum(-1).mean()
        torch.testing.assert_close(reduction, before_less_after, rtol=0.02, atol=0)


def test_reduction_by_hand() -> None:
    """Two functions, f = (1, 0, 2) and (3, 4, 2): deviations are 1, 2 and 0, the noise's variance is 0.25."""
    pred = prediction(torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 2.0]]).unsqueeze(-1))
    everywhere = [(1 * 1 + 2 * 2) / 3 / 1.25, (2 * 2 + 4 * 4) / 3 / 4.25, 0.0]
    torch.testing.assert_close(acquisition.expected_variance_reduction(pred), torch.tensor(everywhere).double())
    at_the_first = [1 / 1.25, 4 / 4.25, 0.0]
    torch.testing.assert_close(
        acquisition.expected_variance_reduction(pred, torch.tensor([0])), torch.tensor(at_the_first).double()
    )


def test_reduction_adds_outputs_up_and_weighs_functions() -> None:
    """Weights 1 to 3 of 0 and 4 make a variance of 3; the second output's is 12."""
    pred = prediction(torch.tensor([[[[0.0, 8.0]]], [[[4.0, 0.0]]]]).movedim(0, 1)).combine(torch.tensor([1.0, 3.0]))
    expected = 3 * 3 / 3.25 + 12 * 12 / 12.25
    torch.testing.assert_close(acquisition.expected_variance_reduction(pred), torch.tensor([expected]).double())


def test_reduction_wants_reference_inputs() -> None:
    with pytest.raises(ValueError, match="picks none of the prediction's 3 inputs"):
        acquisition.expected_variance_reduction(prediction(torch.zeros(2, 3, 1)), slice(3, None))


def test_reduction_without_any_uncertainty_is_nothing() -> None:
    certain = prediction(torch.zeros(2, 3, 1), NormalNoise(torch.zeros(1, 1).double()))
    assert acquisition.expected_variance_reduction(certain).tolist() == [0, 0, 0]


# --- variance, weights, shapes ----------------------------------------------------------------


def test_predictive_variance_by_hand() -> None:
    """Of 1 and 3 it is 1, of 0 and 4 it is 4; outputs add up, the noise's 0.25 does not count."""
    pred = prediction(torch.tensor([[[1.0, 0.0], [2.0, 2.0]], [[3.0, 4.0], [2.0, 2.0]]]))
    torch.testing.assert_close(acquisition.predictive_variance(pred), torch.tensor([5.0, 0.0]).double())


def test_weights_of_a_combined_prediction_count() -> None:
    """Replicas that each know f for certain, mixed 1 to 3."""
    weights = torch.tensor([1.0, 3.0])
    numbers = prediction(torch.tensor([[[[0.0]], [[4.0]]]])).combine(weights)
    torch.testing.assert_close(acquisition.predictive_variance(numbers), torch.tensor([3.0]).double())
    torch.testing.assert_close(acquisition.expected_improvement(numbers, 2.0), torch.tensor([0.5]).double())
    torch.testing.assert_close(
        acquisition.expected_improvement(numbers, 2.0, maximize=True), torch.tensor([1.5]).double()
    )
    classes = prediction(torch.tensor([[[[CERTAIN, 0.0]], [[0.0, CERTAIN]]]]), Classes()).combine(weights)
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    torch.testing.assert_close(
        acquisition.bald(classes), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (noisynat.GaussianLikelihood(1.0), 1),
        (noisynat.HeteroscedasticGaussianLikelihood(1.0, max_ratio=2.0), 2),
        (noisynat.PoissonLikelihood(), 1),
        (noisynat.BernoulliLikelihood(), 1),
        (noisynat.CategoricalLikelihood(), 3),
    ],
)
def test_shapes_with_replicas(likelihood: noisynat.Likelihood, outputs: int) -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(2, outputs), likelihood, num_data=50, replicas=(2, 3))
    pred = bnn.predict(0.1 * torch.randn(4, 2), num_samples=3)
    for each, shape in ((pred, (2, 3, 4)), (pred.combine(), (2, 4)), (pred.replica((1, 2)), (4,))):
        reduction = acquisition.expected_variance_reduction(each, slice(2))
        for score in (acquisition.predictive_variance(each), acquisition.bald(each), reduction):
            assert score.shape == shape
            assert bool((score >= -1e-5).all())
        if each.means.shape[-1] == 1:
            assert acquisition.expected_improvement(each, torch.zeros(4)).shape == shape
    torch.testing.assert_close(acquisition.bald(pred)[1, 2], acquisition.bald(pred.replica((1, 2))))
