"""The update rule and the optimizer around it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat

N = 24
NATURAL = ["diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer"]
State = dict[str, Any]


def data() -> tuple[Tensor, Tensor]:
    """Inputs and targets."""
    g = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=g).double(), torch.randn(N, 2, generator=g).double()


def make(posterior: Any = "kronecker", *, net: nn.Module | None = None, **settings: Any) -> noisynat.VariationalNetwork:
    """A small network, the same every time."""
    torch.manual_seed(1)
    net = net or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    settings.setdefault("likelihood", noisynat.GaussianLikelihood(0.5))
    return noisynat.VariationalNetwork(net.double(), posterior=posterior, num_data=N, seed=0, **settings)


def run(optimizer: noisynat.NoisyNaturalGradient, steps: int = 1, scale: float = 1.0) -> None:
    """Full-batch steps in the network's mode."""
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * optimizer.network.loss(x, y)).backward()
        optimizer.step()


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [t for key in sorted(state, key=str) for t in tensors(state[key])]
    return [t for part in state for t in tensors(part)] if isinstance(state, (list, tuple)) else []


def statistics(bnn: noisynat.VariationalNetwork) -> State:
    """The curvature's running averages."""
    return {key: value.clone() for key, value in bnn.state_dict().items() if ".average." in key}


def means(bnn: noisynat.VariationalNetwork) -> list[Tensor]:
    return [layer.mean.detach().clone() for layer in bnn.layers]


def assert_close(first: Any, second: Any, **tolerances: float) -> None:
    torch.testing.assert_close(tensors(first), tensors(second), **tolerances)


# --- the rule ---------------------------------------------------------------------------------


def test_three_steps_by_hand() -> None:
    """A linear model at its mean: V, momentum, the step, and C, each written out."""
    x, y = data()
    bnn = make("dense", net=nn.Linear(3, 2), kl_weight=0.5, prior=noisynat.GaussianPrior(variance=0.3)).eval()
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.1, betas=(0.8, 0.7), damping=0.2, kl_clip=None, refresh_every=1)
    a = torch.cat([x, torch.ones(N, 1).double()], 1)
    gamma, tau = 0.5 / (N * 0.3), 4.0
    mean, momentum = bnn.layers[0].mean.detach().clone(), torch.zeros(2, 4).double()
    eye = torch.eye(8).double()
    c = eye.clone()
    c_batch = torch.kron(tau * torch.eye(2).double(), a.T @ a / N)
    for step in (1, 2, 3):
        v = tau * (y - a @ mean.T).T @ a / N - gamma * mean
        momentum = 0.8 * momentum + 0.2 * v
        m_hat = momentum / (1 - 0.8**step)
        mean = mean + 0.1 * torch.linalg.solve(c + (gamma + 0.2) * eye, m_hat.flatten()).reshape(2, 4)
        c = 0.7 * c + 0.3 * c_batch
        run(optimizer)
        torch.testing.assert_close(bnn.layers[0].mean.detach(), mean)
        torch.testing.assert_close(bnn.posteriors[0].covariance(), 0.5 / N * torch.linalg.inv(c + gamma * eye))


@pytest.mark.parametrize("fisher", ["ggn", "mc", "empirical"])
def test_fisher_chooses_the_gradients(fisher: Any) -> None:
    """S of a linear model after one step whose statistics have full weight."""
    x, y = data()
    bnn = make(net=nn.Linear(3, 2)).eval()
    g = 4.0 * (y - bnn(x).detach())
    run(noisynat.NoisyKFAC(bnn, betas=(0.9, 0.0), fisher=fisher))
    s = bnn.posteriors[0].curvature.averages["S"].value
    if fisher == "mc":  # g = e / sigma^2 of sampled targets: its covariance is the precision, up to sampling
        assert (s - 4 * torch.eye(2)).abs().max() < 4
        assert (s - 4 * torch.eye(2)).abs().max() > 1e-3
    else:
        expected = 4 * torch.eye(2).double() if fisher == "ggn" else g.T @ g / N
        torch.testing.assert_close(s, expected)


