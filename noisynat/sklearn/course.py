"""How the estimators train, by a course that only the number of examples and the wanted effort decide.

The quick course takes few, large steps on all examples at once, as only a second-order method can. The thorough one is
the recipe of docs/howto/better_posterior.md: many steps on small batches, Kronecker first, dense last. ``fit`` runs
through a course at once; ``partial_fit`` goes along the thorough one by a pass over the new examples at a time, and
stays at its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import noisynat
from noisynat.posteriors.families import Structure

DENSE_UP_TO = 1500
"""Weights of a network, above which ``posterior="auto"`` leaves out the thorough course's dense finish."""

_MOST_STEPS = 4000
_QUICK_STEPS, _EXAMPLES_PER_STEP, _QUICK_BATCH = 80, 20, 2000  # of the quick course
_FEWEST_STEPS, _FEW = 200, 267  # of the thorough one; examples, below which there are fewer steps
_LARGE_BATCH = 256  # examples, whose statistics are good for some steps
_STATS_EVERY = 3
_SAMPLED_FROM = 5  # outputs, from which on the Fisher matrix is sampled
_SHORTEST = 50.0  # times shorter than 4,000 steps: no rates larger than for that
_DENSE_SHARE = 0.1  # of the epochs
_KL_START = 0.1
_LITTLE = 2**17  # entries of a layer's outputs, below which a second thread does not pay
_SLOWEST = 0.1  # of learning rates: the last one of a stream, and of the curvature's in any training
_DENSE: dict[str, Any] = {
    "betas": (0.9, 0.96), "damping": 0.0, "kl_clip": 1e-4, "stats_every": 8, "stats_examples": 64, "refresh_every": 40,
}  # fmt: skip
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}
ACTIVATIONS = tuple(_ACTIVATIONS)
STRUCTURES = ("auto", "dense", "kronecker", "matrix_normal", "eigen_corrected", "diagonal")


EFFORTS = ("quick", "thorough")


@dataclass(frozen=True)
class Course:
    """The length of a training and its rates.

    Args:
        batch_size: examples per step, at most.
        epochs: passes over the data in one ``fit``.
        learning_rate: the first one, of a course of 4,000 steps; the dense finish begins with half of it.
        structure: of the posterior until the finish.
        dense_finish: whether there is one.
        shortness: how much shorter the course is than 4,000 steps. Learning rates grow with it, and so do the bound of
            a step and the step of the curvature's average: else the mean would not arrive, and the covariance would
            remember how it was initialized.
        noise_warmup: fractions of the epochs between which varying noise is set free.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    structure: Structure
    dense_finish: bool
    shortness: float
    noise_warmup: tuple[float, float]

    @classmethod
    def for_size(
        cls,
        examples: int,
        weights: int,
        *,
        effort: str = "quick",
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 0.02,
        posterior: str = "auto",
    ) -> Course:
        """The course for a number of examples.

        ``"quick"`` is 80 steps on all of them; beyond 1,600 examples, a step more for every 20, on 2,000 at a time.
        ``"thorough"`` is about 4,000 steps, of fewer than 267 examples as their square, on batches of 32 to 512.

        Args:
            examples: N.
            weights: of one network.
            effort: one of :data:`EFFORTS`.
            epochs: by default, as many as make the steps.
            batch_size: by default, by the number of examples.
            learning_rate: as for the class.
            posterior: one of :data:`STRUCTURES`.
        """
        thorough = effort == "thorough"
        if thorough:
            steps = max(_FEWEST_STEPS, round(_MOST_STEPS * min(examples / _FEW, 1.0) ** 2))
            batch_size = batch_size or (32 if examples < 4000 else 128 if examples < 20_000 else 512)
        else:
            steps = min(max(_QUICK_STEPS, examples // _EXAMPLES_PER_STEP), _MOST_STEPS)
            batch_size = batch_size or min(examples, _QUICK_BATCH)
        batches = -(-examples // batch_size)
        epochs = epochs or max(round(steps / batches), 1)
        small = weights <= DENSE_UP_TO
        return cls(
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            structure="kronecker" if posterior in ("auto", "dense") else posterior,  # type: ignore[arg-type]
            dense_finish=posterior == "dense" or (posterior == "auto" and thorough and small),
            shortness=min(max(_MOST_STEPS / (epochs * batches), 1.0), _SHORTEST),
            noise_warmup=(0.4, 0.8) if thorough else (0.2, 0.5),
        )

    @property
    def initial_precision(self) -> float:
        """Of the curvature: how narrow the posterior begins."""
        return 10 / math.sqrt(self.shortness)

    def noise_step(self, examples: int) -> float:
        """Step size of the noise's precision: it averages over an epoch, if that is more than 20 batches."""
        return 0.1 if self.batch_size >= examples else min(0.05, self.batch_size / examples)


def make_net(sizes: Sequence[int], activation: str, seed: int) -> nn.Sequential:
    """A plain stack of layers of ``sizes``, inputs first, with weights uniform in +-1/sqrt(in) as ``nn.Linear``'s.

    Weights are drawn from a generator of their own: the global one stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
        for parameter in layer.parameters():
            parameter.data.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        modules += [layer, _ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


def count_weights(sizes: Sequence[int]) -> int:
    """Weights and biases of a stack of layers of ``sizes``."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


