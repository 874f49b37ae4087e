"""Ways of training a network for images and of predicting with it; a new one is one more entry of :data:`METHODS`.

Settings were chosen on a tenth of Fashion-MNIST's training images (a LeNet, one seed, 20 epochs), by NLL and then ECE.
Every method sees the same batches, for equally many epochs unless its title says otherwise, with a learning rate that
falls along half a cosine. Times are of training alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import noisynat
from experiments.image_networks import NETWORKS
from experiments.images import Images

ROWS_AT_ONCE = 1000
DROPOUT = 0.2
MEMBERS = 5

Probs = Callable[[Tensor, int], Tensor]
"""Class probabilities (N, K) of images, from so many samples."""
Report = Callable[[int, float, float, Probs], None]
"""Called after every epoch with its number, the seconds of training so far, the epoch's loss, and the network."""


@dataclass(frozen=True)
class Configuration:
    """What all methods share.

    Args:
        network: of :data:`~experiments.image_networks.NETWORKS`.
        epochs: of training.
        batch_size: of training.
        prior_variance: of their priors, over the layer's fan-in.
        initial_precision: of their curvature. With many data the noise is small even so, and a larger one would damp
            the first few hundred steps.
        samples: of a prediction.
        seed: of weights, batches and noise.
    """

    network: str = "lenet"
    epochs: int = 20
    batch_size: int = 128
    prior_variance: float = 1.0
    initial_precision: float = 0.01
    samples: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A method.

    Args:
        name: on the command line and in files.
        title: for readers.
        kind: how it trains: a plain network, or a Bayesian one.
        options: of its optimizer.
        posterior: family of a Bayesian one.
        kl_weight: lambda of a Bayesian one; below 1 the posterior is cold.
        members: networks whose probabilities are averaged.
        dropout: rate, also in predictions.
        share: of the epochs that it trains for.
    """

    name: str
    title: str
    kind: Literal["sgd", "adam", "kfac", "natural", "mean_field"]
    options: dict[str, Any] = field(default_factory=dict)
    posterior: str | None = None
    kl_weight: float = 1.0
    members: int = 1
    dropout: float = 0.0
    share: float = 1.0

    def epochs(self, config: Configuration) -> int:
        """Of one network's training."""
        return max(round(self.share * config.epochs), 1)


@dataclass(frozen=True)
class Outcome:
    """A trained method.

    Args:
        probs: its prediction.
        seconds: of training.
        elbo: per example, of the Bayesian ones, with the KL counted once whatever they were trained with.
    """

    probs: Probs
    seconds: float
    elbo: float | None = None


def train(method: Method, images: Images, config: Configuration, report: Report) -> Outcome:
    """Train ``method`` on the training images."""
    if method.members == 1:
        return _bayesian(method, images, config, report) if method.posterior else _plain(method, images, config, report)
    members: list[Outcome] = []
    for number in range(method.members):
        own = replace(config, seed=config.seed * method.members + number + 1000)
        report_together = partial(_report_together, report, list(members), number * method.epochs(config))
        members.append(_plain(replace(method, members=1), images, own, report_together))
    return Outcome(_average([member.probs for member in members]), sum(member.seconds for member in members))


def _report_together(
    report: Report, earlier: Sequence[Outcome], epochs: int, epoch: int, seconds: float, loss: float, probs: Probs
) -> None:
    """Of a member in training together with those that have been trained, for so many epochs in all."""
    before = sum(member.seconds for member in earlier)
    report(epochs + epoch, before + seconds, loss, _average([*(member.probs for member in earlier), probs]))


def _average(members: list[Probs]) -> Probs:
    return lambda x, samples: torch.stack([probs(x, samples) for probs in members]).mean(0)


# --- networks without a posterior -----------------------------------------------------------------


def _plain(method: Method, images: Images, config: Configuration, report: Report) -> Outcome:
    torch.manual_seed(config.seed)
    net = NETWORKS[config.network](tuple(images.x_train.shape[1:]), images.classes, method.dropout)  # type: ignore[arg-type]
    batches = _batches(images, config)
    optimizer = _optimizer(method, net)
    epochs = method.epochs(config)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2)

    def probs(x: Tensor, samples: int) -> Tensor:
        if not method.dropout:
            return _softmax(net.eval(), x)
        net.eval()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        return torch.stack([_softmax(net, x) for _ in range(samples)]).mean(0)

    seconds = 0.0
    for epoch in range(epochs):
        started, losses = time.perf_counter(), torch.zeros(())
        net.train()
        for x, y in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += len(x) * loss.detach()
        seconds += time.perf_counter() - started
        report(epoch + 1, seconds, losses.item() / len(images.x_train), probs)
    return Outcome(probs, seconds)


