"""What takes steps: plain optimizers as references, our optimizers on every posterior and noise mode, and peers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

import noisynat
from benchmarks import peers
from benchmarks.floor import Plan
from benchmarks.networks import Network
from noisynat.curvature import fisher
from noisynat.posteriors.families import Rank

Step = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Trainer:
    """A network that is being trained.

    Args:
        step: one training step on a batch.
        cycle: steps after which what is done repeats itself.
        settling: steps before it does.
        networks: trained at once.
        plan: of the necessary work, where it is known.
        bnn: the network, and its optimizer, of our own methods.
    """

    step: Step
    cycle: int = 1
    settling: int = 0
    networks: int = 1
    plan: Plan | None = None
    bnn: noisynat.VariationalNetwork | None = None
    optimizer: Any = None


@dataclass(frozen=True)
class Contender:
    """A way of training.

    Args:
        name: on the command line and in tables.
        title: for readers.
        kind: reference, ours or peer.
        build: makes a trainer of a network on a device.
        module: that must be importable.
        distribution: that the module comes with.
        noise: the mode of its noise.
    """

    name: str
    title: str
    kind: Literal["reference", "noisynat", "peer"]
    build: Callable[[Network, torch.device], Trainer]
    module: str = "torch"
    distribution: str = field(default="torch")
    noise: str = "auto"

    def missing(self, network: Network) -> str | None:
        """Why it cannot be measured here on ``network``, if so."""
        if self.noise == "local" and network.shares_weights:
            return "local noise is not a posterior sample where layers share their weight over locations"
        if find_spec(self.module) is not None:
            return None
        return f"the package {self.distribution} is not installed (extra 'peers')"


def _plain(network: Network, device: torch.device, *, name: str) -> Trainer:
    """Adam or SGD with momentum on one network."""
    net = network.make().to(device)
    if name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=network.learning_rate)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=network.learning_rate, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        network.loss(net(x), y).backward()
        optimizer.step()

    return Trainer(step, plan=Plan(name))


def _natural(
    network: Network,
    device: torch.device,
    *,
    structure: str,
    noise: str = "auto",
    quiet: bool = False,
    compiled: bool = False,
    rank: Rank = "auto",
    **options: Any,
) -> Trainer:
    """One of our optimizers; ``quiet`` takes the mean's gradients, which leaves plain K-FAC."""
    bnn = _variational(network, device, structure, noise, rank)
    if quiet:
        bnn.eval()
    make = noisynat.NoisyAdam if structure == "diagonal" else noisynat.NoisyKFAC
    optimizer = make(bnn, lr=network.learning_rate, **options)

    def usual(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        bnn.loss(x, y).backward()
        optimizer.step()

    step = noisynat.CompiledStep(optimizer) if compiled else usual

    kind = options.get("fisher") or fisher.default_kind(
        network.outputs, bnn.likelihood.has_hessian_root, wide=bnn.is_wide
    )
    replicas = bnn.replicas.numel()
    plan = Plan(
        structure,
        "none" if quiet else noise,
        columns=network.outputs if kind == "ggn" else 1,
        stats_every=optimizer.stats_every,
        refresh_every=optimizer.refresh_every,
        replicas=replicas,
        rank=rank,
        stats_examples=optimizer.stats_examples,
    )
    cycle = math.lcm(optimizer.stats_every, optimizer.refresh_every)
    settling = max(optimizer.statistics_interval.settles_at, optimizer.refresh_interval.settles_at)
    return Trainer(step, cycle, settling, replicas, plan, bnn, optimizer)


def _mean_field(network: Network, device: torch.device, *, noise: str) -> Trainer:
    """Bayes by Backprop by Adam."""
    bnn = _variational(network, device, "mean_field", noise)
    optimizer = torch.optim.Adam(bnn.parameters(), lr=network.learning_rate)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        bnn.negative_elbo(x, y).backward()
        optimizer.step()

    replicas = bnn.replicas.numel()
    return Trainer(step, networks=replicas, plan=Plan("mean_field", noise, replicas=replicas), bnn=bnn)


def _variational(
    network: Network, device: torch.device, structure: str, noise: str, rank: Rank = "auto"
) -> noisynat.VariationalNetwork:
    return noisynat.VariationalNetwork(
        network.make().to(device),
        network.likelihood(),
        posterior=structure,  # type: ignore[arg-type]
        noise=noise,  # type: ignore[arg-type]
        num_data=network.num_data,
        replicas=network.replicas,
        rank=rank,
        seed=0,
    )


_STRUCTURES = {
    "nng-ffg": ("noisy Adam, diagonal", "diagonal"),
    "nng-mvg": ("noisy K-FAC, matrix normal (factored damping)", "matrix_normal"),
    "nng-kron": ("noisy K-FAC, Kronecker (exact damping)", "kronecker"),
    "nng-ekfac": ("noisy EK-FAC, eigenvalue-corrected", "eigen_corrected"),
}
NOISES = ("local", "flipout", "shared")


def _ours() -> list[Contender]:
    found = [
        Contender(
            f"bbb-{noise}",
            f"Bayes by Backprop, {noise} noise",
            "noisynat",
            partial(_mean_field, noise=noise),
            noise=noise,
        )
        for noise in ("auto", *NOISES)
    ]

    def add(name: str, title: str, noise: str = "auto", **options: Any) -> None:
        found.append(Contender(name, title, "noisynat", partial(_natural, noise=noise, **options), noise=noise))

    for name, (title, structure) in _STRUCTURES.items():
        add(name, title, structure=structure)
        for noise in NOISES:
            add(f"{name}-{noise}", f"{title}, {noise} noise", structure=structure, noise=noise)
    title, structure = _STRUCTURES["nng-kron"]
    add("nng-kron-whole", f"{title}, all eigenvalues", structure=structure, rank=None)
    add(
        "nng-kron-often", f"{title}, statistics at every step, refresh every 5", structure=structure,
        stats_every=1, refresh_every=5,
    )  # fmt: skip
    for name in ("nng-ffg", "nng-kron"):
        title, structure = _STRUCTURES[name]
        add(f"{name}-compiled", f"{title}, steps compiled", structure=structure, compiled=True)
    for name, form, structure in (("kfac", "exact", "kronecker"), ("kfac-factored", "factored", "matrix_normal")):
        add(name, f"K-FAC without noise, {form} damping", structure=structure, quiet=True)
    return found


def _peers() -> list[Contender]:
    def build(network: Network, device: torch.device, *, peer: peers.Peer) -> Trainer:
        return Trainer(peer.build(network, device), peer.cycle)

    return [
        Contender(peer.name, peer.title, "peer", partial(build, peer=peer), peer.module, peer.distribution)
        for peer in peers.PEERS
    ]


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("adam", "Adam", "reference", partial(_plain, name="adam")),
        Contender("sgd", "SGD with momentum", "reference", partial(_plain, name="sgd")),
        *_ours(),
        *_peers(),
    )
}
IN_SWEEPS = (
    "adam", "sgd", "bbb-local", "nng-ffg", "nng-mvg", "nng-kron", "kfac", "nng-ffg-compiled", "nng-kron-compiled",
)  # fmt: skip
QUICK = (
    "adam", "sgd", "bbb-local", "nng-ffg", "nng-mvg", "nng-kron", "nng-kron-flipout", "nng-kron-shared", "nng-ekfac",
    "kfac",
)  # fmt: skip
