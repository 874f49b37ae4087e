"""fit(): the plain training loop, with progress, history, KL warm-up, checkpoints and exact resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from noisynat.errors import check_finite
from noisynat.likelihoods import HeteroscedasticGaussianLikelihood
from noisynat.network import VariationalNetwork
from noisynat.optim.compiled import CompiledStep
from noisynat.optim.schedule import warmed_up_kl_weight
from noisynat.progress import Progress

Batches = Iterable[tuple[Tensor, Tensor]]


class History(dict[str, list[Any]]):
    """A column per quantity, an entry per epoch; with replicas an entry is a list, one number each.

    Columns: ``epoch`` (from 1), ``loss`` (mean negative log-likelihood at the epoch's sampled weights, nats per
    example), ``kl`` (nats, of weights and noise), ``elbo`` (nats per datum, from those two, at the final kl_weight also
    during a warm-up: a running estimate, see :meth:`~noisynat.VariationalNetwork.elbo` for the exact one), ``lr``,
    ``kl_weight`` and ``seconds`` since the start.
    """

    def append(self, **row: Any) -> None:
        """Add an epoch."""
        for key, value in row.items():
            self.setdefault(key, []).append(value.tolist() if isinstance(value, Tensor) else value)

    def __len__(self) -> int:
        return len(self.get("epoch", []))


def fit(
    network: VariationalNetwork,
    optimizer: Optimizer,
    data: Batches,
    epochs: int,
    *,
    progress: bool = True,
    scheduler: LRScheduler | None = None,
    kl_warmup: float = 0.0,
    kl_start: float | None = None,
    noise_warmup: tuple[float, float] | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    checkpoint_interval: float = 0.0,
    compile: bool = False,
) -> History:
    """Train ``network`` for ``epochs`` passes over ``data``.

    A ``"mean_field"`` posterior is trained on ``network.negative_elbo`` with any torch optimizer, every other on
    ``network.loss`` with one of this library's.

    Args:
        network: left in the mode (train or eval) in which it was found.
        optimizer: holds the network's parameters.
        data: an iterable of batches (x, y): a DataLoader, :class:`~noisynat.TensorBatches`, or a list.
        epochs: total number of epochs, those of a resumed checkpoint included.
        progress: show a bar on a terminal (with the package tqdm), plain lines elsewhere.
        scheduler: a torch learning-rate scheduler; its ``step()`` is called after every optimizer step.
        kl_warmup: fraction of the epochs in which kl_weight rises to its value, linearly from near zero.
        kl_start: let it rise geometrically instead, from this fraction of its value.
        noise_warmup: for a :class:`~noisynat.HeteroscedasticGaussianLikelihood`: noise is constant until the first of
            these fractions of the epochs, and as the network says from the second on.
        on_epoch: called with the epoch (from 1) and the history after every epoch.
        checkpoint: file to write; if it exists, training resumes from it, bit for bit on the CPU.
        checkpoint_every: steps between checkpoints besides those after epochs.
        checkpoint_interval: seconds that an epoch's checkpoint waits after the one before. 0 writes one after every
            epoch; a dense posterior, whose D x D matrices take long to write, wants more. The last epoch's is written.
        compile: take steps by a :class:`~noisynat.CompiledStep`, which is faster where networks are small and trainings
            long. Resuming is then exact up to rounding, and a loss that is not finite is seen after its step.

    Returns:
        The history, that of a resumed checkpoint included.

    Raises:
        NonFiniteLossError: when a loss is not finite; parameters are as they were before that step.
        ValueError: if an argument is out of range, or ``data`` is empty.
        TypeError: if ``noise_warmup`` is given for another likelihood.
    """
    if epochs < 0 or not 0 <= kl_warmup <= 1:
        raise ValueError(f"need epochs >= 0 and 0 <= kl_warmup <= 1, got {epochs} and {kl_warmup}")
    if kl_start is not None and not 0 < kl_start <= 1:
        raise ValueError(f"need 0 < kl_start <= 1, got {kl_start}")
    if noise_warmup is not None:
        if not 0 <= noise_warmup[0] < noise_warmup[1] <= 1:
            raise ValueError(f"need 0 <= begin < end <= 1 in noise_warmup, got {noise_warmup}")
        if not isinstance(network.likelihood, HeteroscedasticGaussianLikelihood):
            raise TypeError(f"noise_warmup is for heteroscedastic noise, not {type(network.likelihood).__name__}")
    if checkpoint_every is not None and (checkpoint is None or checkpoint_every < 1):
        raise ValueError("checkpoint_every is a positive number of steps and needs checkpoint=")
    if not checkpoint_interval >= 0 or (checkpoint is None and checkpoint_interval):
        raise ValueError("checkpoint_interval is a number of seconds, at least 0, and needs checkpoint=")
    run = _Run(network, optimizer, data, scheduler, None if checkpoint is None else Path(checkpoint))
    if compile:
        run.step = CompiledStep(optimizer)  # type: ignore[arg-type]
    target, warmup = network.kl_weight, round(kl_warmup * epochs)
    was_training = network.training
    network.train()
    run.resume()
    try:
        with Progress(epochs, run.epoch, enabled=progress) as bar:
            while run.epoch < epochs:
                _set_kl_weight(network, warmed_up_kl_weight(target, run.epoch, warmup, kl_start))
                if noise_warmup is not None:
                    _set_strength(network, (run.epoch / epochs - noise_warmup[0]) / (noise_warmup[1] - noise_warmup[0]))
                run.train_epoch(checkpoint_every)
                if run.epoch == epochs or time.monotonic() - run.saved >= checkpoint_interval:
                    run.save()
                bar.update(run.epoch, {key: run.history[key][-1] for key in ("loss", "elbo")})
                if on_epoch is not None:
                    on_epoch(run.epoch, run.history)
    finally:
        _set_kl_weight(network, target)
        network.train(was_training)
    return run.history


def _set_kl_weight(network: VariationalNetwork, value: float) -> None:
    if network.kl_weight != value:
        network.kl_weight = value


def _set_strength(network: VariationalNetwork, value: float) -> None:
    assert isinstance(network.likelihood, HeteroscedasticGaussianLikelihood)
    network.likelihood.strength.fill_(min(max(value, 0.0), 1.0))


class _Run:
    """The state of a training run, and how it is saved."""

    def __init__(
        self,
        network: VariationalNetwork,
        optimizer: Optimizer,
        data: Batches,
        scheduler: LRScheduler | None,
        path: Path | None,
    ) -> None:
        self.network, self.optimizer, self.data, self.scheduler, self.path = network, optimizer, data, scheduler, path
        self.history = History()
        self.epoch = 0  # epochs completed
        self.batch = 0  # batches completed in the current epoch
        self.losses = torch.zeros(network.replicas, dtype=torch.float64)
        self.examples = 0
        self.seconds = 0.0
        self.step: CompiledStep | None = None  # instead of the usual one
        self.saved = -math.inf  # when, by time.monotonic()
        self.kl_weight = network.kl_weight  # in the end, and in the reported ELBO during a warm-up too

    def train_epoch(self, checkpoint_every: int | None) -> None:
        started = time.perf_counter() - self.seconds
        for x, y in self._batches():
            loss = self._train_batch(x, y)
            count = x.shape[len(self.network.replicas)] if x.dim() > 2 and self.network.replicas else len(x)
            self.losses = self.losses.to(loss.device).add(loss, alpha=count)
            self.examples += count
            self.batch += 1
            self.seconds = time.perf_counter() - started
            if checkpoint_every and self.batch % checkpoint_every == 0:
                self.save()
        if not self.examples:
            raise ValueError("data gave no batches")
        self._record_epoch()
        self.epoch, self.batch, self.examples = self.epoch + 1, 0, 0
        self.losses = torch.zeros_like(self.losses)

    def _train_batch(self, x: Tensor, y: Tensor) -> Tensor:
        """One step; returns the mean negative log-likelihood (*replicas,)."""
        if self.step is None:
            loss = self._usual_step(x, y)
        else:
            loss = self.step(x, y)
            check_finite(loss, self._place, taken=True)
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    @property
    def _place(self) -> str:
        return f"epoch {self.epoch + 1}, batch {self.batch + 1}"

    def _usual_step(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.network.loss_per_replica(x, y)
        objective = loss if self.network.is_natural else loss + self.network.scaled_kl().to(loss.dtype)
        check_finite(objective, self._place)
        objective.sum().backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _record_epoch(self) -> None:
        network, loss = self.network, self.losses / self.examples
        weights_kl = torch.stack([posterior.kl_divergence() for posterior in network.posteriors]).sum(0)
        noise_kl = network.likelihood.kl(network.replicas)
        self.history.append(
            epoch=self.epoch + 1,
            loss=loss,
            kl=weights_kl + noise_kl,
            elbo=-loss - (self.kl_weight * weights_kl + noise_kl) / network.num_data,
            lr=self.optimizer.param_groups[0]["lr"],
            kl_weight=network.kl_weight,
            seconds=self.seconds,
        )

    # --- batches that can be resumed --------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The current epoch's batches from the next one on."""
        if isinstance(self.data, _KeepsState):
            yield from self.data
            return
        if self.batch == 0:
            self.random_state = _random_state(self.data)
        else:
            _restore_random_state(self.data, self.random_state)
        yield from islice(self.data, self.batch, None)

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.path is None:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "history": dict(self.history),
            "position": {"epoch": self.epoch, "batch": self.batch, "examples": self.examples, "seconds": self.seconds},
            "losses": self.losses,
            "data": self._data_state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)
        self.saved = time.monotonic()

    def _data_state(self) -> dict[str, Any]:
        """What the rest of the current epoch's batches depend on; between epochs, the next epoch's."""
        if isinstance(self.data, _KeepsState):
            return self.data.state_dict()
        return self.random_state if self.batch else _random_state(self.data)

    def resume(self) -> None:
        """Go on from the checkpoint where there is one."""
        if self.path is None or not self.path.exists():
            return
        state = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.history = History(state["history"])
        for key, value in state["position"].items():
            setattr(self, key, value)
        self.losses = state["losses"]
        if isinstance(self.data, _KeepsState):
            self.data.load_state_dict(state["data"])
        else:
            self.random_state = state["data"]
            if self.batch == 0:
                _restore_random_state(self.data, self.random_state)


@runtime_checkable
class _KeepsState(Protocol):
    """Data that say where their iteration stands, as :class:`~noisynat.TensorBatches` do."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def _random_state(data: Any) -> dict[str, Tensor | None]:
    """What a DataLoader's shuffling depends on: torch's global generator and the loader's own."""
    own = getattr(data, "generator", None)
    return {"global": torch.get_rng_state(), "own": None if own is None else own.get_state()}


def _restore_random_state(data: Any, state: dict[str, Tensor | None]) -> None:
    torch.set_rng_state(state["global"])  # type: ignore[arg-type]
    if state["own"] is not None:
        data.generator.set_state(state["own"])
