"""What a prediction knows, against torch.distributions, scipy and brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from torch import Tensor, nn

import noisynat
from noisynat import marginals
from noisynat.likelihoods.observation import NormalNoise, StudentNoise, student_t_cdf
from noisynat.random import RandomStream

STD = torch.tensor([[0.4]], dtype=torch.float64)


def normal_mixture(samples: int = 7, outputs: int = 2, std: Tensor = STD) -> noisynat.Predictive:
    """A prediction at three inputs with normal noise."""
    f = 2 * torch.randn(samples, 3, outputs, dtype=torch.float64)
    return noisynat.Predictive(f, NormalNoise(std), RandomStream(0))


def student_mixture(df: float = 8.0, outputs: int = 2, joint: bool = True) -> noisynat.Predictive:
    """The same with Student-t noise."""
    f = 2 * torch.randn(7, 3, outputs, dtype=torch.float64)
    return noisynat.Predictive(f, StudentNoise(df, STD, joint), RandomStream(0))


MIXTURES = {
    "normal": normal_mixture,
    "joint t": student_mixture,
    "separate t": lambda: student_mixture(joint=False),
    "one sample": lambda: normal_mixture(samples=1),
}


@pytest.fixture(params=list(MIXTURES))
def pred(request: pytest.FixtureRequest) -> noisynat.Predictive:
    return MIXTURES[request.param]()


# --- density ----------------------------------------------------------------------------------


def test_log_prob_is_the_log_of_the_mean_density() -> None:
    pred, y = normal_mixture(), torch.randn(3, 2).double()
    density = stats.norm(pred.samples.numpy(), 0.4).pdf(y.numpy()).prod(-1)  # product over outputs
    np.testing.assert_allclose(pred.log_prob(y).numpy(), np.log(density.mean(0)))


def test_log_prob_is_not_that_of_a_gaussian_fit() -> None:
    """Two far components: between them lies next to nothing."""
    f = torch.tensor([-5.0, 5.0]).double().reshape(2, 1, 1)
    pred = noisynat.Predictive(f, NormalNoise(STD), RandomStream(0))
    zero = torch.zeros(1, 1).double()
    torch.testing.assert_close(pred.log_prob(zero), torch.distributions.Normal(5.0, STD).log_prob(zero)[0])
    assert pred.log_prob(zero) < torch.distributions.Normal(0, pred.stddev).log_prob(zero) - 50


def test_log_prob_far_away_does_not_underflow() -> None:
    pred = normal_mixture()
    assert torch.isfinite(pred.log_prob(torch.full((3, 2), 1e4).double())).all()


def test_joint_student_log_prob_is_scipys_multivariate_t() -> None:
    pred, y = student_mixture(outputs=3), torch.randn(3, 3).double()
    density = [
        np.mean([stats.multivariate_t(f[n].numpy(), 0.16 * np.eye(3), df=8).pdf(y[n]) for f in pred.samples])
        for n in range(3)
    ]
    np.testing.assert_allclose(pred.log_prob(y).numpy(), np.log(density))


def test_separate_student_log_prob_is_a_product() -> None:
    pred, y = student_mixture(joint=False), torch.randn(3, 2).double()
    density = stats.t(8, pred.samples.numpy(), 0.4).pdf(y.numpy()).prod(-1)
    np.testing.assert_allclose(pred.log_prob(y).numpy(), np.log(density.mean(0)))


@pytest.mark.parametrize("make", [normal_mixture, student_mixture])
def test_distribution_has_the_same_density_for_one_output(make: Any) -> None:
    pred, y = make(outputs=1), torch.randn(3, 1).double()
    torch.testing.assert_close(pred.distribution.log_prob(y).squeeze(-1), pred.log_prob(y))


def test_density_integrates_to_one() -> None:
    grid = torch.linspace(-60, 60, 40001).double()
    pred = normal_mixture(outputs=1)
    pred = noisynat.Predictive(pred.samples[:, :1].expand(-1, len(grid), -1), NormalNoise(STD), RandomStream(0))
    assert torch.trapezoid(pred.log_prob(grid[:, None]).exp(), grid) == pytest.approx(1, abs=1e-6)


# --- moments ----------------------------------------------------------------------------------


def test_moments_are_those_of_the_mixture(pred: noisynat.Predictive) -> None:
    torch.testing.assert_close(pred.mean, pred.distribution.mean)
    torch.testing.assert_close(pred.variance, pred.distribution.variance)
    torch.testing.assert_close(pred.stddev.square(), pred.variance)


def test_variance_splits_into_model_and_noise() -> None:
    pred = normal_mixture()
    np.testing.assert_allclose(pred.epistemic_variance.numpy(), pred.samples.numpy().var(0))
    torch.testing.assert_close(pred.aleatoric_variance, torch.full((3, 2), 0.16).double())
    torch.testing.assert_close(pred.variance, pred.epistemic_variance + pred.aleatoric_variance)


def test_student_noise_has_heavier_tails_than_its_scale() -> None:
    expected = torch.full((3, 2), stats.t(8, scale=0.4).var()).double()
    torch.testing.assert_close(student_mixture(df=8).aleatoric_variance, expected)


# --- distribution function and quantiles ------------------------------------------------------


@pytest.mark.parametrize("df", [1.0, 3.0, 10.0, 29.9, 30.0, 500.0, 1e5])
def test_student_cdf_is_scipys(df: float) -> None:
    t = torch.cat([torch.linspace(-8, 8, 101), torch.tensor([-1e4, -50.0, 50.0, 1e4])]).double()
    np.testing.assert_allclose(student_t_cdf(t, df).numpy(), special.stdtr(df, t.numpy()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", [3.0, 30.0, 1e5, 1e12])
def test_student_cdf_far_out(df: float, dtype: torch.dtype) -> None:
    """Squares overflow there, and the cube of the normal score's square does."""
    t = torch.tensor([-torch.inf, -1e30, 1e30, torch.inf, torch.nan], dtype=dtype)
    expected = torch.tensor([0, 0, 1, 1, torch.nan], dtype=dtype)
    torch.testing.assert_close(student_t_cdf(t, df), expected, rtol=0, atol=1e-6, equal_nan=True)


