"""Functions drawn from the posterior: all at once, each at its own inputs, saved and loaded, and never moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat


class Scaled(nn.Module):
    """Outputs of a layer times a point estimate, plus a buffer; no plain stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.offset: Tensor
        self.register_buffer("offset", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x) + self.offset


def network(net: nn.Module | None = None, **settings: Any) -> noisynat.VariationalNetwork:
    net = net or nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    return noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.1), num_data=10, **settings)


@pytest.fixture(params=["stack", "own", "replicas"])
def bnn(request: pytest.FixtureRequest) -> noisynat.VariationalNetwork:
    return network(Scaled() if request.param == "own" else None, replicas=2 if request.param == "replicas" else None)


X = torch.linspace(-1, 1, 10).reshape(5, 2)


def test_all_at_once_are_the_same_as_one_by_one(bnn: noisynat.VariationalNetwork) -> None:
    functions = bnn.sample_functions(4)
    f = functions(X)
    assert len(functions) == 4
    torch.testing.assert_close(f, torch.stack([function(X) for function in functions]))
    torch.testing.assert_close(functions[-1](X), f[3])
    torch.testing.assert_close(functions[1:3](X), f[1:3])
    assert not torch.allclose(f[0], f[1])
    with pytest.raises(IndexError, match="4 functions, no number 4"):
        functions[4]


def test_many_functions_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = network().sample_functions(7)
    whole = functions(X)
    monkeypatch.setattr("noisynat.sampling._WEIGHTS_AT_ONCE", 2 * 27)  # two draws of 12 + 15 weights
    torch.testing.assert_close(functions(X), whole)


def test_every_function_at_inputs_of_its_own(bnn: noisynat.VariationalNetwork) -> None:
    functions = bnn.sample_functions(3)
    x = torch.randn(3, *bnn.replicas, 5, 2, requires_grad=True)
    f = functions.each(x)
    torch.testing.assert_close(f, torch.stack([function(part) for function, part in zip(functions, x, strict=True)]))
    (gradient,) = torch.autograd.grad(f[1].sum(), x)
    assert gradient[1].any()
    assert not gradient[0].any()
    with pytest.raises(ValueError, match="expected inputs of each function"):
        functions.each(torch.zeros(2, *bnn.replicas, 5, 2))


def test_point_estimates_and_buffers_stay_as_they_were() -> None:
    bnn = network(Scaled())
    functions = bnn.sample_functions(2)
    before = functions(X)
    with torch.no_grad():
        bnn.net.scale.fill_(7)
        bnn.net.offset.fill_(9)
        bnn.layers[0].mean.fill_(0)
    assert torch.equal(functions(X), before)


def test_saved_functions_are_the_same_in_another_network(bnn: noisynat.VariationalNetwork, tmp_path: Path) -> None:
    functions = bnn.sample_functions(3)
    torch.save(functions.state_dict(), tmp_path / "functions.pt")
    net = Scaled() if isinstance(bnn.net, Scaled) else None
    other = network(net, replicas=2 if bnn.replicas else None)
    loaded = other.load_functions(torch.load(tmp_path / "functions.pt", weights_only=True))
    assert torch.equal(loaded(X), functions(X))


def test_functions_of_another_shape_are_refused() -> None:
    state = network().sample_functions(1).state_dict()
    with pytest.raises(ValueError, match=r"0 \(4, 3\), 2 \(3, 5\), this network's are linear \(1, 3\)"):
        network(nn.Linear(2, 1)).load_functions(state)


def test_batch_norm_does_not_learn_from_what_functions_see() -> None:
    bnn = network(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    functions = bnn.sample_functions(2)
    before = {name: buffer.clone() for name, buffer in bnn.net.named_buffers()}
    bnn.train()
    functions(X + 3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in bnn.net.named_buffers())
    assert bnn.training
