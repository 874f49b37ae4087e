"""Compiled steps: the numbers of the usual loop, and no more compiling than is said.

Where it does not matter, tests trace without generating code, which takes a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat

pytest.importorskip("torch._dynamo")
if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
    pytest.skip("this PyTorch cannot compile backward passes", allow_module_level=True)

LIKELIHOODS = {
    "gamma": lambda: noisynat.GaussianLikelihood(),
    "fixed": lambda: noisynat.GaussianLikelihood(0.5),
    "student": lambda: noisynat.StudentTLikelihood(),
    "heteroscedastic": lambda: noisynat.HeteroscedasticGaussianLikelihood(),
    "categorical": lambda: noisynat.CategoricalLikelihood(),
    "bernoulli": lambda: noisynat.BernoulliLikelihood(),
    "poisson": lambda: noisynat.PoissonLikelihood(),
}


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def outputs_of(likelihood: str) -> int:
    return {"categorical": 3, "heteroscedastic": 2}.get(likelihood, 1)


def make(
    likelihood: str = "gamma", posterior: Any = "matrix_normal", replicas: Any = None, net: nn.Module | None = None,
    **options: Any,
) -> tuple[noisynat.VariationalNetwork, noisynat.NoisyNaturalGradient]:  # fmt: skip
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs_of(likelihood)))
    bnn = noisynat.VariationalNetwork(
        net.double(), LIKELIHOODS[likelihood](), posterior=posterior, num_data=100, replicas=replicas, seed=1
    )
    return bnn.train(), noisynat.NoisyNaturalGradient(bnn, lr=0.01, **options)


def batches(likelihood: str, replicas: Any, count: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    lead = (*([] if replicas is None else [replicas] if isinstance(replicas, int) else replicas), size)
    found = []
    for _ in range(count):
        x = torch.randn(*lead, 4, generator=generator, dtype=torch.float64)
        if likelihood == "categorical":
            y = torch.randint(3, lead, generator=generator)
        elif likelihood in ("bernoulli", "poisson"):
            y = torch.randint(2, (*lead, 1), generator=generator).double()
        else:
            y = torch.randn(*lead, 1, generator=generator, dtype=torch.float64)
        found.append((x, y))
    return found


def usual(bnn: noisynat.VariationalNetwork, optimizer: noisynat.NoisyNaturalGradient, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = bnn.loss_per_replica(x, y)
    loss.sum().backward()
    optimizer.step()
    return loss.detach()


def check_equal(likelihood: str, backend: Any, steps: int = 14, **settings: Any) -> noisynat.CompiledStep:
    bnn, optimizer = make(likelihood, **settings)
    other, other_optimizer = make(likelihood, **settings)
    step = noisynat.CompiledStep(other_optimizer, backend=backend)
    for x, y in batches(likelihood, settings.get("replicas"), steps):
        torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    assert step._ready
    assert not step._refused
    expected = bnn.state_dict()
    for key, value in other.state_dict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")
    return step


@pytest.mark.parametrize("posterior", ["diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense"])
@pytest.mark.parametrize("replicas", [None, (2, 2)])
def test_every_posterior_trains_as_by_the_usual_loop(posterior: Any, replicas: Any) -> None:
    check_equal("gamma", "eager", posterior=posterior, replicas=replicas, refresh_every=3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_trains_as_by_the_usual_loop(likelihood: str) -> None:
    check_equal(likelihood, "eager")


@pytest.mark.parametrize(("posterior", "replicas"), [("diagonal", None), ("matrix_normal", None), ("kronecker", 3)])
def test_generated_code_gives_the_same(posterior: Any, replicas: Any) -> None:
    check_equal("gamma", "inductor", posterior=posterior, replicas=replicas, fisher="mc", stats_every=2)


def test_generated_code_of_truncated_factors_gives_the_same() -> None:
    net = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    check_equal("categorical", "inductor", posterior="kronecker", net=net, steps=6)


def test_noise_whose_size_would_vary_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separable noise of exact damping has as many terms as the eigenvalues' range needs, another one each time."""
    monkeypatch.setattr("noisynat.posteriors.noise._ENOUGH", 1)
    net = nn.Sequential(nn.Linear(4, 60), nn.Tanh(), nn.Linear(60, 60), nn.Tanh(), nn.Linear(60, 1))
    bnn, optimizer = make(posterior="kronecker", net=net, refresh_every=2)
    data = batches("gamma", None, 16, size=500)
    assert bnn.posteriors[1].noise_mode_in(500) == "separable"
    step = noisynat.CompiledStep(optimizer, backend="eager")
    assert bnn.posteriors[1].noise_mode_in(500) == "local"
    for x, y in data:
        step(x, y)
    assert not step._refused