def mixture_cdf(pred: noisynat.Predictive, n: int, k: int, y: float) -> float:
    """By scipy."""
    f = pred.samples[:, n, k].numpy()
    noise = pred._observation
    component = stats.t(noise.df, f, 0.4) if isinstance(noise, StudentNoise) else stats.norm(f, 0.4)
    return float(component.cdf(y).mean())


@pytest.mark.parametrize("q", [0.001, 0.1, 0.5, 0.975])
def test_quantile_is_the_root_of_the_cdf(pred: noisynat.Predictive, q: float) -> None:
    quantiles = pred.quantile(q)
    assert quantiles.shape == (3, 2)
    for n in range(3):
        for k in range(2):
            root = optimize.brentq(lambda y: mixture_cdf(pred, n, k, y) - q, -100, 100, xtol=1e-12)  # noqa: B023
            assert quantiles[n, k] == pytest.approx(root, abs=1e-6)


@pytest.mark.parametrize("q", [0.025, 0.5, 0.975])
def test_a_quantile_takes_few_evaluations(q: float) -> None:
    """Of 1,000 mixtures at once, the slowest; bisection to rounding would take 50."""
    means, evaluations = 2 * torch.randn(100, 1000, dtype=torch.float64), 0

    def cdf(y: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return torch.special.ndtr((y - means) / 0.3).mean(0)

    found = marginals.quantile(cdf, q, means.amin(0) - 3, means.amax(0) + 3)
    assert evaluations <= 25
    torch.testing.assert_close(cdf(found), torch.full((1000,), q, dtype=torch.float64), rtol=0, atol=1e-13)


def test_cdf_inverts_the_quantile(pred: noisynat.Predictive) -> None:
    torch.testing.assert_close(pred.cdf(pred.quantile(0.3)), torch.full((3, 2), 0.3).double())


def test_interval_covers_its_share_of_samples(pred: noisynat.Predictive) -> None:
    low, high = pred.interval(0.8)
    y = pred.sample(7 * 3000)
    inside = ((low < y) & (y < high)).double().mean(0)
    assert (inside - 0.8).abs().max() < 0.015
    assert ((y < low).double().mean(0) - 0.1).abs().max() < 0.015


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95])
def test_levels_are_probabilities(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_mixture().interval(level)
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_mixture().quantile(level)


# --- sampling ---------------------------------------------------------------------------------


def test_samples_have_the_mixtures_moments(pred: noisynat.Predictive) -> None:
    y = pred.sample(7 * 6000)
    assert y.shape == (42000, 3, 2)
    error = pred.stddev / 42000**0.5
    assert ((y.mean(0) - pred.mean) / error).abs().max() < 5
    torch.testing.assert_close(y.var(0), pred.variance, rtol=0.06, atol=0)


def test_outputs_of_a_joint_t_share_their_precision() -> None:
    """Their squares are correlated; those of separate t's are not."""
    zero = torch.zeros(1, 1, 2).double()
    correlation = {}
    for joint in (True, False):
        pred = noisynat.Predictive(zero, StudentNoise(8.0, STD, joint), RandomStream(0))
        log_squares = pred.sample(20000)[:, 0].square().log()
        correlation[joint] = torch.corrcoef(log_squares.T)[0, 1]
    assert correlation[True] > 0.04
    assert abs(correlation[False]) < 0.03


def test_samples_are_reproducible_by_generator() -> None:
    pred = student_mixture()
    first, second = (pred.sample(5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(pred.sample(5), pred.sample(5))


def test_sampling_leaves_the_global_generator_alone() -> None:
    pred = student_mixture()
    before = torch.get_rng_state()
    pred.sample(5)
    pred.sample(5, generator=torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


# --- of a network -----------------------------------------------------------------------------


def network(noise: Any = "gamma", **settings: Any) -> noisynat.VariationalNetwork:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    return noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(noise), num_data=20, **settings)


def test_shapes() -> None:
    pred = network().predict(torch.randn(4, 3), num_samples=6)
    assert pred.samples.shape == (6, 4, 2)
    assert pred.mean.shape == pred.variance.shape == pred.quantile(0.9).shape == (4, 2)
    assert pred.log_prob(torch.zeros(4, 2)).shape == (4,)
    assert pred.sample(10).shape == (10, 4, 2)


@pytest.mark.parametrize("noise", [0.3, "learned", "gamma"])
def test_shapes_with_replicas(noise: Any) -> None:
    pred = network(noise, replicas=3).predict(torch.randn(4, 3), num_samples=6)
    assert pred.samples.shape == (6, 3, 4, 2)
    assert pred.mean.shape == pred.variance.shape == pred.quantile(0.9).shape == (3, 4, 2)
    assert pred.log_prob(torch.zeros(4, 2)).shape == pred.log_prob(torch.zeros(3, 4, 2)).shape == (3, 4)
    assert pred.sample(10).shape == (10, 3, 4, 2)
    assert pred.distribution.batch_shape == (3, 4, 2)


def test_replicas_have_their_own_noise() -> None:
    bnn = network("learned", replicas=3)
    bnn.likelihood.residual.copy_(torch.tensor([[1.0], [4.0], [9.0]]))
    pred = bnn.predict(torch.randn(4, 3), num_samples=6)
    for r, std in enumerate((1.0, 2.0, 3.0)):
        torch.testing.assert_close(pred.aleatoric_variance[r], torch.full((4, 2), std**2))
        expected = noisynat.Predictive(pred.samples[:, r], NormalNoise(torch.tensor([[std]])), RandomStream(0))
        torch.testing.assert_close(pred.log_prob(torch.ones(4, 2))[r], expected.log_prob(torch.ones(4, 2)))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    bnn, x = network(), torch.randn(7, 3)
    whole = bnn.predict(x, generator=torch.Generator().manual_seed(1))
    parts = bnn.predict(x, generator=torch.Generator().manual_seed(1), batch_size=batch_size)
    torch.testing.assert_close(parts.samples, whole.samples)


def test_progress_of_a_prediction_in_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    network().predict(torch.randn(7, 3), num_samples=2, batch_size=3)
    assert capsys.readouterr().err == ""
    network().predict(torch.randn(7, 3), num_samples=2, batch_size=3, progress=True)
    assert capsys.readouterr().err.splitlines() == ["pass 1/3", "pass 2/3", "pass 3/3"]


def test_every_sample_is_one_function_of_all_rows() -> None:
    pred = network().predict(torch.ones(2, 3), num_samples=50)
    torch.testing.assert_close(pred.samples[:, 0], pred.samples[:, 1])
    assert pred.samples[:, 0].std(0).min() > 0


def test_gamma_noise_predicts_student_ts() -> None:
    """With weights all but known: location f, 2a degrees of freedom, scale sqrt(b / a)."""
    bnn = noisynat.VariationalNetwork(
        nn.Linear(3, 1).double(),
        noisynat.GaussianLikelihood("gamma", a0=2.0, b0=5.0),
        posterior="mean_field",
        num_data=4,
    )
    with torch.no_grad():
        bnn.posteriors[0].log_std.fill_(-30)
    x, y = torch.randn(6, 3).double(), torch.randn(6, 1).double()
    a, b = 2 + 4 / 2, 5 + 4 / 2
    expected = stats.t(2 * a, bnn.eval()(x).detach().numpy(), math.sqrt(b / a)).logpdf(y.numpy())[:, 0]
    np.testing.assert_allclose(bnn.predict(x).log_prob(y).numpy(), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (3, 2), (1, 4, 2)])
def test_targets_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    pred = network().predict(torch.randn(4, 3), num_samples=2)
    with pytest.raises(ValueError, match="expected"):
        pred.log_prob(torch.zeros(shape))


# --- covariance between inputs ----------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_covariance_between_inputs(weighted: bool) -> None:
    f = torch.randn(9, 2, 3, 2, dtype=torch.float64)  # two replicas
    weights = torch.rand(9, 2, dtype=torch.float64) if weighted else torch.ones(9, 2, dtype=torch.float64)
    weights = weights / weights.sum(0)
    pred = noisynat.Predictive(f, NormalNoise(STD), RandomStream(0), weights if weighted else None)
    assert pred.covariance.shape == (2, 2, 3, 3)
    for replica in range(2):
        for output in range(2):
            own, by = f[:, replica, :, output].numpy(), weights[:, replica].numpy()
            expected = np.cov(own.T, aweights=by, bias=True) + 0.4**2 * np.eye(3)
            np.testing.assert_allclose(pred.covariance[replica, output].numpy(), expected)
    torch.testing.assert_close(pred.covariance.diagonal(dim1=-2, dim2=-1).mT, pred.variance)
