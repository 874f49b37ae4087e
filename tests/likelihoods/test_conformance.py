"""What every likelihood must satisfy, against torch.distributions, automatic differentiation and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Laplace, Normal, Poisson, StudentT

import noisynat
from noisynat.curvature.fisher import output_gradients
from noisynat.likelihoods import ClassModel, Likelihood, OrderedModel
from noisynat.random import RandomStream

B, K, SAMPLES = 6, 3, 5


class LaplaceLikelihood(noisynat.DistributionLikelihood):
    """A user's own: one method."""

    def distribution(self, f: Tensor) -> Distribution:
        return Laplace(f, 0.4)


@dataclass(frozen=True)
class Case:
    """A likelihood and what it should equal.

    Args:
        make: the likelihood.
        truth: the distribution of all K outputs' targets given f.
        hessian: whether minus the Hessian of log p at any target is the curvature; otherwise it is its expectation.
        per_output: whether the log-probabilities of outputs are to be added up.
        outputs: of the network, K or more.
    """

    make: Callable[[], Likelihood]
    truth: Callable[[Tensor], Distribution]
    hessian: bool = True
    per_output: bool = True
    outputs: int = K


CASES = {
    "gaussian": Case(lambda: noisynat.GaussianLikelihood(0.3), lambda f: Normal(f, 0.3)),
    "heteroscedastic": Case(
        lambda: noisynat.HeteroscedasticGaussianLikelihood(0.3, max_ratio=1e6),
        lambda f: Normal(f[..., :K], 0.3 * scale_of(f[..., K:])),
        hessian=False,
        outputs=2 * K,
    ),
    "student": Case(lambda: noisynat.StudentTLikelihood(0.3, df=5.0), lambda f: StudentT(5.0, f, 0.3), hessian=False),
    "categorical": Case(noisynat.CategoricalLikelihood, lambda f: Categorical(logits=f), per_output=False),
    "bernoulli": Case(noisynat.BernoulliLikelihood, lambda f: Bernoulli(logits=f)),
    "poisson": Case(noisynat.PoissonLikelihood, lambda f: Poisson(f.exp())),
    "own": Case(LaplaceLikelihood, lambda f: Laplace(f, 0.4), hessian=False),
}
WITH_ROOT = [name for name, case in CASES.items() if case.make().has_hessian_root]


def scale_of(s: Tensor) -> Tensor:
    limit = math.log(1e6) / 2
    return (limit * torch.tanh(torch.asinh(s / 2) / limit)).exp()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def bound(case: Case) -> Any:
    likelihood = case.make()
    likelihood.bind(B, torch.Size(), torch.float64)
    return likelihood


def outputs(case: Case, *lead: int) -> Tensor:
    return torch.randn(*lead, B, case.outputs, dtype=torch.float64)


def log_prob(case: Case, f: Tensor, y: Tensor) -> Tensor:
    value: Tensor = case.truth(f).log_prob(y)
    return value.sum(-1) if case.per_output else value


def test_log_prob_is_the_distributions(case: Case) -> None:
    f = outputs(case)
    y = case.truth(f).sample()
    torch.testing.assert_close(bound(case).log_prob(f, y), log_prob(case, f, y))


@pytest.mark.parametrize("name", WITH_ROOT)
def test_hessian_root_is_minus_the_hessian_or_the_fisher_information(name: str) -> None:
    case = CASES[name]
    likelihood, f = bound(case), outputs(case)
    root = likelihood.hessian_root(f)
    found = torch.einsum("cbi,cbj->bij", root, root)
    if case.hessian:
        y = case.truth(f).sample()
        for b in range(B):
            hessian = torch.autograd.functional.hessian(lambda row, b=b: log_prob(case, row, y[b]), f[b])
            torch.testing.assert_close(found[b], -hessian)
        return
    scores = scores_of(case, f, case.truth(f.expand(200_000, *f.shape)).sample())
    outer = torch.einsum("sbi,sbj->sbij", scores, scores)
    error = outer.std(0) / len(outer) ** 0.5
    assert bool(((outer.mean(0) - found).abs() < 5 * error + 1e-12).all())


def scores_of(case: Case, f: Tensor, y: Tensor) -> Tensor:
    """Gradients of log p(y | f) in f, (S, B, outputs)."""
    f = f.expand(len(y), *f.shape).clone().requires_grad_()
    return torch.autograd.grad(log_prob(case, f, y).sum(), f)[0]


def test_sampled_fisher_is_the_exact_one_on_average(case: Case) -> None:
    likelihood, f, stream = bound(case), outputs(case), RandomStream(0)
    many = f.expand(50_000, *f.shape)
    sampled = output_gradients(likelihood, many, torch.empty(0), "mc", stream)[0]
    exact = scores_of(case, f, case.truth(many).sample())
    found, expected = (torch.einsum("sbi,sbj->sbij", scores, scores) for scores in (sampled, exact))
    error = (found.var(0) + expected.var(0)).sqrt() / len(found) ** 0.5
    assert bool(((found.mean(0) - expected.mean(0)).abs() < 5 * error + 1e-12).all())


def test_samples_have_the_distributions_moments(case: Case) -> None:
    likelihood, f = bound(case), outputs(case)
    drawn = likelihood.sample(f.expand(50_000, *f.shape), RandomStream(1)).double()
    reference = case.truth(f.expand(50_000, *f.shape)).sample().double()
    for power in (1, 2):
        error = ((drawn**power).var(0) + (reference**power).var(0)).sqrt() / len(drawn) ** 0.5
        assert bool((((drawn**power).mean(0) - (reference**power).mean(0)).abs() < 5 * error + 1e-12).all())


