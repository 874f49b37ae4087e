"""Coverage of intervals and reliability of probabilities, against the intervals themselves and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import noisynat
from noisynat import calibration
from noisynat.likelihoods.base import ObservationModel
from noisynat.likelihoods.discrete import Binary, Classes
from noisynat.likelihoods.observation import NormalNoise, StudentNoise
from noisynat.random import RandomStream

STD = torch.tensor([[0.4]], dtype=torch.float64)
NUMBERS: dict[str, Any] = {
    "normal": lambda: NormalNoise(STD),
    "t": lambda: StudentNoise(5.0, STD, joint=False),
    "counts": lambda: noisynat.PoissonLikelihood().observation_model(),
}


def prediction(observation: ObservationModel, *shape: int) -> noisynat.Predictive:
    f = torch.randn(shape or (5, 40, 2), dtype=torch.float64)
    return noisynat.Predictive(f, observation, RandomStream(1))


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("level", [0.3, 0.8, 0.95])
def test_a_target_is_inside_when_the_interval_says_so(kind: str, level: float) -> None:
    pred = prediction(NUMBERS[kind]())
    lower, upper = pred.interval(level)
    for y in pred.sample(20):
        inside = (lower <= y) & (y <= upper)
        assert bool((inside == (calibration.central_level(pred, y) <= level)).all())
        share = calibration.interval_coverage(pred, y, [level, 0.5])
        torch.testing.assert_close(share[0], inside.double().mean())


def test_ends_of_an_interval_need_its_level() -> None:
    pred = prediction(NormalNoise(STD))
    for end in pred.interval(0.7):
        torch.testing.assert_close(calibration.central_level(pred, end), torch.full((40, 2), 0.7).double())
    torch.testing.assert_close(
        calibration.central_level(pred, pred.quantile(0.5)), torch.zeros(40, 2).double(), rtol=0, atol=1e-9
    )


def test_levels_are_uniform_where_the_prediction_is_right() -> None:
    """Targets drawn from the prediction: coverage is the level within 4 standard errors; doubled, it is less."""
    pred = prediction(NormalNoise(STD), 5, 4000, 1)
    y = pred.sample(5).gather(0, torch.randint(5, (1, 4000, 1)))[0]  # every row of its own function
    levels = torch.tensor(calibration.LEVELS).double()
    error = 4 * (levels * (1 - levels) / 4000).sqrt()
    assert bool(((calibration.interval_coverage(pred, y) - levels).abs() < error).all())
    assert bool((calibration.interval_coverage(pred, 2 * (y - pred.mean) + pred.mean) < levels - error).all())


def test_coverage_of_replicas() -> None:
    pred = prediction(NormalNoise(STD), 5, 2, 3, 40, 1)
    y = torch.randn(40, 1).double()
    share = calibration.interval_coverage(pred, y, [0.5, 0.9])
    assert share.shape == (2, 2, 3)
    of_one = calibration.interval_coverage(pred.replica((1, 2)), y, [0.5, 0.9])
    torch.testing.assert_close(share[:, 1, 2], of_one)


# --- classes ----------------------------------------------------------------------------------


def of_probabilities(probs: Tensor) -> noisynat.Predictive:
    return noisynat.Predictive(probs.double().log().unsqueeze(0), Classes(), RandomStream(1))


def test_reliability_of_classes_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.2, 0.55, 0.25], [0.0, 1.0, 0.0]])
    y = torch.tensor([0, 1, 1, 1])
    found = calibration.reliability(of_probabilities(probs), y, bins=4)
    assert found.count.tolist() == [0, 0, 1, 3]
    torch.testing.assert_close(found.confidence[2:], torch.tensor([0.55, 0.9]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.frequency[2:], torch.tensor([1, 2 / 3]).double(), rtol=1e-6, atol=0)
    assert bool(found.confidence[:2].isnan().all())
    assert bool(found.frequency[:2].isnan().all())


def test_reliability_of_binary_targets_is_that_of_ones() -> None:
    probs = torch.tensor([[[0.1, 0.9], [0.2, 0.4]]]).double()
    pred = noisynat.Predictive(probs.logit(), Binary(), RandomStream(1))
    found = calibration.reliability(pred, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), bins=2)
    assert found.count.tolist() == [3, 1]
    torch.testing.assert_close(found.confidence, torch.tensor([0.7 / 3, 0.9]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.frequency, torch.tensor([1 / 3, 1.0]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("observation", "outputs"), [(Classes(), 3), (Binary(), 2)])
def test_reliability_of_replicas(observation: ObservationModel, outputs: int) -> None:
    pred = prediction(observation, 5, 2, 40, outputs)
    y = pred.sample(1)[0, 0]
    found = calibration.reliability(pred, y, bins=5)
    assert found.count.shape == (2, 5)
    for index in range(2):
        of_one = calibration.reliability(pred.replica(index), y, bins=5)
        for name in ("confidence", "frequency", "count"):
            torch.testing.assert_close(getattr(found, name)[index], getattr(of_one, name), equal_nan=True)


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_are_probabilities(level: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        calibration.interval_coverage(prediction(NormalNoise(STD)), torch.zeros(40, 2).double(), [0.5, level])


def test_what_does_not_fit_is_refused() -> None:
    numbers, classes = prediction(NormalNoise(STD)), prediction(Classes())
    with pytest.raises(TypeError, match="targets are classes"):
        calibration.interval_coverage(classes, torch.zeros(40).long())
    with pytest.raises(TypeError, match="targets are numbers"):
        calibration.reliability(numbers, torch.zeros(40, 2))
    with pytest.raises(ValueError, match=r"expected \(40, 2\)"):
        calibration.interval_coverage(numbers, torch.zeros(40))
    with pytest.raises(ValueError, match=r"expected \(40,\)"):
        calibration.reliability(classes, torch.zeros(40, 1))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration.reliability(classes, torch.zeros(40), bins=0)
