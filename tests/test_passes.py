"""One backward pass for scalar outputs, against two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import noisynat
from noisynat import passes as passes_module

LIKELIHOODS = {
    "gaussian": lambda: noisynat.GaussianLikelihood(0.4),
    "gamma": noisynat.GaussianLikelihood,
    "student": lambda: noisynat.StudentTLikelihood(4.0),
    "bernoulli": noisynat.BernoulliLikelihood,
    "poisson": noisynat.PoissonLikelihood,
}


def targets(likelihood: str, examples: int) -> Tensor:
    if likelihood == "bernoulli":
        return torch.randint(2, (examples, 1)).double()
    if likelihood == "poisson":
        return torch.randint(5, (examples, 1)).double()
    return torch.randn(examples, 1).double()


class Shared(nn.Module):
    """A layer at four locations, one in two places, and a scalar output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.unflatten(-1, (4, 2))).tanh().mean(-2)
        return self.last(self.middle(self.middle(h).tanh()).tanh())


def make(likelihood: str, structure: Any = "kronecker", replicas: Any = None, net: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    net = (net or nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))).double()
    bnn = noisynat.VariationalNetwork(
        net, LIKELIHOODS[likelihood](), posterior=structure, num_data=30, replicas=replicas, seed=3
    )
    return bnn, noisynat.NoisyNaturalGradient(bnn, refresh_every=2)


def trained(monkeypatch: pytest.MonkeyPatch, *, passes: int, scale: float = 1.0, **settings: Any) -> dict[str, Any]:
    """State after three steps, and the passes back from the outputs to the layers that they took."""
    count = {"passes": 0}
    original = torch.autograd.grad

    def counted(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        count["passes"] += isinstance(inputs, (list, tuple)) and len(inputs) > 1
        return original(outputs, inputs, *args, **kwargs)

    bnn, optimizer = make(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted)
        if passes == 2:
            original_pass = passes_module.loss_and_statistics
            patch.setattr(
                passes_module,
                "loss_and_statistics",
                lambda *args, **kwargs: original_pass(*args, **{**kwargs, "only_means": False}),
            )
        torch.manual_seed(1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = bnn.loss(torch.randn(6, 8).double(), targets(settings["likelihood"], 6))
            (scale * loss).backward()
            losses.append(loss.detach())
            gradients = [layer.mean.grad.clone() for layer in bnn.layers]
            optimizer.step()
    assert count["passes"] == 3
    return {"state": dict(bnn.state_dict()), "losses": losses, "gradients": gradients}


def check(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    one, two = (trained(monkeypatch, passes=passes, **settings) for passes in (1, 2))
    for key in ("losses", "gradients"):
        assert_close(one[key], two[key], rtol=1e-7, atol=1e-10)
    for key, value in two["state"].items():
        if isinstance(value, Tensor):
            assert_close(one["state"][key], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_is_the_same(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, likelihood=likelihood)


@pytest.mark.parametrize("replicas", [2, (2, 2)])
@pytest.mark.parametrize("structure", ["diagonal", "eigen_corrected", "dense", "dense_per_layer"])
def test_with_replicas_and_other_posteriors(structure: str, replicas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, likelihood="gamma", structure=structure, replicas=replicas)


def test_with_locations_and_a_layer_in_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, likelihood="gaussian", net=Shared())


def test_a_scaled_loss_has_scaled_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, likelihood="gaussian", scale=7.0, replicas=3)


def test_where_something_else_has_a_gradient_there_are_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(
        passes_module, "_in_one_pass", lambda *args: called.append(args) or pytest.fail("one pass cannot do")
    )
    x, y = torch.randn(6, 8).double(), torch.randn(6, 1).double()
    bnn, _ = make("gaussian")
    inputs = x.clone().requires_grad_()
    bnn.loss(inputs, y).backward()
    assert inputs.grad is not None
    net = nn.Sequential(nn.PReLU(8), nn.Linear(8, 1)).double()
    bnn, _ = make("gaussian", net=net)
    bnn.loss(x, y).backward()
    assert all(p.grad is not None for p in bnn.point_estimates())
    bnn, _ = make("gaussian")
    bnn.fisher = "mc"
    bnn.loss(x, y).backward()
    assert not called
