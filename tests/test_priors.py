"""Gaussian priors: the variance of every layer and replica."""

import pytest
import torch

from noisynat import GaussianPrior
from noisynat.priors import priors_by_layer


def test_fixed_variance_is_the_same_for_every_layer() -> None:
    prior = GaussianPrior(0.5)
    for fan_in in (1, 10):
        eta = prior.initial_variance(fan_in, torch.Size())
        assert eta.item() == 0.5
        assert eta.dtype == torch.float64


def test_fan_in_divides_the_variance() -> None:
    assert GaussianPrior(2.0, scale="fan_in").initial_variance(8, torch.Size()).item() == 0.25


def test_one_number_serves_all_replicas() -> None:
    assert GaussianPrior(2.0).initial_variance(3, torch.Size([2, 2])).tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("grid", [[0.1, 1.0, 10.0], torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)])
def test_grid_gives_every_replica_its_own(grid: object) -> None:
    prior = GaussianPrior(grid, scale="fan_in")
    assert prior.initial_variance(2, torch.Size([3])).tolist() == [0.05, 0.5, 5.0]


def test_layers_do_not_share_memory() -> None:
    prior = GaussianPrior(1.0)
    prior.initial_variance(1, torch.Size([2])).fill_(7)
    assert prior.initial_variance(1, torch.Size([2])).tolist() == [1, 1]


def test_empirical_bayes_starts_from_one() -> None:
    prior = GaussianPrior("empirical_bayes")
    assert prior.empirical_bayes
    assert prior.initial_variance(5, torch.Size()).item() == 1
    assert not GaussianPrior(1.0).empirical_bayes


@pytest.mark.parametrize("replicas", [(), (2,), (4,)])
def test_grid_that_does_not_fit_the_replicas(replicas: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) do not fit replicas"):
        GaussianPrior([1.0, 2.0, 3.0]).initial_variance(1, torch.Size(replicas))


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf"), [1.0, 0.0]])
def test_variance_must_be_positive_and_finite(variance: object) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        GaussianPrior(variance)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="'empirical_bayes', got 'laplace'"):
        GaussianPrior("laplace")
    with pytest.raises(ValueError, match="'fan_in', got 'fan_out'"):
        GaussianPrior(1.0, scale="fan_out")


def test_repr_tells_the_arguments() -> None:
    assert repr(GaussianPrior(2.0, "fan_in")) == "GaussianPrior(variance=2.0, scale='fan_in')"
    assert "empirical_bayes" in repr(GaussianPrior("empirical_bayes"))


# --- by layer -------------------------------------------------------------------------------------

LAYERS = ("body.0", "body.2", "head")


def test_one_prior_serves_all_layers() -> None:
    prior = GaussianPrior(0.5)
    assert priors_by_layer(prior, LAYERS) == [prior] * 3


def test_no_prior_is_the_standard_normal() -> None:
    assert [float(prior.variance) for prior in priors_by_layer(None, LAYERS)] == [1, 1, 1]


def test_layers_are_named_or_matched_and_the_first_entry_counts() -> None:
    given = {"body.2": GaussianPrior(2.0), "body.*": GaussianPrior(3.0)}
    assert [float(prior.variance) for prior in priors_by_layer(given, LAYERS)] == [3, 2, 1]


def test_an_entry_for_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tail' fits none of the layers body\.0, body\.2, head"):
        priors_by_layer({"head": GaussianPrior(), "tail": GaussianPrior()}, LAYERS)


@pytest.mark.parametrize("prior", [1.0, {"head": 1.0}])
def test_what_is_no_prior_is_refused(prior: object) -> None:
    with pytest.raises(TypeError, match="must be a GaussianPrior, got float"):
        priors_by_layer(prior, LAYERS)