def test_separable_noise_of_one_term_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisynat.posteriors.noise._ENOUGH", 1)
    monkeypatch.setattr("noisynat.posteriors.noise._DIRECTIONS", 2)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    step = check_equal("gamma", "eager", net=net, refresh_every=2)
    assert step.network.posteriors[1].noise_mode_in(16) == "separable"


def test_point_estimates_are_moved_too() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 1))
    check_equal("gamma", "eager", net=net)


def test_point_estimates_alone_can_be_moved() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.PReLU(6), nn.Linear(6, 1))
    (bnn, _), (other, _) = make(net=net), make(net=net)
    optimizers = [
        noisynat.NoisyKFAC(network, param_groups=[{"params": network.point_estimates()}], lr=0.01)
        for network in (bnn, other)
    ]
    step = noisynat.CompiledStep(optimizers[1], backend="eager")
    for x, y in batches("gamma", None, 8):
        torch.testing.assert_close(step(x, y), usual(bnn, optimizers[0], x, y), rtol=1e-8, atol=1e-8)
    assert step._ready
    for mine, expected in zip(other.point_estimates(), bnn.point_estimates(), strict=True):
        torch.testing.assert_close(mine, expected)


class Counter:
    """A backend that generates no code, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def test_two_functions_serve_a_whole_training() -> None:
    """Refreshes, statistics, schedules, a new N and partial batches compile nothing."""
    counter = Counter()
    bnn, optimizer = make("gamma", replicas=2)
    step = noisynat.CompiledStep(optimizer, backend=counter)
    schedule = noisynat.cosine_schedule(optimizer, 40, curvature_final=0.1)
    for number, (x, y) in enumerate(batches("gamma", 2, 40)):
        step(x, y)
        schedule.step()
        if number % 5 == 0:
            step(x[:, :7], y[:, :7])
        if number == 30:
            bnn.kl_weight = 0.5
    assert counter.graphs == 2


def test_another_network_of_the_same_kind_needs_no_compiling() -> None:
    counter = Counter()
    for seed in range(3):
        bnn, optimizer = make("gamma")
        bnn.training_stream.seed = seed
        step = noisynat.CompiledStep(optimizer, backend=counter)
        for x, y in batches("gamma", None, 16):
            step(x, y)
    assert counter.graphs == 2


def test_many_kinds_of_networks_can_be_compiled() -> None:
    for width in range(2, 12):
        _, optimizer = make(net=nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)))
        step = noisynat.CompiledStep(optimizer, backend="eager")
        for x, y in batches("gamma", None, 2):
            step(x, y)
        assert step._ready


def test_what_is_set_between_steps_is_followed() -> None:
    """lambda, learning rate, and how far a noise that varies is let free."""
    pairs = [make("heteroscedastic"), make("heteroscedastic")]
    (bnn, optimizer), (_, other_optimizer) = pairs
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("heteroscedastic", None, 12)):
        for network, its_optimizer in pairs:
            network.kl_weight = 1 / (1 + number)
            its_optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
            network.likelihood.strength.fill_(number / 12)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    assert not step._refused


def _activation(x: Tensor) -> Tensor:
    return x.tanh()


class WithFunctions(nn.Module):
    """Two layers, and functions that come from outside of the class."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 1), function

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.last(self.function(_activation(self.first(x))))
        return h


