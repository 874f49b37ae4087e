"""VariationalNetwork: what it computes, and what it leaves as found."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import noisynat

N = 20
STRUCTURES = [
    "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer", "mean_field",
]  # fmt: skip


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=g).to(dtype), torch.randn(N, 2, generator=g).to(dtype)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


class Custom(nn.Module):
    """The same function as :func:`plain`, in a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def make(net: nn.Module | None = None, posterior: Any = "kronecker", **settings: Any) -> noisynat.VariationalNetwork:
    settings.setdefault("likelihood", noisynat.GaussianLikelihood(0.5))
    return noisynat.VariationalNetwork(net or plain(), posterior=posterior, num_data=N, **settings)


def optimizer_of(bnn: noisynat.VariationalNetwork) -> torch.optim.Optimizer:
    if bnn.is_natural:
        return noisynat.NoisyNaturalGradient(bnn, lr=0.05, refresh_every=2)
    return torch.optim.Adam(bnn.parameters(), lr=0.01)


def train(bnn: noisynat.VariationalNetwork, steps: int = 5, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Full-batch steps."""
    x, y = data(bnn.layers[0].mean.dtype)
    optimizer = optimizer or optimizer_of(bnn)
    for _ in range(steps):
        optimizer.zero_grad()
        (bnn.loss(x, y) if bnn.is_natural else bnn.negative_elbo(x, y)).backward()
        optimizer.step()


def tensors(bnn: nn.Module) -> dict[str, Tensor]:
    """All tensors of the state, copied."""
    return {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Equal to the last bit."""
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


# --- what it computes -------------------------------------------------------------------------


def test_evaluation_is_the_original_network() -> None:
    net, (x, _) = plain(), data()
    torch.testing.assert_close(make(net).eval()(x), net(x))


def test_the_original_network_is_not_changed() -> None:
    net = plain()
    before = copy.deepcopy(net)
    train(make(net))
    assert_same(net, before)


def test_loss_at_the_mean_is_the_mean_negative_log_likelihood() -> None:
    net, (x, y) = plain(), data()
    expected = -Normal(net(x), 0.5).log_prob(y).sum(-1).mean()
    torch.testing.assert_close(make(net).eval().loss(x, y), expected)


def test_negative_elbo_is_loss_and_kl_per_datum() -> None:
    bnn, (x, y) = make(posterior="mean_field", kl_weight=0.3).eval(), data()
    kl = sum(posterior.kl_divergence() for posterior in bnn.posteriors)
    torch.testing.assert_close(bnn.negative_elbo(x, y), bnn.loss(x, y) + (0.3 * kl / N).float())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_samples_and_evaluation_does_not(structure: Any) -> None:
    bnn, (x, y) = make(posterior=structure), data()
    assert not torch.equal(bnn(x), bnn(x))
    assert not torch.equal(bnn.loss(x, y), bnn.loss(x, y))
    bnn.eval()
    assert torch.equal(bnn(x), bnn(x))
    assert torch.equal(bnn.loss(x, y), bnn.loss(x, y))


@pytest.mark.parametrize("noise", ["shared", "local", "flipout", "per_example"])
def test_training_outputs_have_the_predictives_moments(noise: Any) -> None:
    """Of a linear layer: mean W x, variance x^T Sigma x, for every kind of noise."""
    bnn = make(nn.Linear(3, 2).double(), noise=noise)
    train(bnn)
    x = data(torch.float64)[0][:2]
    with torch.no_grad():
        outputs = torch.stack([bnn(x) for _ in range(2000)])
        a = torch.cat([x, torch.ones(2, 1).double()], 1)
        covariance = bnn.posteriors[0].covariance().reshape(2, 4, 2, 4)
        expected = torch.einsum("ni,kikj,nj->nk", a, covariance, a)
        torch.testing.assert_close(outputs.var(0), expected, rtol=0.17, atol=0)
        assert ((outputs.mean(0) - bnn.eval()(x)) / (expected / 2000).sqrt()).abs().max() < 5


def test_the_first_moves_of_two_steps_mirror_each_other() -> None:
    """Training noise comes in antithetic pairs: of a linear model the two losses' gradients average to the mean's."""
    bnn = make(nn.Linear(3, 2).double())
    x, y = data(torch.float64)
    gradients = [torch.autograd.grad(bnn.loss(x, y), bnn.layers[0].mean)[0] for _ in range(4)]
    at_mean = torch.autograd.grad(bnn.eval().loss(x, y), bnn.layers[0].mean)[0]
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, at_mean)
    torch.testing.assert_close((gradients[2] + gradients[3]) / 2, at_mean)
    assert not torch.allclose(gradients[0], gradients[2])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_own_forwards_predict_like_sequentials(structure: Any) -> None:
    """One network carries all draws in one pass, the other is looped over; the distributions are the same."""
    net = plain().double()
    sequential, custom = make(net, structure), make(Custom().double(), structure)
    for bnn in (sequential, custom):
        train(bnn, 3)
    state = sequential.state_dict()
    renamed = {key.replace("net.0.", "net.first.").replace("net.2.", "net.second."): state[key] for key in state}
    custom.load_state_dict(renamed)
    x = data(torch.float64)[0][:3]
    fast, slow = (bnn.predict(x, 1000, torch.Generator().manual_seed(i)) for i, bnn in enumerate((sequential, custom)))
    error = (fast.epistemic_variance / 500).sqrt()
    assert ((fast.mean - slow.mean) / error).abs().max() < 5
    torch.testing.assert_close(fast.epistemic_variance, slow.epistemic_variance, rtol=0.35, atol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_single_linear_layer_predicts_its_own_gaussian(structure: Any) -> None:
    bnn = make(nn.Linear(3, 2).double(), structure)
    train(bnn, 3)
    x = data(torch.float64)[0][:3]
    a = torch.cat([x, torch.ones(3, 1).double()], 1)
    covariance = bnn.posteriors[0].covariance().detach().reshape(2, 4, 2, 4)
    expected = torch.einsum("ni,kikj,nj->nk", a, covariance, a)
    torch.testing.assert_close(bnn.predict(x, 4000).epistemic_variance, expected, rtol=0.12, atol=0)


# --- what it leaves as found ------------------------------------------------------------------


def consume_functions(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> None:
    for function in bnn.sample_functions(2):
        function(x)


def enter_sampled_weights(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> None:
    with bnn.sampled_weights():
        pass


LOOKS: dict[str, Callable[..., Any]] = {
    "predict": lambda bnn, x, y: bnn.predict(x, 3),
    "predict with generator": lambda bnn, x, y: bnn.predict(x, 3, torch.Generator()),
    "sample y": lambda bnn, x, y: bnn.predict(x, 3).sample(4),
    "elbo": lambda bnn, x, y: bnn.elbo(x, y, num_samples=3),
    "functions": consume_functions,
    "sampled_weights": enter_sampled_weights,
    "coverage": lambda bnn, x, y: bnn.coverage(),
    "state_dict": lambda bnn, x, y: bnn.state_dict(),
    "deepcopy": lambda bnn, x, y: copy.deepcopy(bnn),
}


@pytest.mark.parametrize("look", LOOKS)
def test_looking_changes_nothing(look: str) -> None:
    """Global generator, gradients, modes, requires_grad, BatchNorm's buffers, parameters, training noise."""
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 2))
    bnn, (x, y) = make(net), data()
    train(bnn, 2)
    bnn.net[0].eval()
    bnn.net[4].mean.requires_grad_(False)
    found = {
        "rng": torch.get_rng_state(),
        "modes": [module.training for module in bnn.modules()],
        "requires_grad": [p.requires_grad for p in bnn.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in bnn.parameters()],
        "state": tensors(bnn),
        "noise": bnn.training_stream.state()["position"],
    }
    LOOKS[look](bnn, x, y)
    assert torch.equal(torch.get_rng_state(), found["rng"])
    assert [module.training for module in bnn.modules()] == found["modes"]
    assert [p.requires_grad for p in bnn.parameters()] == found["requires_grad"]
    for before, parameter in zip(found["grad"], bnn.parameters(), strict=True):
        assert parameter.grad is None if before is None else torch.equal(parameter.grad, before)
    assert all(torch.equal(value, found["state"][key]) for key, value in tensors(bnn).items())
    assert torch.equal(bnn.training_stream.state()["position"], found["noise"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_leaves_the_global_generator_and_other_gradients_alone(structure: Any) -> None:
    other = nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    bnn = make(posterior=structure)
    before = torch.get_rng_state()
    train(bnn)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(other.grad, torch.ones(2))


def test_wrapping_leaves_the_global_generator_alone() -> None:
    net = plain()
    before = torch.get_rng_state()
    make(net, replicas=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_in_evaluation_leaves_batch_norms_buffers_alone() -> None:
    bnn, (x, y) = make(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))).eval(), data()
    noisynat.NoisyKFAC(bnn)
    before = tensors(bnn.net)
    bnn.loss(x, y).backward()
    assert all(torch.equal(value, before[key]) for key, value in tensors(bnn.net).items())


def test_predicting_after_an_exception_in_the_network() -> None:
    bnn, (x, _) = make(), data()
    before = bnn.eval()(x)
    bnn.train()
    with pytest.raises(ValueError, match="takes 3 inputs"):
        bnn.predict(torch.zeros(4, 7))
    assert bnn.training
    assert bnn.net.training
    assert torch.equal(bnn.eval()(x), before)


# --- one shared draw --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_sampled_weights_are_one_draw_for_the_block(structure: Any, training: bool) -> None:
    bnn, (x, _) = make(posterior=structure).train(training), data()
    with bnn.sampled_weights():
        first, second, whole = bnn(x[:5]), bnn(x[:5]), bnn(x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(whole[:5], first)
    with bnn.sampled_weights():
        assert not torch.allclose(bnn(x[:5]), first)


def test_sampled_weights_are_gone_after_an_exception() -> None:
    bnn, (x, _) = make().eval(), data()
    before, parameters = bnn(x), tensors(bnn)

    def crash() -> None:
        with bnn.sampled_weights():
            assert not torch.equal(bnn(x), before)
            assert all(torch.equal(value, parameters[key]) for key, value in tensors(bnn).items())
            raise KeyError

    with pytest.raises(KeyError):
        crash()
    assert torch.equal(bnn(x), before)


def test_sampled_weights_nest() -> None:
    bnn, (x, _) = make().eval(), data()
    with bnn.sampled_weights():
        outer = bnn(x)
        with bnn.sampled_weights():
            assert not torch.equal(bnn(x), outer)
        assert torch.equal(bnn(x), outer)


def test_sampled_weights_follow_the_generator() -> None:
    bnn, (x, _) = make(), data()
    outputs = []
    for seed in (1, 1, 2):
        with bnn.sampled_weights(generator=torch.Generator().manual_seed(seed)):
            outputs.append(bnn(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# --- functions --------------------------------------------------------------------------------


def test_sampled_functions_are_fixed() -> None:
    """The same x gives the same f, also after more training."""
    bnn, (x, _) = make(), data()
    functions = bnn.sample_functions(3)
    before = [function(x) for function in functions]
    train(bnn)
    torch.testing.assert_close([function(x) for function in functions], before, rtol=0, atol=0)
    torch.testing.assert_close(functions[0](x[:4]), before[0][:4])
    assert not torch.allclose(before[0], before[1])


def test_sampled_functions_are_differentiable_in_x() -> None:
    bnn = make(plain().double())
    (function,) = bnn.sample_functions(1)
    x = data(torch.float64)[0][:2].requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))


def test_sampled_functions_follow_the_generator() -> None:
    bnn, (x, _) = make(), data()
    first, second = (bnn.sample_functions(2, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    torch.testing.assert_close([f(x) for f in first], [f(x) for f in second], rtol=0, atol=0)


def test_sampled_functions_have_replicas() -> None:
    bnn, (x, _) = make(replicas=3), data()
    assert bnn.sample_functions(1)[0](x).shape == (3, N, 2)


# --- seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_global_seed_decides_the_run(structure: Any) -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        bnn = make(posterior=structure)
        train(bnn)
        runs.append((bnn, bnn.predict(data()[0], 3).samples))
    assert_same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.allclose(runs[0][1], runs[2][1])


def test_an_own_seed_does_not_depend_on_the_global_one() -> None:
    net, runs = plain(), []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        bnn = make(net, seed=seed)
        train(bnn)
        runs.append(bnn)
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0].layers[0].mean, runs[2].layers[0].mean)


def test_looking_does_not_change_a_training_run() -> None:
    net, runs = plain(), []
    for looks in (0, 3):
        bnn = make(net, seed=0)
        optimizer = optimizer_of(bnn)
        for _ in range(4):
            train(bnn, 1, optimizer)
            for _ in range(looks):
                bnn.predict(data()[0], 2)
                bnn.elbo(*data(), num_samples=2)
        runs.append(bnn)
    assert_same(*runs)


# --- copies -----------------------------------------------------------------------------------


def pickled(bnn: noisynat.VariationalNetwork) -> noisynat.VariationalNetwork:
    return pickle.loads(pickle.dumps(bnn))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_copy_trains_on_by_itself(structure: Any, duplicate: Callable[..., Any]) -> None:
    bnn = make(posterior=structure, likelihood=noisynat.GaussianLikelihood("gamma"))
    train(bnn, 3)
    twin, before = duplicate(bnn), tensors(bnn)
    train(twin)
    assert all(torch.equal(value, before[key]) for key, value in tensors(bnn).items())
    train(bnn)
    assert_same(bnn, twin)
    assert torch.equal(bnn.predict(data()[0], 3).samples, twin.predict(data()[0], 3).samples)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_state_loads_into_a_fresh_network(structure: Any) -> None:
    bnn = make(posterior=structure, likelihood=noisynat.GaussianLikelihood("gamma"))
    train(bnn)
    file = io.BytesIO()
    torch.save(bnn.state_dict(), file)
    file.seek(0)
    fresh = make(posterior=structure, likelihood=noisynat.GaussianLikelihood("gamma"))
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(bnn, fresh)
    assert torch.equal(bnn.predict(data()[0], 3).samples, fresh.predict(data()[0], 3).samples)


def test_state_of_another_network_is_refused() -> None:
    state = make().state_dict()
    with pytest.raises(ValueError, match="num_data=20"):
        noisynat.VariationalNetwork(plain(), noisynat.GaussianLikelihood(0.5), num_data=7).load_state_dict(state)
    with pytest.raises(ValueError, match="structure='kronecker'"):
        make(posterior="diagonal").load_state_dict(state)


def test_loaded_state_is_a_copy() -> None:
    bnn = make()
    state = bnn.state_dict()
    fresh = make()
    fresh.load_state_dict(state)
    before = tensors(bnn)
    train(fresh)
    assert all(torch.equal(value, before[key]) for key, value in tensors(bnn).items())


# --- conversions ------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, "learned", "gamma"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("start", "end"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_converting_the_dtype(structure: Any, noise: Any, start: torch.dtype, end: torch.dtype) -> None:
    """Everything goes on in the new dtype, with the same posterior."""
    bnn = make(plain().to(start), structure, likelihood=noisynat.GaussianLikelihood(noise))
    train(bnn, 3)
    covariance = bnn.posteriors[0].covariance()
    bnn.to(end)
    torch.testing.assert_close(bnn.posteriors[0].covariance().to(start), covariance, rtol=1e-4, atol=1e-6)
    train(bnn, 3)
    x, y = data(end)
    pred = bnn.predict(x, 3)
    assert bnn.loss(x, y).dtype == pred.mean.dtype == pred.variance.dtype == pred.log_prob(y).dtype == end
    assert torch.isfinite(bnn.elbo(x, y, num_samples=4).total)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_float32_and_float64_agree(structure: Any) -> None:
    net, losses = plain(), []
    for dtype in (torch.float32, torch.float64):
        bnn = make(copy.deepcopy(net).to(dtype), structure)
        bnn.eval()
        train(bnn)
        losses.append(bnn.loss(*data(dtype)).double())
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


# --- coverage ---------------------------------------------------------------------------------


def test_coverage_has_a_row_per_parameter() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 2, bias=False))
    coverage = make(net, "diagonal").coverage()
    rows = [(row.name, row.shape, row.kind) for row in coverage]
    assert [name for name, _, _ in rows] == [name for name, _ in net.named_parameters()]
    assert [shape for _, shape, _ in rows] == [tuple(p.shape) for p in net.parameters()]
    assert [kind for *_, kind in rows] == ["posterior"] * 2 + ["point estimate", "posterior"]
    assert coverage.fraction == pytest.approx(30 / 35)
    assert "85.7%" in str(coverage)
    assert "PReLU" in str(coverage)


def test_strict_refuses_point_estimates() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"point estimates: 1\.weight$"):
        make(net, strict=True)
    make(plain(), strict=True)
    net[1].requires_grad_(False)
    make(net, strict=True)


