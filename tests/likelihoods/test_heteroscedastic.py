"""The Gaussian likelihood whose variance is an output of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal

import noisynat
from noisynat.random import RandomStream

N = 40
KINDS: list[Any] = [0.3, "learned", "gamma"]


def bound(noise: Any = 0.3, replicas: tuple[int, ...] = (), **settings: Any) -> Any:
    likelihood = noisynat.HeteroscedasticGaussianLikelihood(noise, **settings)
    likelihood.bind(N, torch.Size(replicas), torch.float64)
    return likelihood


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Outputs (*, 2K) and targets (*, K)."""
    *lead, outputs = shape
    return torch.randn(*lead, 2 * outputs).double(), torch.randn(*lead, outputs).double()


LIMIT = np.log(20) / 2


def link(s: Tensor) -> Tensor:
    return (LIMIT * torch.tanh(torch.asinh(s / 2) / LIMIT)).exp()


def slope(s: Tensor) -> Tensor:
    """Of the link's logarithm, by automatic differentiation."""
    s = s.clone().requires_grad_()
    return torch.autograd.grad(link(s).log().sum(), s)[0]


def std_of(f: Tensor, scale: float = 0.3) -> Tensor:
    return scale * link(f[..., f.shape[-1] // 2 :])


def test_log_prob_is_a_normals_with_the_networks_scale() -> None:
    f, y = pair(5, 2)
    expected = Normal(f[:, :2], std_of(f)).log_prob(y).sum(-1)
    torch.testing.assert_close(bound().log_prob(f, y), expected)


@pytest.mark.parametrize("noise", KINDS)
def test_scale_one_is_the_homoscedastic_likelihood(noise: Any) -> None:
    f, y = pair(5, 2)
    f[:, 2:] = 0
    same = noisynat.GaussianLikelihood(noise)
    same.bind(N, torch.Size(), torch.float64)
    other = bound(noise)
    for likelihood, outputs in ((same, f[:, :2]), (other, f)):
        likelihood.observe(outputs, y)
        likelihood.natural_step()
    torch.testing.assert_close(other.residual, same.residual)
    torch.testing.assert_close(other.log_prob(f, y), same.log_prob(f[:, :2], y))
    torch.testing.assert_close(other.kl(torch.Size()), same.kl(torch.Size()))


def test_the_common_precision_learns_the_weighted_residuals() -> None:
    f, y = pair(5, 1)
    likelihood = bound("learned", step_size=1.0)
    likelihood.observe(f, y)
    likelihood.natural_step()
    expected = ((y - f[:, :1]) / link(f[:, 1:])).square().mean()
    torch.testing.assert_close(likelihood.residual[0], expected)


@pytest.mark.parametrize("outputs", [1, 2])
def test_hessian_root_squares_to_the_fisher_information(outputs: int) -> None:
    """Against the mean of gradients' outer products over targets sampled by torch's own normal."""
    f, _ = pair(1, outputs)
    likelihood, count = bound(0.7), 400_000
    y = Normal(f[:, :outputs], std_of(f, 0.7)).sample((count,))[:, 0]
    z = f.expand(count, -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(likelihood.log_prob(z, y).sum(), z)
    root = likelihood.hessian_root(f)[:, 0]
    expected = gradients.mT @ gradients / count
    size = expected.diagonal().max()
    torch.testing.assert_close(root.mT @ root, expected, rtol=0.02, atol=0.01 * float(size))


@pytest.mark.parametrize("noise", KINDS)
def test_the_location_block_is_minus_the_hessian(noise: Any) -> None:
    f, y = pair(3, 2)
    likelihood = bound(noise)
    likelihood.log_prob(f, y)
    root = likelihood.hessian_root(f)
    for n in range(3):
        hessian = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
            lambda m, n=n: likelihood.log_prob(torch.cat([m, f[n, 2:]])[None], y[n : n + 1]).sum(), f[n, :2]
        )
        torch.testing.assert_close(root[:, n, :2].mT @ root[:, n, :2], -hessian)
        of_scales = torch.diag(2 * slope(f[n, 2:]).square())
        torch.testing.assert_close(root[:, n, 2:].mT @ root[:, n, 2:], of_scales)


def test_the_link_is_an_exponential_near_0_and_bounded_by_the_ratio() -> None:
    near, far = torch.tensor([-0.02, 0.0, 0.02]).double(), torch.tensor([-1e6, 1e6]).double()
    for s, expected, tolerance in ((near, (near / 2).exp(), 1e-6), (far, torch.tensor([1 / 3.0, 3.0]).double(), 1e-4)):
        f = torch.stack([torch.zeros_like(s), s], dim=-1)
        likelihood = bound(1.0, max_ratio=9.0)
        variance = likelihood.observation_model().variance(f)[:, 0]
        torch.testing.assert_close(variance.sqrt(), expected, rtol=tolerance, atol=0)
    with pytest.raises(ValueError, match="max_ratio must be above 1"):
        noisynat.HeteroscedasticGaussianLikelihood(max_ratio=1.0)


@pytest.mark.parametrize("s", [-300.0, 300.0])
def test_far_out_the_scale_still_learns(s: float) -> None:
    """Residuals of two standard deviations ask for more noise, wherever s has gone; in float32."""
    likelihood = noisynat.HeteroscedasticGaussianLikelihood(1.0)
    likelihood.bind(N, torch.Size(), torch.float32)
    f = torch.tensor([[0.0, s]], requires_grad=True)
    (gradient,) = torch.autograd.grad(likelihood.log_prob(f, 2 * link(f[:, 1:]).detach()).sum(), f)
    expected = 3 * slope(torch.tensor(s).double())
    assert expected > 1e-6
    torch.testing.assert_close(gradient[0, 1].double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_strength_scales_the_log_scale(strength: float) -> None:
    """In the density, the curvature (by the chain rule), samples, observed residuals and predictions."""
    f, y = pair(5, 2)
    weak, full = bound("gamma"), bound("gamma")
    weak.strength.fill_(strength)
    log_scale = strength * link(f[:, 2:]).log()
    inverse = 2 * torch.sinh(LIMIT * torch.atanh(log_scale / LIMIT))
    scaled = torch.cat([f[:, :2], inverse], dim=-1)
    torch.testing.assert_close(weak.log_prob(f, y), full.log_prob(scaled, y))
    chain = torch.cat([torch.ones(5, 2).double(), strength * slope(f[:, 2:]) / slope(inverse)], dim=-1)
    torch.testing.assert_close(weak.hessian_root(f), full.hessian_root(scaled) * chain)
    torch.testing.assert_close(weak.sample(f, RandomStream(0)), full.sample(scaled, RandomStream(0)))
    for likelihood, outputs in ((weak, f), (full, scaled)):
        likelihood.observe(outputs, y)
        likelihood.natural_step()
    torch.testing.assert_close(weak.residual, full.residual)
    predictions = [
        noisynat.Predictive(outputs[None], likelihood.observation_model(), RandomStream(0)).log_prob(y)
        for likelihood, outputs in ((weak, f), (full, scaled))
    ]
    torch.testing.assert_close(*predictions)


def test_strength_is_part_of_the_state() -> None:
    weak, full = bound(), bound()
    weak.strength.fill_(0.3)
    full.load_state_dict(weak.state_dict())
    assert float(full.strength) == pytest.approx(0.3)


def test_noise_is_set_free_during_training() -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 2), noisynat.HeteroscedasticGaussianLikelihood(), num_data=4)
    seen: list[float] = []
    data = [(torch.randn(4, 2), torch.randn(4, 1))]
    noisynat.fit(
        bnn,
        noisynat.NoisyKFAC(bnn),
        data,
        10,
        progress=False,
        noise_warmup=(0.2, 0.6),
        on_epoch=lambda _, __: seen.append(float(bnn.likelihood.strength)),  # type: ignore[arg-type]
    )
    assert seen == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


def test_noise_warmup_is_checked() -> None:
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 2), noisynat.HeteroscedasticGaussianLikelihood(), num_data=4)
    for wrong in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="begin < end"):
            noisynat.fit(bnn, noisynat.NoisyKFAC(bnn), [], 1, noise_warmup=wrong)
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 2), noisynat.GaussianLikelihood(), num_data=4)
    with pytest.raises(TypeError, match="heteroscedastic noise, not GaussianLikelihood"):
        noisynat.fit(bnn, noisynat.NoisyKFAC(bnn), [], 1, noise_warmup=(0.2, 0.5))


