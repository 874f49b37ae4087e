"""Reduced precision in the passes, full precision in the curvature; and no waiting for the device in a plain step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import noisynat
from noisynat.precision import is_reduced

STRUCTURES = ("diagonal", "kronecker", "matrix_normal", "eigen_corrected", "dense")
FLOATS = {"torch.float32", "torch.float64"}


def make(structure: Any, *, width: int = 20, outputs: int = 1, noise: Any = 0.5, **settings: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, outputs))
    likelihood = noisynat.GaussianLikelihood(noise) if outputs == 1 else noisynat.CategoricalLikelihood()
    bnn = noisynat.VariationalNetwork(net, likelihood, posterior=structure, num_data=60, seed=1)
    return bnn, noisynat.NoisyNaturalGradient(bnn, **settings)


def batch(outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 6, generator=generator)
    return x, x[:, :1].sin() if outputs == 1 else x[:, :outputs].argmax(-1)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("width", [20, 300])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_under_autocast_keeps_the_curvature_in_full_precision(
    structure: str, width: int, outputs: int
) -> None:
    if structure == "dense" and width == 300:
        width = 30
    losses: dict[bool, list[float]] = {}
    for reduced in (False, True):
        bnn, optimizer = make(structure, width=width, outputs=outputs)
        bnn.eval()  # no noise, which is drawn otherwise in other precision
        losses[reduced] = []
        for step in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                loss = bnn.loss(*batch(outputs, step))
            loss.backward()
            optimizer.step()
            losses[reduced].append(float(loss.detach()))
        assert loss.dtype == torch.float32
        assert {str(p.dtype) for p in bnn.parameters()} == {"torch.float32"}
        for posterior in bnn.posteriors:
            state = posterior.curvature.state_tensors()
            assert {str(value.dtype) for value in state.values() if value.is_floating_point()} <= FLOATS
    assert losses[True] != losses[False]  # autocast was on
    assert losses[True] == pytest.approx(losses[False], rel=0.05, abs=0.01)


@pytest.mark.parametrize("noise", ["shared", "flipout", "per_example", "local"])
def test_every_noise_mode_runs_under_autocast(noise: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1))
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.5), num_data=60, noise=noise)
    optimizer = noisynat.NoisyKFAC(bnn)
    with torch.autocast("cpu", torch.bfloat16):
        bnn.loss(*batch(1)).backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in bnn.parameters())


def test_predictions_under_autocast_are_near_those_without() -> None:
    bnn, _ = make("kronecker")
    x, _ = batch(1)
    means = []
    for reduced in (False, True):
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            means.append(bnn.predict(x, 20, generator=generator).mean)
    torch.testing.assert_close(means[1].float(), means[0], rtol=0.05, atol=0.05)
    assert not torch.equal(means[1].float(), means[0])  # autocast was on


def test_a_scaled_loss_is_unscaled_before_the_step() -> None:
    """GradScaler multiplies the loss; gradients come back as they were, and statistics never had the factor."""
    grad_scaler = pytest.importorskip("torch.amp").GradScaler
    trained = []
    for scale in (None, 2.0**10):
        bnn, optimizer = make("kronecker")
        scaler = grad_scaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(5):
            optimizer.zero_grad()
            scaler.scale(bnn.loss(*batch(1, step))).backward()
            scaler.step(optimizer)
            scaler.update()
        trained.append([p.detach().clone() for p in bnn.parameters()])
    torch.testing.assert_close(trained[1], trained[0])


def test_a_step_that_the_scaler_skips_leaves_no_statistics() -> None:
    grad_scaler = pytest.importorskip("torch.amp").GradScaler
    bnn, optimizer = make("kronecker")
    scaler = grad_scaler("cpu", init_scale=2.0**127)
    means = [p.detach().clone() for p in bnn.parameters()]
    averages = [value.clone() for value in bnn.posteriors[0].curvature.state_tensors().values()]
    scaler.scale(1e3 * bnn.loss(*batch(1))).backward()
    scaler.step(optimizer)
    optimizer.zero_grad()
    torch.testing.assert_close(list(bnn.parameters()), means, rtol=0, atol=0)
    found = list(bnn.posteriors[0].curvature.state_tensors().values())
    torch.testing.assert_close(found, averages, rtol=0, atol=0)
    assert not bnn.posteriors[0].curvature.has_pending


def test_is_reduced() -> None:
    assert not is_reduced(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_reduced(torch.device("cpu"))


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors, each of which would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero)
        return func(*args, **(kwargs or {}))


def test_reads_are_counted() -> None:
    with Reads() as reads:
        assert torch.ones(3).sum().item() == 3
        assert bool(torch.ones(()) > 0)
    assert reads.count == 2


@pytest.mark.parametrize("width", [20, 300])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "matrix_normal"])
@pytest.mark.parametrize("noise", [0.5, "gamma"])
def test_a_plain_step_reads_nothing_but_the_checks_of_its_inputs(structure: str, width: int, noise: Any) -> None:
    bnn, optimizer = make(structure, width=width, noise=noise, stats_every=1000, refresh_every=1000)
    for step in range(2):
        optimizer.zero_grad()
        loss = bnn.loss(*batch(1, step))
        loss.backward()
        optimizer.step()
    with Reads() as step_reads:
        optimizer.step()
    assert step_reads.count == 0
    optimizer.zero_grad()
    with Reads() as reads:
        loss = bnn.loss(*batch(1))
    assert reads.count <= 2  # whether inputs and targets are finite
    with Reads() as reads:
        loss.backward()
    assert reads.count == 0


@pytest.mark.parametrize("width", [20, 300])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "matrix_normal", "eigen_corrected"])
def test_training_has_deterministic_algorithms_only(structure: str, width: int) -> None:
    """torch raises where an operation has none; and two runs are bit-equal."""
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            bnn, optimizer = make(structure, width=width, outputs=3)
            for step in range(8):
                optimizer.zero_grad()
                bnn.loss(*batch(3, step)).backward()
                optimizer.step()
            runs.append([p.detach().clone() for p in bnn.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=0)


def test_predictions_in_half_precision_are_near_and_in_the_networks_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3))
    bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=100)
    x = torch.randn(20, 4)
    whole, half = (
        bnn.predict(x, 10, torch.Generator().manual_seed(1), precision=precision).samples
        for precision in (None, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert 1e-5 < (whole - half).abs().max() < 0.05 * whole.abs().max()
    with pytest.raises(ValueError, match=r"precision is torch\.bfloat16"):
        bnn.predict(x, precision=torch.float64)