@contextmanager
def threads_for(entries: int) -> Iterator[None]:
    """One thread of torch for little work: others take as long to be waited for, and far longer on a busy machine.

    Args:
        entries: of the widest layer's outputs, for all examples of a batch and all networks.
    """
    before = torch.get_num_threads()
    if entries < _LITTLE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    network: noisynat.VariationalNetwork, x: Tensor, y: Tensor, course: Course, seed: int, verbose: bool
) -> tuple[noisynat.VariationalNetwork, dict[str, list[Any]], dict[str, Any]]:
    """The whole course.

    Args:
        network: with replicas in one dimension, as it was built.
        x: inputs (N, features).
        y: targets (N, ...).
        course: to be run.
        seed: of the batches.
        verbose: whether to show it.

    Returns:
        The trained network, columns of its histories joined, and the state of its last optimizer.
    """
    dense = course.dense_finish and course.epochs > 1
    last = max(round(_DENSE_SHARE * course.epochs), 1) if dense else 0
    columns: dict[str, list[Any]] = {}
    state: dict[str, Any] = {}
    for number, epochs in enumerate((course.epochs - last, last)):
        if not epochs:
            continue
        if number:
            network = network.with_posterior("dense")
        optimizer, data = optimizer_for(network, course), _batches(network, x, y, course, seed)
        varying = isinstance(network.likelihood, noisynat.HeteroscedasticGaussianLikelihood)
        history = noisynat.fit(
            network,
            optimizer,
            data,
            epochs,
            scheduler=noisynat.cosine_schedule(optimizer, epochs * len(data), curvature_final=_SLOWEST),
            kl_warmup=0.0 if number else 1.0,
            kl_start=_KL_START,
            noise_warmup=course.noise_warmup if varying and not number else None,
            progress=verbose,
        )
        _join(columns, history)
        state = optimizer.state_dict()
    return network, columns, state


def train_on(
    network: noisynat.VariationalNetwork,
    x: Tensor,
    y: Tensor,
    course: Course,
    progress: float,
    state: dict[str, Any] | None,
    seed: int,
    verbose: bool,
) -> tuple[dict[str, list[Any]], float, dict[str, Any]]:
    """One pass over some examples of a stream, whose course is 4,000 steps long.

    Args:
        network: trained so far; its number of data is that of all examples so far, with these.
        x: inputs (B, features).
        y: targets (B, ...).
        course: gives batch size and learning rate.
        progress: the part of the course that is done, 0 to 1.
        state: of the optimizer before; None for the first time.
        seed: of the batches.
        verbose: whether to show it.

    Returns:
        The history, the part of the course that is done now, and the optimizer's state.
    """
    optimizer, data = optimizer_for(network, course), _batches(network, x, y, course, seed)
    lr, (beta1, beta2) = optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
    if state is not None:
        optimizer.load_state_dict(state)
    slowed = max(0.5 * (1 + math.cos(math.pi * progress)), _SLOWEST)
    for group in optimizer.param_groups:
        group.update(lr=slowed * lr, betas=(beta1, 1 - slowed * (1 - beta2)))
    if isinstance(network.likelihood, noisynat.HeteroscedasticGaussianLikelihood):
        begin, end = course.noise_warmup
        network.likelihood.strength.fill_(min(max((progress - begin) / (end - begin), 0.0), 1.0))
    final = network.kl_weight
    network.kl_weight = final * _KL_START ** (1 - progress)
    try:
        history = noisynat.fit(network, optimizer, data, 1, progress=verbose)
    finally:
        network.kl_weight = final
    return dict(history), min(progress + len(data) / _MOST_STEPS, 1.0), optimizer.state_dict()


def optimizer_for(network: noisynat.VariationalNetwork, course: Course) -> noisynat.NoisyNaturalGradient:
    """The optimizer of the network's posterior."""
    short = course.shortness
    if network.structure == "dense":
        return noisynat.NoisyNaturalGradient(network, lr=short**0.5 * course.learning_rate / 2, **_DENSE)
    return noisynat.NoisyNaturalGradient(
        network,
        lr=short**0.8 * course.learning_rate,
        betas=(0.9, 1 - 0.0125 * short),
        kl_clip=1e-3 * short,
        stats_every=1 if course.batch_size < _LARGE_BATCH else _STATS_EVERY,
        refresh_every=round(20 / short**0.5),
        fisher="mc" if network.layers[-1].out_features >= _SAMPLED_FROM else None,
    )


def _batches(
    network: noisynat.VariationalNetwork, x: Tensor, y: Tensor, course: Course, seed: int
) -> noisynat.TensorBatches:
    """Batches in which every network of the mixture sees the examples in an order of its own."""
    replicas = network.replicas
    return noisynat.TensorBatches(
        x.expand(*replicas, *x.shape), y.expand(*replicas, *y.shape), course.batch_size, replicas=replicas, seed=seed
    )


def _join(columns: dict[str, list[Any]], history: noisynat.History) -> None:
    for key, values in history.items():
        columns.setdefault(key, []).extend(values)