@pytest.mark.parametrize("function", [torch.sin, torch.relu, lambda x: 2 * x, lambda x: x - 1])
def test_functions_of_the_users_own_are_followed(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another network of the same class, and when a name means another function, as in a notebook."""
    step = noisynat.CompiledStep(make(net=WithFunctions(torch.tanh))[1], backend="eager")
    for x, y in batches("gamma", None, 12):
        step(x, y)
    net = WithFunctions(function)
    (bnn, optimizer), (_, other_optimizer) = make(net=net), make(net=net)
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("gamma", None, 24)):
        if number == 12:
            monkeypatch.setitem(globals(), "_activation", torch.sigmoid)
        torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    assert not step._refused


class Scaled(noisynat.StudentTLikelihood):
    """Has a number that belongs to the class."""

    factor = 1.0

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return super().log_prob(f, y) * self.factor


def test_a_class_of_the_users_own_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIKELIHOODS, "scaled", Scaled)
    (bnn, optimizer), (_, other_optimizer) = make("scaled"), make("scaled")
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("scaled", None, 16)):
        if number == 8:
            monkeypatch.setattr(Scaled, "factor", 0.5)
        torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    assert not step._refused


def test_ways_of_stepping_can_be_mixed() -> None:
    (bnn, optimizer), (other, other_optimizer) = make(), make()
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("gamma", None, 12)):
        expected = usual(bnn, optimizer, x, y)
        found = step(x, y) if number % 3 else usual(other, other_optimizer, x, y)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("times", "ready"), [(9, False), (11, True)])
def test_an_epochs_last_batch_is_compiled_once_it_has_come_often(times: int, ready: bool) -> None:
    (bnn, optimizer), (_, other_optimizer) = make(stats_every=1), make(stats_every=1)
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("gamma", None, 3 * times)):
        size = 5 if number % 3 == 2 else 16
        torch.testing.assert_close(
            step(x[:size], y[:size]), usual(bnn, optimizer, x[:size], y[:size]), rtol=1e-8, atol=1e-8
        )
    assert (torch.Size([5, 4]) in {kind.shape for kind in step._ready}) == ready


def test_the_shape_of_most_batches_is_compiled_even_if_another_comes_first() -> None:
    counter = Counter()
    _, optimizer = make()
    step = noisynat.CompiledStep(optimizer, backend=counter)
    for number, (x, y) in enumerate(batches("gamma", None, 16)):
        step(x[:7], y[:7]) if number % 8 == 0 else step(x, y)
    assert {kind.shape for kind in step._ready} == {torch.Size([16, 4])}


def test_modes_are_told_apart() -> None:
    """In eval() there is no noise, and no random number is drawn."""
    (bnn, optimizer), (other, other_optimizer) = make(), make()
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("gamma", None, 20)):
        for network in (bnn, other):
            network.train(number // 4 % 2 == 0)
        torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    assert {kind.training for kind in step._ready} == {False, True}


def test_gradients_left_over_do_not_count() -> None:
    (bnn, optimizer), (other, other_optimizer) = make(), make()
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for x, y in batches("gamma", None, 8):
        expected = usual(bnn, optimizer, x, y)
        for layer in other.layers:
            layer.mean.grad = torch.full_like(layer.mean, 100.0)
        torch.testing.assert_close(step(x, y), expected, rtol=1e-8, atol=1e-8)


def test_what_changes_is_compiled_anew_beyond_pytorchs_own_limit() -> None:
    """PyTorch gives up after eight versions of a function, and raises an error of another kind then."""
    (bnn, optimizer), (other, other_optimizer) = make(), make()
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for number, (x, y) in enumerate(batches("gamma", None, 12)):
            for network in (bnn, other):
                network.likelihood.step_size = 0.1 / (1 + number // 4)  # type: ignore[assignment]
            torch.testing.assert_close(step(x, y), usual(bnn, optimizer, x, y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other.likelihood.residual, bnn.likelihood.residual)
    assert not step._refused


def test_statistics_that_are_not_finite_are_skipped_where_they_are() -> None:
    """Activations of one replica overflow when they are squared; the other one's averages go on."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    (bnn, optimizer), (other, other_optimizer) = make(net=net, replicas=2), make(net=net, replicas=2)
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    curvature, expected = (network.posteriors[1].curvature for network in (other, bnn))  # type: ignore[attr-defined]
    for number, (x, y) in enumerate(batches("gamma", 2, 8)):
        if number == 7:
            for network in (bnn, other):
                with torch.no_grad():
                    network.layers[0].mean[1] = 1e200
        before = curvature.averages["A"].value.clone()
        step(x, y)
        usual(bnn, optimizer, x, y)
        torch.testing.assert_close(curvature.averages["A"].value, expected.averages["A"].value)
    assert any(kind.feeds for kind in step._ready)
    assert curvature.skipped.tolist() == expected.skipped.tolist() == [0, 1]
    assert [torch.equal(*pair) for pair in zip(curvature.averages["A"].value, before, strict=True)] == [False, True]


class Peeking(noisynat.StudentTLikelihood):
    """Looks at numbers, which compiled code cannot."""

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return super().log_prob(f, y) * (1.0 if float(f.detach().sum()) < 1e9 else 2.0)


def test_what_cannot_be_compiled_says_so_and_runs_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIKELIHOODS, "peeking", Peeking)
    (bnn, optimizer), (_, other_optimizer) = make("peeking"), make("peeking")
    step = noisynat.CompiledStep(other_optimizer, backend="eager")
    for number, (x, y) in enumerate(batches("peeking", None, 8)):
        expected = usual(bnn, optimizer, x, y)
        if number == 1:
            with pytest.warns(UserWarning, match="this step is not compiled"):
                found = step(x, y)
        else:
            found = step(x, y)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_input_is_checked() -> None:
    _, optimizer = make()
    step = noisynat.CompiledStep(optimizer, backend="eager")
    (x, y), *_ = batches("gamma", None, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="targets have shape"):
            step(x, y[:, 0])
    for _ in range(2):
        step(x, y)
        with pytest.raises(ValueError, match="NaN"):
            step(x * float("nan"), y)
        with pytest.raises(ValueError, match="targets have shape"):
            step(x, y[:, 0])
    assert optimizer.steps == 2