def test_more_than_ten_outputs_use_sampled_targets() -> None:
    torch.manual_seed(0)
    bnn = noisynat.VariationalNetwork(nn.Linear(2, 11), noisynat.GaussianLikelihood(1.0), num_data=5).eval()
    optimizer = noisynat.NoisyKFAC(bnn, betas=(0.9, 0.0))
    bnn.loss(torch.randn(5, 2), torch.randn(5, 11)).backward()
    optimizer.step()
    assert torch.linalg.matrix_rank(bnn.posteriors[0].curvature.averages["S"].value) == 5


# --- a torch optimizer ------------------------------------------------------------------------


def test_is_a_torch_optimizer_with_a_closure() -> None:
    x, y = data()
    plain, closed = (noisynat.NoisyKFAC(make()) for _ in range(2))
    assert isinstance(plain, torch.optim.Optimizer)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        closed.zero_grad()
        loss = closed.network.loss(x, y)
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        run(plain)
        losses.append(closed.step(closure))
    assert calls == 3
    assert all(isinstance(loss, Tensor) for loss in losses)
    assert_close(means(closed.network), means(plain.network), rtol=0, atol=0)


def test_steps_are_proportional_to_lr() -> None:
    moves = []
    for lr in (0.1, 0.2):
        bnn = make().eval()
        before = means(bnn)
        run(noisynat.NoisyKFAC(bnn, lr=lr, kl_clip=None))
        moves.append([after - start for after, start in zip(means(bnn), before, strict=True)])
    assert_close(moves[1], [2 * move for move in moves[0]])


@pytest.mark.parametrize("scheduler_class", ["StepLR", "cosine"])
def test_schedulers_set_the_step(scheduler_class: str) -> None:
    optimizer = noisynat.NoisyKFAC(make(), lr=0.1)
    if scheduler_class == "StepLR":
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    else:
        scheduler = noisynat.cosine_schedule(optimizer, 1)
    run(optimizer)
    scheduler.step()
    before = means(optimizer.network)
    run(optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-15)
    assert_close(means(optimizer.network), before)


def test_param_groups_have_their_own_lr() -> None:
    bnn = make().eval()
    first, second = (layer.mean for layer in bnn.layers)
    groups = [{"params": [first], "lr": 0.0}, {"params": [second], "lr": 0.1}]
    before = means(bnn)
    run(noisynat.NoisyKFAC(bnn, kl_clip=None, param_groups=groups))
    reference = make().eval()
    run(noisynat.NoisyKFAC(reference, lr=0.1, kl_clip=None))
    assert_close(means(bnn), [before[0], means(reference)[1]])


def test_param_groups_leave_other_layers_alone() -> None:
    bnn = make()
    before = bnn.layers[0].mean.detach().clone()
    optimizer = noisynat.NoisyKFAC(bnn, param_groups=[{"params": [bnn.layers[1].mean]}])
    run(optimizer, 6)
    assert torch.equal(bnn.layers[0].mean, before)


@pytest.mark.parametrize("trained_before", [False, True])
def test_statistics_of_layers_that_no_optimizer_moves_do_not_pile_up(trained_before: bool) -> None:
    bnn = make()
    if trained_before:
        whole = noisynat.NoisyKFAC(bnn, stats_every=1)
        run(whole, 2)  # and waits for more
    still, moved = (posterior.curvature for posterior in bnn.posteriors)
    before = [curvature.averages["A"].value.clone() for curvature in (still, moved)]
    run(noisynat.NoisyKFAC(bnn, param_groups=[{"params": [bnn.layers[1].mean]}]), 6)
    assert not still.has_pending
    assert torch.equal(still.averages["A"].value, before[0])
    assert not torch.equal(moved.averages["A"].value, before[1])


