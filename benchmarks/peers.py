"""Methods of others, by their installed packages, each used as its own documentation shows.

Packages under the GPL (ivon-opt, blitz-bayesian-pytorch) are called and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.networks import Network

_DAMPING = 0.1  # large enough that single batches' factors give no wild steps; it costs nothing
_INTERVAL = 10
_Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Peer:
    """A method of others that trains one network.

    Args:
        name: on the command line and in tables.
        title: for readers.
        distribution: that it comes with.
        module: that must be importable.
        build: makes a training step.
        cycle: steps after which what is done repeats itself.
    """

    name: str
    title: str
    distribution: str
    module: str
    build: Callable[[Network, torch.device], _Step]
    cycle: int = 1


def _ivon(network: Network, device: torch.device) -> _Step:
    import ivon

    net = network.make().to(device)
    optimizer = ivon.IVON(net.parameters(), lr=network.learning_rate, ess=network.num_data)

    def step(x: Tensor, y: Tensor) -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            network.loss(net(x), y).backward()
        optimizer.step()

    return step


def _bayesian_torch(network: Network, device: torch.device, *, kind: str) -> _Step:
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = network.make()
    settings = {
        "prior_mu": 0.0,
        "prior_sigma": 1.0,
        "posterior_mu_init": 0.0,
        "posterior_rho_init": -3.0,
        "type": kind,
        "moped_enable": False,
    }
    dnn_to_bnn(net, settings)
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=network.learning_rate)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        (network.loss(net(x), y) + get_kl_loss(net) / network.num_data).backward()
        optimizer.step()

    return step


def _blitz(network: Network, device: torch.device) -> _Step:
    from blitz.modules import BayesianConv2d, BayesianLinear
    from blitz.utils import variational_estimator

    @variational_estimator
    class Bayesian(nn.Sequential):
        """The network with layers of BLiTZ."""

    def bayesian(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return BayesianLinear(layer.in_features, layer.out_features)
        if isinstance(layer, nn.Conv2d):
            return BayesianConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding
            )
        return layer

    net: Any = Bayesian(*(bayesian(layer) for layer in network.make().children())).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=network.learning_rate)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        net.sample_elbo(
            inputs=x,
            labels=y,
            criterion=network.loss,
            sample_nbr=1,
            complexity_cost_weight=1 / network.num_data,
        ).backward()
        optimizer.step()

    return step


def _asdl(network: Network, device: torch.device) -> _Step:
    """It marks ranges for a profiler of GPUs, which builds of torch without CUDA refuse: there the marks do nothing."""
    from asdl import KfacGradientMaker, PreconditioningConfig

    net = network.make().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=network.learning_rate, momentum=0.9)
    settings = PreconditioningConfig(
        data_size=network.batch,
        damping=_DAMPING,
        ema_decay=0.05,
        preconditioner_upd_interval=_INTERVAL,
        curvature_upd_interval=_INTERVAL,
    )
    loss_type = "cross_entropy" if network.task == "classification" else "mse"
    maker = KfacGradientMaker(net, settings, fisher_type="fisher_mc", loss_type=loss_type)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        maker.setup_loss_call(network.loss, maker.setup_model_call(net, x), y)
        with nullcontext() if torch.cuda.is_available() else _without_marks():
            maker.forward_and_backward()
        optimizer.step()

    return step


@contextmanager
def _without_marks() -> Iterator[None]:
    with patch.multiple(torch.cuda.nvtx, range_push=lambda _: None, range_pop=lambda: None):
        yield


def _curvlinops(network: Network, device: torch.device) -> _Step:
    """The factors of one batch every 10 steps, their damped inverse in every step."""
    from curvlinops import KFACInverseLinearOperator, KFACLinearOperator

    net = network.make().to(device)
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(parameters, lr=network.learning_rate, momentum=0.9)
    loss = nn.CrossEntropyLoss() if network.task == "classification" else nn.MSELoss()
    steps = 0
    inverse: Any = None

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal steps, inverse
        optimizer.zero_grad()
        if steps % _INTERVAL == 0:
            curvature = KFACLinearOperator(
                net, loss, parameters, [(x, y)], fisher_type="mc", check_deterministic=False,
                separate_weight_and_bias=False,
            )  # fmt: skip
            inverse = KFACInverseLinearOperator(curvature, damping=_DAMPING)
        steps += 1
        loss(net(x), y).backward()
        directions = inverse @ [parameter.grad for parameter in parameters]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.grad = direction
        optimizer.step()

    return step


def _singd(network: Network, device: torch.device) -> _Step:
    from singd.optim.optimizer import SINGD

    net = network.make().to(device)
    optimizer = SINGD(net, lr=network.learning_rate, damping=_DAMPING, T=_INTERVAL)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        network.loss(net(x), y).backward()
        optimizer.step()

    return step


PEERS = (
    Peer("peer-ivon", "IVON", "ivon-opt", "ivon", _ivon),
    Peer(
        "peer-bayesian-torch", "bayesian-torch, reparameterization", "bayesian-torch", "bayesian_torch",
        partial(_bayesian_torch, kind="Reparameterization"),
    ),
    Peer(
        "peer-bayesian-torch-flipout", "bayesian-torch, flipout", "bayesian-torch", "bayesian_torch",
        partial(_bayesian_torch, kind="Flipout"),
    ),
    Peer("peer-blitz", "BLiTZ", "blitz-bayesian-pytorch", "blitz", _blitz),
    Peer("peer-asdl", "K-FAC of asdl, every 10 steps", "asdfghjkl", "asdl", _asdl, _INTERVAL),
    Peer(
        "peer-curvlinops", "K-FAC of curvlinops, every 10 steps", "curvlinops-for-pytorch", "curvlinops", _curvlinops,
        _INTERVAL,
    ),
    Peer("peer-singd", "SINGD, dense, every 10 steps", "singd", "singd", _singd, _INTERVAL),
)  # fmt: skip
