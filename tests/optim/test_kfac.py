"""K-FAC for an ordinary network: noisy K-FAC's steps at the mean, closed forms, and invariance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noisynat
from tests.states import differences

N, DECAY, DAMPING = 50, 0.02, 1e-3
STRUCTURES = ("kronecker", "matrix_normal", "eigen_corrected", "diagonal")


def images(count: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 2, 6, 6, dtype=torch.float64), torch.arange(count) % classes


def network() -> nn.Module:
    """All kinds of layers, one of them of a kind that Adam moves."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.GroupNorm(2, 4, affine=False),
        nn.Conv2d(4, 3, 2, bias=False), nn.PReLU(3), nn.Flatten(), nn.Linear(27, 5), nn.LayerNorm(5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip
    return net.double()


# --- against noisy K-FAC --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_steps_are_noisy_kfacs_at_the_mean(structure: Any, training: bool) -> None:
    """gamma = lambda / (N eta) is the weight decay. In training mode, only batch normalization is another."""
    x, y = images()
    net = network()
    bnn = noisynat.VariationalNetwork(
        net, noisynat.CategoricalLikelihood(), noisynat.GaussianPrior(1 / (N * DECAY)), structure, num_data=N
    ).eval()
    shared: Any = {"lr": 0.1, "damping": DAMPING, "stats_every": 2, "refresh_every": 3, "fisher": "ggn"}
    noisy = noisynat.NoisyNaturalGradient(bnn, **shared)
    kfac = noisynat.KFAC(
        net, noisynat.CategoricalLikelihood(), curvature=structure, weight_decay=DECAY, initial_precision=1.0, **shared
    )
    kfac.curvature_first = False  # as noisy K-FAC has it
    for part in (net[1], bnn.net[1].normalize):
        part.train(training)
    for module in net.modules():
        module.training = training if module is net[1] else False
    for _ in range(7):
        noisy.zero_grad()
        bnn.loss(x, y).backward()
        noisy.step()
        kfac.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        kfac.step()
    net.eval()
    # One basis of equal eigenvalues is as good as another, and EK-FAC's values are those of one.
    close: Any = {"rtol": 1e-5, "atol": 1e-6} if structure == "eigen_corrected" else {}
    torch.testing.assert_close(net(x), bnn.eval()(x), **close)
    for layer in bnn.layers:
        module = net.get_submodule(layer.name)
        torch.testing.assert_close(layer.mean, layer.mean_of(module.weight, module.bias), **close)
    torch.testing.assert_close(net[5].weight, bnn.net[5].weight, **close)


def test_accumulated_micro_batches_are_one_batch() -> None:
    x, y = images()
    results = []
    for parts in (1, 3):
        torch.manual_seed(0)
        net = network().eval()
        optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood(), fisher="ggn", stats_examples=100)
        for _ in range(4):
            optimizer.zero_grad()
            for some, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (functional.cross_entropy(net(some), targets) / parts).backward()
            optimizer.step()
        results.append(net(x))
    torch.testing.assert_close(results[0], results[1])


# --- closed forms and invariance ------------------------------------------------------------------

EXACT: Any = {"damping": 1e-13, "stats_every": 1, "refresh_every": 1, "fisher": "ggn"}


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_least_squares_take_one_step(decay: float) -> None:
    """The Fisher matrix of a linear model with Gaussian noise is the loss's Hessian: lr = 1 is Newton's step."""
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    net = nn.Linear(4, 1).double()
    likelihood = noisynat.GaussianLikelihood(0.5**0.5)
    optimizer = noisynat.KFAC(net, likelihood, lr=1.0, weight_decay=decay, kl_clip=None, **EXACT)
    functional.mse_loss(net(x), y).backward()
    optimizer.step()
    design = torch.cat([x, torch.ones(20, 1, dtype=x.dtype)], dim=1)
    eye = torch.eye(5, dtype=x.dtype)
    solution = torch.linalg.solve(2 * design.T @ design / 20 + decay * eye, 2 * design.T @ y / 20)
    torch.testing.assert_close(torch.cat([net.weight.flatten(), net.bias]), solution.flatten())


class Rewritten:
    """Two networks of one function, and the second's inputs from the first's."""

    def __init__(self, kind: str) -> None:
        first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.plain = nn.Sequential(first, nn.Tanh(), second)
        w, b, v, c = (p.detach() for p in self.plain.parameters())
        self.mixing, self.shift = torch.eye(4, dtype=w.dtype), torch.zeros(4, dtype=w.dtype)
        if kind == "inputs":
            self.mixing, self.shift = torch.randn_like(self.mixing), torch.randn_like(self.shift)
        if kind == "logistic":  # tanh(u) = 2 logistic(2 u) - 1
            w, b, v, c = 2 * w, 2 * b, 2 * v, c - v.sum(1)
        w = torch.linalg.solve(self.mixing, w.T).T
        self.other = nn.Sequential(
            nn.Linear(4, 5), nn.Sigmoid() if kind == "logistic" else nn.Tanh(), nn.Linear(5, 3)
        ).double()
        for parameter, value in zip(self.other.parameters(), (w, b - w @ self.shift, v, c), strict=True):
            parameter.data.copy_(value)

    def inputs(self, x: Tensor) -> Tensor:
        """Of the second network."""
        return x @ self.mixing + self.shift


