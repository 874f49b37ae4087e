"""A training step as one compiled function: forward pass, backward pass and the moves of all parameters.

In small networks most of a step is the calling of operations, one by one; compiled, there are few.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisynat import border
from noisynat.network import VariationalNetwork
from noisynat.optim.guards import may_change
from noisynat.optim.moves import MeanMove, Pace, PointMove, move_means, move_point_estimates
from noisynat.optim.noisy import NoisyNaturalGradient
from noisynat.passes import Statistics
from noisynat.precision import is_reduced, passes_in
from noisynat.random import Call

_OFTEN = 10  # times that a kind of step has come
_SMALLEST_SHARE = 4096  # numbers of a loop for which another thread is called in
_LIMIT = 64  # of compiled kinds of networks and batches, in all of the process
Backend = str | Callable[..., Any]


class _Kind(NamedTuple):
    """Steps that are alike."""

    feeds: bool
    training: bool
    precision: torch.dtype | None
    shape: torch.Size
    dtype: torch.dtype


class _Plan(NamedTuple):
    """What one step of a kind tells of all others."""

    outputs: Tensor
    """Of the network, as to shape, dtype and device; all zero."""
    calls: list[Call]
    """For random numbers."""


class CompiledStep:
    """``step(x, y)``: zero_grad, forward and backward pass and the optimizer's step as one function of torch.compile.

    The numbers are those of the usual loop up to rounding, random ones included, and both may be mixed; but dropout has
    its own, and layers of some hundred units have local noise where the usual loop finds separable cheaper. Steps are
    compiled for batches of a shape that comes twice in a row, or for the tenth time, as an epoch's smaller last one
    does; once plain and once for feeding the curvature. Factorizations run as usual. Compiling takes from some seconds
    to a minute, most of it only the first time on a machine: it pays for long trainings of small networks, or of many
    replicas. What you change between steps is followed; functions that are exchanged inside of this library or of
    PyTorch are not.

    Args:
        optimizer: whose network is trained. What cannot be compiled, such as a likelihood of your own that looks at
            numbers, is said in a warning and runs as usual.
        backend: of ``torch.compile``.

    Raises:
        TypeError: if the optimizer is none of this library's.
        ValueError: if the network's noise is ``"separable"``, and takes another number of random numbers every time.
        RuntimeError: if this PyTorch cannot compile backward passes; 2.13 can.

    Example:
        >>> import torch, noisynat
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(2, 1), noisynat.GaussianLikelihood(), num_data=100)
        >>> step = noisynat.CompiledStep(noisynat.NoisyKFAC(bnn.train()), backend="eager")  # "inductor" makes it fast
        >>> step(torch.randn(10, 2), torch.randn(10, 1)).shape
        torch.Size([])
    """

    def __init__(self, optimizer: NoisyNaturalGradient, *, backend: Backend = "inductor") -> None:
        if not isinstance(optimizer, NoisyNaturalGradient):
            raise TypeError(f"CompiledStep takes an optimizer of noisynat, got {type(optimizer).__name__}")
        from torch._dynamo import config  # takes seconds, which those who do not compile need not wait

        if not hasattr(config, "trace_autograd_ops"):
            raise RuntimeError(f"PyTorch {torch.__version__} cannot compile backward passes; 2.13 can")
        self.optimizer, self.network = optimizer, optimizer.network
        for posterior in self.network.posteriors:
            posterior.keep_shapes()
        self._compiled = {False: _compiled(_pass_and_move, backend), True: _compiled(_pass_and_feed, backend)}
        self._plans: dict[_Kind, _Plan] = {}
        self._last: dict[bool, _Kind] = {}  # of the steps that feed the curvature, and of the others
        self._seen: Counter[_Kind] = Counter()
        self._ready: set[_Kind] = set()
        self._refused: set[_Kind] = set()
        self._numbers = _Numbers()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take a step.

        Args:
            x: inputs, as for :meth:`noisynat.VariationalNetwork.loss`.
            y: targets, likewise.

        Returns:
            The batch's mean negative log-likelihood, of before the step, (*replicas,), nats per example.

        Raises:
            ValueError, TypeError: as for :meth:`noisynat.VariationalNetwork.loss`.
        """
        device = self.network.layers[0].mean.device
        if not is_reduced(device):
            return self._step(x, y, None)
        precision = torch.get_autocast_dtype(device.type)  # of the pass; the rest has its own
        with torch.autocast(device.type, enabled=False):
            return self._step(x, y, precision)

    def _step(self, x: Tensor, y: Tensor, precision: torch.dtype | None) -> Tensor:
        network = self.network
        x = border.with_replicas(border.checked_inputs(x, network.layers[0].mean), network.replicas)
        kind = _Kind(network.statistics_due, network.training, precision, x.shape, x.dtype)
        self._seen[kind] += 1
        comes_again = self._last.get(kind.feeds) == kind or self._seen[kind] >= _OFTEN
        if kind in self._refused or not (comes_again or kind in self._ready):
            loss = self._as_usual(x, y, kind)
        else:
            loss = self._planned(x, y, kind, self._plans[kind])
        self._last[kind.feeds] = kind
        return loss

    def _planned(self, x: Tensor, y: Tensor, kind: _Kind, plan: _Plan) -> Tensor:
        network = self.network
        y = network.checked_targets(plan.outputs, border.checked_targets(y))
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        self.optimizer.forget()
        self.optimizer.prepare(x.shape[len(network.replicas)])
        random_numbers = network.training_stream.repeat(plan.calls)
        paces, decays = self._with_tensors(self.optimizer.next_paces(), kind.feeds)
        means, points = self.optimizer.mean_moves(paces, decays), self.optimizer.point_moves(paces)
        loss, statistics = self._run(
            kind, network, x, y, random_numbers, means, points, self.optimizer.kl_clip, kind.precision
        )
        network.accumulate(statistics)
        self.optimizer.finish_step()
        return loss

    def _as_usual(self, x: Tensor, y: Tensor, kind: _Kind) -> Tensor:
        network = self.network
        self.optimizer.zero_grad()
        with network.training_stream.recorded() as calls, passes_in(kind.precision, x.device):
            loss, outcome = network.training_pass(x, border.checked_targets(y))
        loss.sum().backward()
        network.take_in(outcome)
        self.optimizer.step()
        self._plans[kind] = _Plan(torch.zeros_like(outcome.f[..., :1, :1]).expand_as(outcome.f), calls)
        return loss.detach()

    def _run(self, kind: _Kind, *arguments: Any) -> tuple[Tensor, Statistics]:
        if kind in self._ready:
            try:
                return self._compiled[kind.feeds](*arguments)
            except _failures():  # something has changed, and compiling anew takes the settings below
                pass
        try:
            with _settings(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's compiler, at itself
                result = self._compiled[kind.feeds](*arguments)
        except _failures() as error:
            warnings.warn(f"this step is not compiled, but runs as usual: {error}", stacklevel=3)
            self._refused.add(kind)
            return _pass_and_move(*arguments)
        self._ready.add(kind)
        return result

    def _with_tensors(self, paces: Sequence[Pace], feeds: bool) -> tuple[list[Pace], Sequence[Tensor]]:
        """With tensors for what changes between steps, and the decays of averages that the step itself blends."""
        decays = self.optimizer.decays() if feeds and self._blends else []
        changing = [float(number) for pace in paces for number in pace[:-1]]
        tensors = self._numbers.tensors(changing + decays, self.network.layers[0].mean)
        size = len(changing) // len(paces)
        rows = [tensors[start : start + size] for start in range(0, len(changing), size)]
        with_tensors = [Pace._make([*row, pace.damping]) for row, pace in zip(rows, paces, strict=True)]
        return with_tensors, tensors[len(changing) :]

    @property
    def _blends(self) -> bool:
        """Whether the curvature's averages take in a batch inside of the compiled function: where they are small."""
        moved = self.optimizer.posteriors
        return len(moved) == len(self.network.posteriors) and all(p.curvature.is_small for p in moved)


class _Numbers:
    """Numbers in tensors, as every new number would mean compiling anew; always the same tensors, which are changed."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, np.ndarray | None, list[Tensor]]] = {}

    def tensors(self, numbers: Sequence[float], like: Tensor) -> list[Tensor]:
        """One tensor () for each of ``numbers``, of ``like``'s dtype and device."""
        sort = len(numbers), like.dtype, like.device
        if sort not in self._made:
            together = torch.empty(len(numbers), dtype=like.dtype, device=like.device)
            has_array = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
            self._made[sort] = together, together.numpy() if has_array else None, list(together.unbind())
        together, array, each = self._made[sort]
        if array is None:
            together.copy_(torch.tensor(numbers, dtype=like.dtype))
        else:
            array[:] = numbers  # several times faster
        return each


def _compiled(step: Callable[..., Any], backend: Backend) -> Callable[..., tuple[Tensor, Statistics]]:
    options: dict[str, Any] = {"guard_filter_fn": may_change}
    if backend == "inductor":
        options["size_asserts"] = False  # which ask again what shapes tensors have
        options["cpp.min_chunk_size"] = _SMALLEST_SHARE
    return torch.compile(step, fullgraph=True, backend=backend, options=options)


def _settings() -> AbstractContextManager[Any]:
    """Of PyTorch's compiler, while it compiles. Shapes are constants: ``dynamic=False`` costs time in every step."""
    from torch._dynamo import config

    patch: AbstractContextManager[Any] = config.patch(
        trace_autograd_ops=True,
        recompile_limit=_LIMIT,
        automatic_dynamic_shapes=False,
        assume_static_by_default=True,
    )
    return patch


def _failures() -> tuple[type[Exception], ...]:
    """What tells that a step cannot be compiled, or has to be compiled anew."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return FailOnRecompileLimitHit, TorchDynamoException


def _pass_and_move(
    network: VariationalNetwork,
    x: Tensor,
    y: Tensor,
    numbers: Sequence[Tensor],
    means: Sequence[MeanMove],
    points: Sequence[PointMove],
    kl_clip: float | None,
    precision: torch.dtype | None,
) -> tuple[Tensor, Statistics]:
    """What is compiled: all of a step but random numbers, large averages of statistics and factorizations.

    Returns:
        The loss (*replicas,), and statistics that are still to be taken in.
    """
    with network.training_stream.given(numbers), passes_in(precision, x.device):
        loss, outcome = network.training_pass(x, y)
    loss.sum().backward()
    with torch.no_grad():
        move_means(means, kl_clip)
        move_point_estimates(points)
        network.likelihood.observe(outcome.f, outcome.y)
        network.likelihood.natural_step()
        statistics = outcome.statistics
        if statistics and any(move.decay is not None for move in means):
            network.accumulate(statistics)
            statistics = []
            for move in means:
                assert move.decay is not None  # of one, so of all
                move.posterior.curvature.commit(move.decay)
    for move in means:
        for layer in move.posterior.layers:
            layer.mean.grad = None
    for point in points:
        point.parameter.grad = None
    return loss.detach(), statistics


def _pass_and_feed(*arguments: Any) -> tuple[Tensor, Statistics]:
    """The same where statistics are taken: PyTorch finds compiled code of a function sooner if there is less of it."""
    return _pass_and_move(*arguments)