def test_samples_have_the_networks_standard_deviation() -> None:
    f = torch.tensor([3.0, -1.0, 0.0, 2.0]).double().expand(50_000, 4)
    y = bound().sample(f, RandomStream(0))
    torch.testing.assert_close(y.std(0), std_of(f[0]), rtol=0.02, atol=0)
    torch.testing.assert_close(y.mean(0), f[0, :2], rtol=0, atol=0.02)


@pytest.mark.parametrize("noise", KINDS)
def test_prediction_is_the_mixture_by_hand(noise: Any) -> None:
    """Density, CDF and moments of a mixture of scipy's normals or Student-t's."""
    likelihood = bound(noise, a0=3.0, b0=0.5, initial_std=0.4)
    f, y = torch.randn(6, 4, 2).double(), torch.randn(4, 1).double()
    pred = noisynat.Predictive(f, likelihood.observation_model(), RandomStream(0))
    scale = float(likelihood.noise_std) * link(f[..., 1:])
    law = stats.t(2 * (3 + N / 2), f[..., :1], scale) if noise == "gamma" else stats.norm(f[..., :1], scale)
    np.testing.assert_allclose(pred.log_prob(y).numpy(), np.log(law.pdf(y).mean(0))[:, 0])
    np.testing.assert_allclose(pred.cdf(y).numpy(), law.cdf(y).mean(0), atol=1e-9)
    np.testing.assert_allclose(pred.mean.numpy(), f[..., :1].mean(0))
    np.testing.assert_allclose(pred.aleatoric_variance.numpy(), law.var().mean(0))
    np.testing.assert_allclose(pred.epistemic_variance.numpy(), f[..., :1].numpy().var(0))
    lower, upper = pred.interval(0.9)
    torch.testing.assert_close(pred.cdf(upper) - pred.cdf(lower), torch.full((4, 1), 0.9).double())
    torch.testing.assert_close(pred.distribution.mean, pred.mean)
    drawn = pred.sample(20_000, torch.Generator().manual_seed(0))
    assert ((drawn.mean(0) - pred.mean) / pred.stddev).abs().max() < 5 / 20_000**0.5