def test_optimizers_of_different_layers_step_in_turn_each_at_its_own_interval() -> None:
    bnn = make()
    optimizers = [
        noisynat.NoisyKFAC(bnn, param_groups=[{"params": [layer.mean]}], stats_every=every)
        for layer, every in zip(bnn.layers, (1, 3), strict=True)
    ]
    averages = [posterior.curvature.averages["A"] for posterior in bnn.posteriors]
    took: list[list[int]] = [[], []]
    for step in range(7):
        before = [average.value.clone() for average in averages]
        for optimizer in optimizers:
            optimizer.zero_grad()
        bnn.loss(*data()).backward()
        for optimizer in optimizers:
            optimizer.step()
        for steps, average, old in zip(took, averages, before, strict=True):
            if not torch.equal(average.value, old):
                steps.append(step)
    assert took == [[0, 1, 2, 3, 4, 5, 6], [0, 3, 6]]


def test_param_groups_take_only_the_networks_parameters() -> None:
    with pytest.raises(ValueError, match="neither a mean nor a point estimate"):
        noisynat.NoisyKFAC(make(), param_groups=[{"params": [nn.Parameter(torch.zeros(2))]}])


def test_a_joint_posterior_has_one_damping() -> None:
    bnn = make("dense")
    groups = [{"params": [layer.mean], "damping": i + 1.0} for i, layer in enumerate(bnn.layers)]
    with pytest.raises(ValueError, match="need one damping"):
        noisynat.NoisyNaturalGradient(bnn, param_groups=groups)


# --- what statistics are taken from -----------------------------------------------------------


@pytest.mark.parametrize("posterior", NATURAL)
def test_gradient_accumulation_is_one_large_batch(posterior: Any) -> None:
    x, y = data()
    whole, parts = (noisynat.NoisyNaturalGradient(make(posterior).eval(), refresh_every=1) for _ in range(2))
    for _ in range(3):
        run(whole)
        parts.zero_grad()
        for x_part, y_part in zip(x.chunk(4), y.chunk(4), strict=True):
            (parts.network.loss(x_part, y_part) / 4).backward()
        parts.step()
    assert_close(statistics(parts.network), statistics(whole.network))
    assert_close(means(parts.network), means(whole.network))


@pytest.mark.parametrize("posterior", NATURAL)
def test_scaling_the_loss_leaves_the_statistics_alone(posterior: Any) -> None:
    plain, scaled = (noisynat.NoisyNaturalGradient(make(posterior).eval()) for _ in range(2))
    run(plain)
    run(scaled, scale=100.0)
    assert_close(statistics(scaled.network), statistics(plain.network), rtol=0, atol=0)


def test_batch_size_does_not_scale_the_statistics() -> None:
    x, y = data()
    factors = []
    for copies in (1, 3):
        bnn = make().eval()
        optimizer = noisynat.NoisyKFAC(bnn)
        bnn.loss(x.repeat(copies, 1), y.repeat(copies, 1)).backward()
        optimizer.step()
        factors.append(statistics(bnn))
    assert_close(*factors)


def test_a_loss_that_is_not_backpropagated_does_not_count() -> None:
    x, y = data()
    plain, validated = (noisynat.NoisyKFAC(make(likelihood=noisynat.GaussianLikelihood("gamma")).eval()) for _ in "ab")
    run(plain)
    validated.zero_grad()
    validated.network.loss(5 * x, 5 * y)
    loss = validated.network.loss(x, y)
    validated.network.loss(7 * x, 7 * y)
    loss.backward()
    validated.step()
    assert_close(validated.network.state_dict(), plain.network.state_dict(), rtol=0, atol=0)


def test_zero_grad_forgets_statistics_too() -> None:
    x, y = data()
    plain, other = (noisynat.NoisyKFAC(make(likelihood=noisynat.GaussianLikelihood("gamma")).eval()) for _ in "ab")
    run(plain)
    other.network.loss(5 * x, 5 * y).backward()
    run(other)
    assert_close(other.network.state_dict(), plain.network.state_dict(), rtol=0, atol=0)