def _optimizer(method: Method, net: nn.Module) -> Optimizer:
    if method.kind == "sgd":
        return torch.optim.SGD(net.parameters(), momentum=0.9, **method.options)
    if method.kind == "adam":
        return torch.optim.Adam(net.parameters(), **method.options)
    return noisynat.KFAC(net, noisynat.CategoricalLikelihood(), **method.options)


@torch.no_grad()
def _softmax(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part).softmax(-1) for part in x.split(ROWS_AT_ONCE)])


# --- networks with a posterior --------------------------------------------------------------------


def _bayesian(method: Method, images: Images, config: Configuration, report: Report) -> Outcome:
    torch.manual_seed(config.seed)
    net = NETWORKS[config.network](tuple(images.x_train.shape[1:]), images.classes, 0.0)  # type: ignore[arg-type]
    bnn = noisynat.VariationalNetwork(
        net,
        noisynat.CategoricalLikelihood(),
        noisynat.GaussianPrior(config.prior_variance, "fan_in"),
        method.posterior,  # type: ignore[arg-type]
        num_data=len(images.x_train),
        kl_weight=method.kl_weight,
        initial_precision=config.initial_precision,
        seed=config.seed,
    )
    batches = _batches(images, config)
    if method.kind == "natural":
        optimizer: Optimizer = noisynat.NoisyNaturalGradient(bnn, **method.options)
    else:
        optimizer = torch.optim.Adam(bnn.parameters(), **method.options)
    epochs = method.epochs(config)
    schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches))
    generator = torch.Generator()

    def probs(x: Tensor, samples: int) -> Tensor:
        return bnn.predict(x, samples, generator.manual_seed(config.seed), ROWS_AT_ONCE).probs

    def after(epoch: int, history: noisynat.History) -> None:
        report(epoch, history["seconds"][-1], history["loss"][-1], probs)

    history = noisynat.fit(bnn, optimizer, batches, epochs, scheduler=schedule, on_epoch=after, progress=False)
    elbo = bnn.elbo(images.x_train, images.y_train, num_samples=10, batch_size=ROWS_AT_ONCE)
    bound = (elbo.expected_log_likelihood - elbo.kl).item() / elbo.num_data
    return Outcome(probs, history["seconds"][-1], bound)


def _batches(images: Images, config: Configuration) -> noisynat.TensorBatches:
    return noisynat.TensorBatches(images.x_train, images.y_train, config.batch_size, seed=config.seed)


_KFAC = {"lr": 0.05, "damping": 0.01}
METHODS = {
    method.name: method
    for method in (
        Method("sgd", "SGD with momentum", "sgd", {"lr": 0.05, "weight_decay": 5e-4}),
        Method("adam", "Adam", "adam", {"lr": 1e-3}),
        Method("kfac", "K-FAC without noise", "kfac", _KFAC),
        Method("kfac-half", "K-FAC without noise, half the epochs", "kfac", _KFAC, share=0.5),
        Method("dropout", "MC dropout", "adam", {"lr": 1e-3}, dropout=DROPOUT),
        Method("ensemble", f"deep ensemble of {MEMBERS}", "adam", {"lr": 1e-3}, members=MEMBERS),
        Method("bbb", "Bayes by Backprop", "mean_field", {"lr": 2e-3}, "mean_field", 0.1),
        Method("nng-ffg", "noisy Adam", "natural", {"lr": 0.005}, "diagonal", 0.1),
        Method("nng-mvg", "noisy K-FAC, factored damping", "natural", _KFAC, "matrix_normal", 0.3),
        Method("nng-kron", "noisy K-FAC, exact damping", "natural", _KFAC, "kronecker", 0.3),
        Method("nng-ekfac", "noisy EK-FAC", "natural", _KFAC, "eigen_corrected", 0.3),
    )
}