def test_predictions_of_replicas_combine() -> None:
    likelihood = bound("learned", (2,))
    likelihood.residual.copy_(torch.tensor([[0.25], [4.0]]))
    f, y = torch.randn(6, 2, 4, 2).double(), torch.randn(4, 1).double()
    pred = noisynat.Predictive(f, likelihood.observation_model(), RandomStream(0))
    each = torch.stack([pred.replica(index).log_prob(y) for index in range(2)])
    torch.testing.assert_close(pred.log_prob(y), each)
    torch.testing.assert_close(pred.combine().log_prob(y), each.logsumexp(0) - np.log(2))
    weights = torch.tensor([1.0, 3.0]).double()
    torch.testing.assert_close(pred.combine(weights).mean, (weights / 4 @ pred.mean.flatten(1)).reshape(4, 1))
    assert pred.combine(weights).sample(3).shape == (3, 4, 1)


@pytest.mark.parametrize("structure", ["mean_field", "diagonal", "kronecker", "eigen_corrected", "dense"])
def test_noise_that_grows_is_found(structure: Any) -> None:
    """y = x + 0.1 c(2x) e: with 2000 points the posterior's noise follows the law within 15%."""
    x = 2 * torch.rand(2000, 1) - 1
    y = x + 0.1 * link(2 * x) * torch.randn(2000, 1)
    net = nn.Linear(1, 2)
    likelihood = noisynat.HeteroscedasticGaussianLikelihood("gamma", a0=1.0, b0=0.001, initial_std=0.3, step_size=0.1)
    bnn = noisynat.VariationalNetwork(nn.Sequential(net), likelihood, posterior=structure, num_data=2000, seed=0)
    mean_field = structure == "mean_field"
    optimizer: Any = torch.optim.Adam(bnn.parameters(), 0.05) if mean_field else noisynat.NoisyNaturalGradient(bnn, 0.1)
    data = noisynat.TensorBatches(x, y, 200, seed=0)
    noisynat.fit(bnn, optimizer, data, 60, progress=False, scheduler=noisynat.cosine_schedule(optimizer, 600))
    at = torch.tensor([[-0.8], [0.0], [0.8]])
    noise = bnn.predict(at, num_samples=200).aleatoric_variance.sqrt()
    torch.testing.assert_close(noise, 0.1 * link(2 * at), rtol=0.15, atol=0)


def test_replicas_take_common_targets() -> None:
    net = nn.Linear(2, 2)
    bnn = noisynat.VariationalNetwork(nn.Sequential(net), bound().double(), num_data=5, replicas=3)
    assert bnn.loss(torch.zeros(5, 2), torch.zeros(5, 1)).isfinite()
    assert bnn.predict(torch.zeros(5, 2), 4).mean.shape == (3, 5, 1)


def test_an_odd_number_of_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="3 outputs, but a heteroscedastic likelihood needs an even number"):
        bound().check_targets(torch.zeros(4, 3).double(), torch.zeros(4, 1).double())
    with pytest.raises(ValueError, match=r"targets have shape \(4, 2\)"):
        bound().check_targets(torch.zeros(4, 2).double(), torch.zeros(4, 2).double())