def test_stats_every_takes_statistics_at_the_first_of_its_steps() -> None:
    optimizer = noisynat.NoisyKFAC(make(), stats_every=3)
    changed, before = [], statistics(optimizer.network)
    for _ in range(7):
        run(optimizer)
        after = statistics(optimizer.network)
        changed.append(any(not torch.equal(after[key], before[key]) for key in after))
        before = after
    assert changed == [True, False, False, True, False, False, True]


def test_stats_examples_are_the_first_of_every_batch() -> None:
    """In evaluation mode nothing is drawn: the curvature is that of training on the first examples alone."""
    x, y = data()
    few = noisynat.NoisyKFAC(make().eval(), lr=0.0, stats_examples=3)
    few.network.loss(x, y).backward()
    few.step()
    alone = noisynat.NoisyKFAC(make().eval(), lr=0.0)
    alone.network.loss(x[:3], y[:3]).backward()
    alone.step()
    assert_close(statistics(few.network), statistics(alone.network))
    whole = noisynat.NoisyKFAC(make().eval(), lr=0.0)
    run(whole)
    of_few, of_whole = statistics(few.network), statistics(whole.network)
    assert any(not torch.allclose(of_few[key], of_whole[key]) for key in of_few)


def test_refresh_every_changes_the_covariance_at_the_last_of_its_steps() -> None:
    optimizer = noisynat.NoisyKFAC(make(), refresh_every=3)
    q = optimizer.network.posteriors[0]
    changed, before = [], q.covariance()
    for _ in range(7):
        run(optimizer)
        after = q.covariance()
        changed.append(not torch.equal(after, before))
        before = after
    assert changed == [False, False, True, False, False, True, False]


# --- damping and the trust region -------------------------------------------------------------


@pytest.mark.parametrize("posterior", NATURAL)
def test_damping_enters_the_step_only(posterior: Any) -> None:
    """With a learning rate of zero all that is left is the posterior, which must be the same."""
    results = []
    for damping in (0.0, 1.0):
        bnn = make(posterior)
        run(noisynat.NoisyNaturalGradient(bnn, lr=0.0, damping=damping, refresh_every=1), 4)
        elbo = bnn.elbo(*data(), generator=torch.Generator().manual_seed(0))
        results.append([bnn.posteriors[0].covariance(), elbo.kl, elbo.total, bnn.posteriors[0].variances()])
    assert_close(*results, rtol=0, atol=0)


def test_damping_shortens_the_step() -> None:
    lengths = []
    for damping in (0.0, 1.0):
        bnn = make().eval()
        before = means(bnn)[0]
        run(noisynat.NoisyKFAC(bnn, damping=damping, kl_clip=None))
        lengths.append((means(bnn)[0] - before).norm())
    gamma = 1 / N  # at C = I the step is V / (1 + gamma + damping)
    torch.testing.assert_close(lengths[0] / lengths[1], torch.tensor((2 + gamma) / (1 + gamma)).double())


def quadratic_change(kl_clip: float | None, **settings: Any) -> Tensor:
    """move^T (C + gamma I + damping I) move of a first step, at which C = I, per replica."""
    bnn = make(**settings).eval()
    before = means(bnn)
    run(noisynat.NoisyKFAC(bnn, lr=0.5, damping=0.1, kl_clip=kl_clip))
    moves = [after - start for after, start in zip(means(bnn), before, strict=True)]
    return (1 + 1 / N + 0.1) * sum((move.square().sum((-2, -1)) for move in moves), torch.zeros(()))


def test_the_trust_region_bounds_the_change_of_all_layers_together() -> None:
    assert quadratic_change(None) > 1e-3
    assert quadratic_change(1e-3) == pytest.approx(1e-3)
    assert quadratic_change(1e9) == pytest.approx(quadratic_change(None))