def test_separable_noise_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=100, noise="separable")
    with pytest.raises(ValueError, match="use noise='auto'"):
        noisynat.CompiledStep(noisynat.NoisyKFAC(bnn))


def test_other_optimizers_are_refused() -> None:
    bnn, _ = make()
    with pytest.raises(TypeError, match="an optimizer of noisynat, got Adam"):
        noisynat.CompiledStep(torch.optim.Adam(bnn.parameters()))  # type: ignore[arg-type]


def test_fit_compiles() -> None:
    histories = []
    for compiled in (False, True):
        bnn, optimizer = make()
        data = batches("gamma", None, 4)
        histories.append(noisynat.fit(bnn, optimizer, data, 3, progress=False, compile=compiled))
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-6)
    assert histories[0]["elbo"] == pytest.approx(histories[1]["elbo"], rel=1e-6)


def test_fit_says_when_a_loss_is_not_finite() -> None:
    bnn, optimizer = make("poisson")
    with torch.no_grad():
        bnn.layers[-1].mean.add_(1e9)
    with pytest.raises(noisynat.NonFiniteLossError, match="epoch 1, batch 1; that step has been taken"):
        noisynat.fit(bnn, optimizer, batches("poisson", None, 2), 1, progress=False, compile=True)


def test_passes_in_reduced_precision() -> None:
    """Under autocast, where a whole trajectory does not compare: what is compiled rounds elsewhere."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.5), num_data=100, seed=1).train()
    step = noisynat.CompiledStep(noisynat.NoisyKFAC(bnn), backend="eager")
    x = torch.randn(16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [float(step(x, x[:, :1].sin())) for _ in range(200)]
    assert {kind.feeds for kind in step._ready} == {False, True}
    assert not step._refused
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert bnn.layers[0].mean.dtype == torch.float32
