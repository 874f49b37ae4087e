"""Training that is stopped after any step, saved, loaded elsewhere and continued is bit-equal to one that was not."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

import noisynat
from tests.states import differences

N, STEPS = 18, 14
CASES: dict[str, dict[str, Any]] = {
    name: {"posterior": name}
    for name in (
        "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer", "mean_field",
    )
} | {
    "replicas": {"posterior": "kronecker", "replicas": 2},
    "replicas of eigen_corrected": {"posterior": "eigen_corrected", "replicas": 2},
    "empirical Bayes": {"posterior": "kronecker", "prior": noisynat.GaussianPrior("empirical_bayes")},
    "shared noise": {"posterior": "kronecker", "noise": "shared"},
    "flipout": {"posterior": "kronecker", "noise": "flipout"},
    "no initial precision": {"posterior": "kronecker", "initial_precision": 0.0},
    "cold": {"posterior": "dense", "kl_weight": 0.3},
    "point estimates": {"posterior": "kronecker", "layer_norm": True},
    "sampled Fisher": {"posterior": "kronecker", "fisher": "mc"},
}  # fmt: skip


def build(case: dict[str, Any], seed: int) -> tuple[noisynat.VariationalNetwork, torch.optim.Optimizer]:
    """The case's network and optimizer, float32, from a seed that the loaded state must override."""
    torch.manual_seed(seed)
    settings = dict(case)
    norm = nn.Sequential(nn.LayerNorm(4), nn.PReLU(4)) if settings.pop("layer_norm", False) else nn.Identity()
    fisher = settings.pop("fisher", None)
    bnn = noisynat.VariationalNetwork(
        nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 1)),
        noisynat.GaussianLikelihood("gamma"),
        num_data=N,
        **settings,
    )
    if not bnn.is_natural:
        return bnn, torch.optim.Adam(bnn.parameters(), lr=0.01)
    return bnn, noisynat.NoisyNaturalGradient(bnn, lr=0.05, fisher=fisher, stats_every=2, refresh_every=5)


def step(bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One step on the batch of that number."""
    g = torch.Generator().manual_seed(number)
    x, y = torch.randn(6, 3, generator=g), torch.randn(6, 1, generator=g)
    optimizer.zero_grad()
    (bnn.loss(x, y) if bnn.is_natural else bnn.negative_elbo(x, y)).backward()
    optimizer.step()


def saved(bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer) -> io.BytesIO:
    """A checkpoint, as the guide writes it."""
    file = io.BytesIO()
    torch.save({"bnn": bnn.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file


def load(file: io.BytesIO, bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer) -> None:
    file.seek(0)
    state = torch.load(file, weights_only=True)
    bnn.load_state_dict(state["bnn"], strict=True)
    optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("name", CASES)
def test_resumed_at_any_step_is_bit_equal(name: str) -> None:
    bnn, optimizer = build(CASES[name], seed=0)
    checkpoints = {}
    for number in range(STEPS):
        checkpoints[number] = saved(bnn, optimizer)
        step(bnn, optimizer, number)
    for start in range(13):
        other, its_optimizer = build(CASES[name], seed=start + 1)
        load(checkpoints[start], other, its_optimizer)
        for number in range(start, STEPS):
            step(other, its_optimizer, number)
        assert differences(bnn.state_dict(), other.state_dict()) == [], f"saved after {start} steps"
        assert differences(optimizer.state_dict(), its_optimizer.state_dict()) == []
    x = torch.randn(4, 3)
    assert torch.equal(bnn.predict(x, 5).samples, other.predict(x, 5).samples)


@pytest.mark.parametrize("name", ["kronecker", "eigen_corrected", "dense", "matrix_normal"])
def test_saving_does_not_disturb_the_run(name: str) -> None:
    runs = []
    for interval in (1, 100):
        bnn, optimizer = build(CASES[name], seed=0)
        for number in range(8):
            step(bnn, optimizer, number)
            if number % interval == 0:
                saved(bnn, optimizer)
                bnn.predict(torch.zeros(2, 3), 2, generator=torch.Generator())
        runs.append(bnn.state_dict())
    assert differences(*runs) == []


def test_a_checkpoint_does_not_change_as_training_goes_on() -> None:
    """The state dict's tensors may be live, but what a checkpoint loaded is not."""
    bnn, optimizer = build(CASES["kronecker"], seed=0)
    step(bnn, optimizer, 0)
    file = saved(bnn, optimizer)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, its_optimizer = build(CASES["kronecker"], seed=1)
    other.load_state_dict(state["bnn"])
    its_optimizer.load_state_dict(state["optimizer"])
    for number in range(6):
        step(other, its_optimizer, number)
    file.seek(0)
    assert differences(state["bnn"], torch.load(file, weights_only=True)["bnn"]) == []