def test_point_estimates_are_listed() -> None:
    bnn = make(nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 2)))
    assert [id(p) for p in bnn.point_estimates()] == [id(p) for p in bnn.net[1].parameters()]


# --- the posterior's settings -----------------------------------------------------------------


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "eigen_corrected", "dense"])
def test_setting_the_kl_weight_changes_the_covariance_at_once(structure: Any) -> None:
    """Sigma = (lambda / N) (C + lambda / (N eta))^-1, so Sigma^-1 = N C / lambda + 1 / eta."""
    bnn = make(posterior=structure)
    train(bnn)
    q = bnn.posteriors[0]
    eye = torch.eye(q.dim)
    curvature = torch.linalg.inv(q.covariance()) - eye
    bnn.kl_weight = 0.25
    torch.testing.assert_close(torch.linalg.inv(q.covariance()), 4 * curvature + eye, rtol=1e-3, atol=1e-3)


def test_the_prior_variance_is_a_variance() -> None:
    """Sigma^-1 = N C + 1 / eta, at C = I."""
    bnn = make(prior=noisynat.GaussianPrior(variance=0.01))
    torch.testing.assert_close(bnn.posteriors[0].variances()[0], torch.full((5, 4), 1 / (N + 100)))


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "eigen_corrected", "dense"])
def test_setting_the_number_of_data_changes_the_covariance_at_once(structure: Any) -> None:
    """Sigma^-1 = N C + 1 / eta, and the KL and the noise's posterior go along."""
    bnn = make(posterior=structure, likelihood=noisynat.GaussianLikelihood())
    train(bnn)
    q = bnn.posteriors[0]
    eye = torch.eye(q.dim)
    curvature, kl = torch.linalg.inv(q.covariance()) - eye, q.kl_divergence().item()
    bnn.num_data = 4 * N
    torch.testing.assert_close(torch.linalg.inv(q.covariance()), 4 * curvature + eye, rtol=1e-3, atol=1e-3)
    assert q.kl_divergence().item() > kl
    assert float(bnn.likelihood.shape) == 6 + 4 * N * 2 / 2  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive whole number"):
        bnn.num_data = 0