def test_sampling_follows_the_stream_and_leaves_the_global_generator_alone(case: Case) -> None:
    likelihood, f = bound(case), outputs(case)
    before = torch.get_rng_state()
    first, again = likelihood.sample(f, RandomStream(3)), likelihood.sample(f, RandomStream(3))
    assert torch.equal(first, again)
    many = f.expand(50, *f.shape)
    assert not torch.equal(likelihood.sample(many, RandomStream(3)), likelihood.sample(many, RandomStream(4)))
    torch.set_rng_state(before)
    likelihood.sample(f, RandomStream(3))
    assert torch.equal(torch.get_rng_state(), before)


# --- the predictive, by brute force -----------------------------------------------------------


def prediction(case: Case) -> noisynat.Predictive:
    return noisynat.Predictive(outputs(case, SAMPLES), bound(case).observation_model(), RandomStream(0))


def test_predictive_log_prob_is_that_of_the_mixture(case: Case) -> None:
    pred = prediction(case)
    y = case.truth(pred.samples[0]).sample()
    expected = log_prob(case, pred.samples, y).exp().mean(0).log()
    torch.testing.assert_close(pred.log_prob(y), expected)


def test_predictive_moments_are_those_of_its_samples(case: Case) -> None:
    pred = prediction(case)
    y = pred.sample(60_000)
    values = nn.functional.one_hot(y, K).double() if isinstance(pred._observation, ClassModel) and y.dim() == 2 else y
    error = values.std(0) / len(values) ** 0.5
    assert bool(((values.mean(0) - pred.mean).abs() < 5 * error + 1e-12).all())
    squares = (values - pred.mean).square()
    error = squares.std(0) / len(values) ** 0.5
    assert bool(((squares.mean(0) - pred.variance).abs() < 5 * error + 1e-12).all())


def test_entropy_is_minus_the_mean_log_density(case: Case) -> None:
    """Of every output's own marginal; of classes, jointly."""
    pred = prediction(case)
    y = pred.sample(20_000)
    minus = -pred.distribution.log_prob(y)
    error = minus.std(0) / len(y) ** 0.5
    assert pred.entropy.shape == minus.shape[1:]
    assert bool(((minus.mean(0) - pred.entropy).abs() < 5 * error + 1e-9).all())


def test_mutual_information_is_between_none_and_that_of_the_sample_index(case: Case) -> None:
    pred = prediction(case)
    assert bool((pred.mutual_information > 0).all())
    assert bool((pred.mutual_information < math.log(SAMPLES)).all())
    one = noisynat.Predictive(pred.samples[:1].expand(SAMPLES, -1, -1), pred._observation, RandomStream(0))
    torch.testing.assert_close(one.mutual_information, torch.zeros_like(one.mutual_information), rtol=0, atol=1e-6)


def test_mode_is_the_most_probable(case: Case) -> None:
    pred = prediction(case)
    drawn, distribution = pred.sample(2000), pred.distribution
    assert bool((distribution.log_prob(pred.mode) >= distribution.log_prob(drawn).amax(0) - 1e-9).all())


def test_cdf_of_numbers_is_the_share_of_samples_up_to_there(case: Case) -> None:
    pred = prediction(case)
    if isinstance(pred._observation, OrderedModel):
        y, at = pred.sample(40_000), case.truth(pred.samples[0]).sample()
        share, error = (y <= at).double().mean(0), 5 * 0.5 / 40_000**0.5
        assert bool(((pred.cdf(at) - share).abs() < error).all())


def test_quantiles_of_numbers_divide_the_samples(case: Case) -> None:
    pred = prediction(case)
    if not isinstance(pred._observation, OrderedModel):
        with pytest.raises(TypeError, match="classes"):
            pred.quantile(0.5)
        return
    with pytest.raises(TypeError, match="numbers"):
        _ = pred.probs
    y, low = pred.sample(40_000), pred.quantile(0.2)
    below, up_to = (y < low).double().mean(0), (y <= low).double().mean(0)
    error = 5 * (0.2 * 0.8 / len(y)) ** 0.5
    assert bool((below < 0.2 + error).all())
    assert bool((up_to > 0.2 - error).all())


# --- in a network -----------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["diagonal", "kronecker", "matrix_normal", "eigen_corrected", "dense"])
@pytest.mark.parametrize("replicas", [None, 2])
def test_a_network_learns(case: Case, posterior: Any, replicas: int | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    teacher = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, case.outputs))
    y = case.truth((2 * teacher(x)).detach()).sample()
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, case.outputs))
    bnn = noisynat.VariationalNetwork(net, case.make(), posterior=posterior, num_data=64, replicas=replicas)
    before = bnn.elbo(x, y, num_samples=20).total
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        bnn.loss(x, y).backward()
        optimizer.step()
    after = bnn.elbo(x, y, num_samples=20)
    assert bool((after.total > before + 5).all())
    pred = bnn.predict(x, num_samples=20)
    assert pred.log_prob(y).shape == (*bnn.replicas, 64)
    assert pred.sample(3).shape == (3, *bnn.replicas, *y.shape)
    if replicas:
        assert pred.combine().log_prob(y).shape == (64,)