def trained(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    loss = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["inputs", "logistic"])
def test_steps_do_not_depend_on_how_a_function_is_written(kind: str) -> None:
    """Affine changes of inputs, and of activations, leave K-FAC's function as it is, and not gradient descent's."""
    x, y, elsewhere = (torch.randn(count, size).double() for count, size in ((60, 4), (60, 3), (9, 4)))
    pair = Rewritten(kind)
    torch.testing.assert_close(pair.other(pair.inputs(x)), pair.plain(x))
    before = pair.plain(elsewhere).detach()
    descended = copy.deepcopy(pair)
    likelihood = noisynat.GaussianLikelihood(1.5**0.5)
    trained(pair.plain, x, y, noisynat.KFAC(pair.plain, likelihood, lr=0.2, **EXACT))
    trained(pair.other, pair.inputs(x), y, noisynat.KFAC(pair.other, likelihood, lr=0.2, **EXACT))
    one, two = pair.plain(elsewhere), pair.other(pair.inputs(elsewhere))
    assert (one - before).abs().max() > 1e-2
    assert (one - two).abs().max() < 1e-6
    trained(descended.plain, x, y, torch.optim.SGD(descended.plain.parameters(), lr=0.2))
    trained(descended.other, descended.inputs(x), y, torch.optim.SGD(descended.other.parameters(), lr=0.2))
    assert (descended.plain(elsewhere) - descended.other(descended.inputs(elsewhere))).abs().max() > 1e-2


# --- bookkeeping ----------------------------------------------------------------------------------


def test_training_lowers_the_loss_faster_than_gradient_descent() -> None:
    """On inputs of very different scales, which is what curvature is for."""
    x = torch.randn(200, 6) * torch.logspace(-2, 1, 6)
    y = ((x / torch.logspace(-2, 1, 6)).sum(1) > 0).long()
    losses = []
    for kind in ("kfac", "sgd"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 2))
        if kind == "kfac":
            optimizer: Any = noisynat.KFAC(net, noisynat.CategoricalLikelihood(), lr=0.1, damping=1e-5, kl_clip=0.01)
        else:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        trained(net, x, y, optimizer, 100)
        losses.append(functional.cross_entropy(net(x), y).item())
    assert losses[0] < 0.5 * losses[1]


def test_the_network_is_the_users() -> None:
    net = network()
    keys, parameters = list(net.state_dict()), [id(p) for p in net.parameters()]
    optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood())
    trained(net, *images(), optimizer)
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == parameters
    assert all(type(module).__module__.startswith("torch") for module in net.modules())
    assert net.training
    optimizer.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_forward_passes_without_gradients_or_backward_passes_do_not_count() -> None:
    x, y = images()
    net = network()
    optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood())
    with torch.no_grad():
        net(x)
    net(x)
    with pytest.raises(RuntimeError, match="found no gradients"):
        optimizer.step()
    trained(net, x, y, optimizer, 1)


def test_batch_statistics_are_averaged_once() -> None:
    x, y = images()
    net, twin = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).double(), nn.BatchNorm2d(2).double()
    trained(net, x, y, noisynat.KFAC(net, noisynat.CategoricalLikelihood()), 1)
    twin(x)
    torch.testing.assert_close(net[0].running_mean, twin.running_mean)


def test_training_that_was_stopped_goes_on_bit_for_bit() -> None:
    x, y = images()

    def trainer(seed: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(seed)
        net = network()
        likelihood = noisynat.CategoricalLikelihood()
        return net, noisynat.KFAC(net, likelihood, fisher="mc", stats_every=2, refresh_every=3, seed=seed)

    net, optimizer = trainer(0)
    trained(net, x, y, optimizer, 4)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    again, other = trainer(1)
    again.load_state_dict(state[0])
    other.load_state_dict(state[1])
    trained(net, x, y, optimizer, 5)
    trained(again, x, y, other, 5)
    assert differences(net.state_dict(), again.state_dict()) == []


def test_state_is_tensors_and_plain_numbers(tmp_path: Any) -> None:
    net = network()
    optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood())
    trained(net, *images(), optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert differences(optimizer.state_dict(), loaded) == []


def test_groups_have_rates_of_their_own() -> None:
    x, y = images()
    net = network()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[10].parameters(), "lr": 0.1}]
    before = copy.deepcopy(net.state_dict())
    trained(net, x, y, noisynat.KFAC(net, noisynat.CategoricalLikelihood(), param_groups=groups), 2)
    trainable = {f"/{name}" for name, _ in net.named_parameters()}
    assert trainable & set(differences(before, net.state_dict())) == {"/10.weight", "/10.bias"}


def test_schedules_take_it() -> None:
    net = network()
    optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood(), lr=0.1)
    schedule = noisynat.cosine_schedule(optimizer, 2)
    trained(net, *images(), optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"net": 3}, TypeError, "takes an nn.Module, got int"),
        ({"likelihood": nn.CrossEntropyLoss()}, TypeError, "a noisynat likelihood, got CrossEntropyLoss"),
        ({"likelihood": noisynat.GaussianLikelihood("gamma")}, ValueError, "does not see the targets"),
        ({"curvature": "dense"}, ValueError, "curvature is one of kronecker"),
        ({"fisher": "empirical"}, ValueError, "does not see the targets"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be at least 0"),
        ({"lr": -1.0}, ValueError, "learning rates must be at least 0"),
        ({"net": nn.Tanh()}, ValueError, "needs a linear layer, convolution, embedding or normalization"),
    ],
)
def test_arguments_out_of_range_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        noisynat.KFAC(**{"net": network(), "likelihood": noisynat.CategoricalLikelihood(), **settings})


def test_a_layers_parameters_go_together() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="of layer 'linear' must be in one group"):
        noisynat.KFAC(net, noisynat.CategoricalLikelihood(), param_groups=[{"params": [net.weight]}])


def test_outputs_of_other_shapes_are_refused() -> None:
    net = nn.Linear(3, 2)
    noisynat.KFAC(net, noisynat.CategoricalLikelihood())
    with pytest.raises(ValueError, match=r"outputs \(B, K\), got shape \(5, 4, 2\)"):
        net(torch.zeros(5, 4, 3))