def test_the_trust_region_is_each_replicas_own() -> None:
    free = quadratic_change(None, replicas=3)
    clip = float(free.sort().values[:2].mean())
    torch.testing.assert_close(quadratic_change(clip, replicas=3), free.clamp(max=clip))
    assert (free > clip).tolist().count(True) == 2


# --- point estimates --------------------------------------------------------------------------


def test_point_estimates_follow_adam() -> None:
    x, y = data()
    net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2))
    bnn = make(net=net).eval()
    optimizer = noisynat.NoisyKFAC(bnn, point_lr=0.01)
    weight = bnn.net[1].weight
    twin = nn.Parameter(weight.detach().clone())
    adam = torch.optim.Adam([twin], lr=0.01, betas=(0.9, 0.99))
    for _ in range(5):
        optimizer.zero_grad()
        bnn.loss(x, y).backward()
        twin.grad = weight.grad.clone()
        optimizer.step()
        adam.step()
    torch.testing.assert_close(weight, twin)
    assert not torch.isclose(weight, torch.full_like(weight, 0.25)).any()


def test_frozen_parameters_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[1].requires_grad_(False)
    bnn = make(net=net)
    run(noisynat.NoisyKFAC(bnn), 3)
    assert torch.equal(bnn.net[1].weight, torch.ones(4).double())


# --- misuse -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer_class", "posterior", "right"),
    [
        (noisynat.NoisyAdam, "kronecker", "NoisyKFAC"),
        (noisynat.NoisyAdam, "dense", "NoisyNaturalGradient"),
        (noisynat.NoisyAdam, "mean_field", "torch.optim.Adam"),
        (noisynat.NoisyKFAC, "diagonal", "NoisyAdam"),
        (noisynat.NoisyKFAC, "dense_per_layer", "NoisyNaturalGradient"),
        (noisynat.NoisyKFAC, "mean_field", "negative_elbo"),
        (noisynat.NoisyNaturalGradient, "mean_field", "negative_elbo"),
    ],
)
def test_the_wrong_optimizer_names_the_right_one(optimizer_class: Any, posterior: Any, right: str) -> None:
    with pytest.raises(ValueError, match=f"'{posterior}': use .*{right}"):
        optimizer_class(make(posterior))


@pytest.mark.parametrize("posterior", NATURAL)
def test_the_general_optimizer_takes_every_natural_posterior(posterior: Any) -> None:
    run(noisynat.NoisyNaturalGradient(make(posterior)), 2)


def test_a_plain_module_must_be_wrapped() -> None:
    with pytest.raises(TypeError, match="wrap your module first"):
        noisynat.NoisyKFAC(nn.Linear(2, 1))  # type: ignore[arg-type]


def test_step_without_backward_raises_and_changes_nothing() -> None:
    optimizer = noisynat.NoisyKFAC(make())
    before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.network.state_dict())
    with pytest.raises(RuntimeError, match=r"loss.backward\(\) first"):
        optimizer.step()
    assert_close([optimizer.state_dict(), optimizer.network.state_dict()], list(before), rtol=0, atol=0)


def test_a_loss_of_ones_own_raises() -> None:
    x, y = data()
    optimizer = noisynat.NoisyKFAC(make())
    (optimizer.network(x) - y).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"network.loss\(x, y\)"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "learning rates"),
        ({"lr": math.nan}, "learning rates"),
        ({"point_lr": -1}, "learning rates"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (0.9,)}, "betas"),
        ({"damping": -1e-3}, "damping"),
        ({"kl_clip": 0}, "kl_clip"),
        ({"stats_every": 0}, "stats_every"),
        ({"refresh_every": 1.5}, "refresh_every"),
        ({"stats_examples": 0}, "stats_examples"),
        ({"fisher": "exact"}, "ggn, mc, empirical"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisynat.NoisyKFAC(make(), **options)
