"""The protocol that every structure of the curvature matrix obeys, and the safety that all share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from noisynat import linalg
from noisynat.compiling import is_compiling
from noisynat.curvature.inverse import DampedInverse
from noisynat.curvature.statistics import MovingAverage
from noisynat.curvature.step import Step
from noisynat.errors import CurvatureError

_MAX_CONSECUTIVE_FAILURES = 3


class Curvature(ABC):
    """A moving average C of per-example Fisher matrices of one weight matrix, and (C + gamma I)^-1.

    A structure supplies three things: how activations and gradients become statistics, how statistics are
    prepared for inversion, and how they are inverted at a given damping. Statistics that are not finite are
    skipped and counted; a factorization that fails keeps the last good one, and three failures in a row
    raise :class:`~noisynat.errors.CurvatureError`, all of it per batch element (replica).

    Args:
        out_features: rows of the weight matrix.
        in_features: its columns, the bias's included.
        batch_shape: leading (replica) dimensions.
        initial_precision: C starts at this multiple of the identity, with a weight that decays as decay^k;
            0 starts from the first batch alone and debiases.
        dtype: of the statistics.
        device: of the statistics.
        name: of the layer, for messages.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        batch_shape: Sequence[int] = (),
        *,
        initial_precision: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        name: str = "layer",
    ) -> None:
        if initial_precision < 0:
            raise ValueError(f"initial_precision must be at least 0, got {initial_precision}")
        self.shape = (out_features, in_features)
        self.batch_shape = torch.Size(batch_shape)
        self.name = name
        informative = initial_precision > 0
        self.averages = {
            key: MovingAverage(value, informative=informative)
            for key, value in self._initial(initial_precision, dtype, torch.device(device or "cpu")).items()
        }
        self.skipped = torch.zeros(self.batch_shape, dtype=torch.int64, device=device)
        self.failures = torch.zeros(self.batch_shape, dtype=torch.int64, device=device)
        self.statistics_due = False  # whether the next loss's batch is to be accumulated; set by an optimizer
        self.prepared: dict[str, Tensor] = {}
        self._step_inverse: DampedInverse | None = None
        self._step_damping = 0.0
        self._damping = torch.ones(*self.batch_shape, 1, 1, dtype=dtype, device=device)
        self.snapshot = self._candidate()
        self._factorize_snapshot()

    # --- what a structure supplies ----------------------------------------------------------------

    @abstractmethod
    def _initial(self, precision: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """First values of the statistics: ``precision`` times the identity, in this structure's terms."""

    @abstractmethod
    def accumulate(self, a: Tensor, g: Tensor) -> None:
        """Take in a (micro-)batch, to be blended in at the next :meth:`commit`.

        Args:
            a: layer inputs with the constant 1 appended, (*batch, B, T, in); T locations, 1 without sharing.
            g: gradients of single examples' pseudo log-likelihoods, (K, *batch, B, T, out), K columns of
                the Hessian's root (1 for sampled or empirical Fisher).
        """

    @abstractmethod
    def _invert(self, prepared: dict[str, Tensor], damping: Tensor) -> tuple[DampedInverse, Tensor]:
        """(C + damping)^-1 and the mask (*batch,) of elements that failed."""

    @abstractmethod
    def _dense(self, snapshot: dict[str, Tensor]) -> Tensor:
        """C itself (*batch, D, D), from the statistics alone."""

    def _prepare(self, snapshot: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """What of the inversion does not depend on the damping (eigenvectors), and the mask of failures."""
        return snapshot, self._nothing_failed()

    # --- statistics -------------------------------------------------------------------------------

    @property
    def is_small(self) -> bool:
        """Whether :meth:`commit` gains from being part of a compiled step."""
        return all(average.is_small for average in self.averages.values())

    def commit(self, decay: float | Tensor) -> None:
        """Blend all that was accumulated, as one batch, into the averages: C <- decay C + (1 - decay) C_batch.

        The decay is a tensor () where code is compiled.
        """
        if not self.has_pending:
            return
        bounds = sum(average.pending_bound() for average in self.averages.values())
        assert isinstance(bounds, Tensor)
        if not is_compiling() and math.isfinite(bounds.sum().item()):
            finite = None
        else:
            finite = torch.isfinite(bounds).expand(self.batch_shape)
            self.skipped = self.skipped + (~finite).to(self.skipped.dtype)
        for average in self.averages.values():
            average.commit(decay, finite)

    def update(self, a: Tensor, g: Tensor, decay: float = 0.99) -> None:
        """:meth:`accumulate` and :meth:`commit` one batch."""
        self.accumulate(a, g)
        self.commit(decay)

    def discard(self) -> None:
        """Forget what was accumulated and not committed."""
        for average in self.averages.values():
            average.discard()

    @property
    def has_pending(self) -> bool:
        """Whether something waits for :meth:`commit`."""
        return any(average.has_pending for average in self.averages.values())

    # --- the inverse ------------------------------------------------------------------------------

    def refresh(self, damping: Tensor | float) -> None:
        """Factorize the current averages at ``damping``: a number, (*batch, 1, 1), or one per weight for ``Dense``.

        Raises:
            CurvatureError: when an element failed three times in a row.
        """
        for average in self.averages.values():
            average.flush()
        candidate = self._candidate()
        prepared, failed = self._prepare(candidate)
        damping = self._as_damping(damping)
        inverse, not_inverted = self._invert(prepared, damping)
        failed = failed | not_inverted
        if bool(failed.any()):
            self._count_failures(failed, candidate)
            candidate = _choose(failed, self.snapshot, candidate)
            prepared = _choose(failed, self.prepared, prepared)
            damping = torch.where(failed[..., None, None], self._damping, damping)
            inverse, _ = self._invert(prepared, damping)
        else:
            self.failures = torch.zeros_like(self.failures)
        self.snapshot, self.prepared, self._damping = candidate, prepared, damping
        self._install(inverse)

    def redamp(self, damping: Tensor | float) -> None:
        """Keep the statistics of the last :meth:`refresh` and change its damping."""
        damping = self._as_damping(damping)
        inverse, failed = self._invert(self.prepared, damping)
        if bool(failed.any()):
            damping = torch.where(failed[..., None, None], self._damping, damping)
            inverse, _ = self._invert(self.prepared, damping)
        self._damping = damping
        self._install(inverse)

    def solve(self, matrix: Tensor, extra_damping: float = 0.0) -> Tensor:
        """(C + (gamma + extra_damping) I)^-1 V for V (*batch, out, in). Only steps use the extra damping."""
        return self.damped(extra_damping).solve(matrix)

    def step(self, v: Tensor, extra_damping: float = 0.0) -> Step:
        """As :meth:`solve` for a matrix v (*batch, out, in), in the form that costs least to add to the weights."""
        return self.damped(extra_damping).step(v)

    def damped(self, extra_damping: float) -> DampedInverse:
        """(C + (gamma + extra_damping) I)^-1."""
        if extra_damping == 0:
            return self.inverse
        if self._step_inverse is None or self._step_damping != extra_damping:
            self._step_inverse, _ = self._invert(self.prepared, self._damping + extra_damping)
            self._step_damping = extra_damping
        return self._step_inverse

    def sqrt_solve(self, noise: Tensor) -> Tensor:
        """L vec(E), L L^T = (C + gamma I)^-1, for noise (*sample, *batch, out, in)."""
        return self.inverse.sqrt_solve(noise)

    def logdet(self) -> Tensor:
        """log |C + gamma I| (*batch,)."""
        return self.inverse.logdet()

    def trace_inverse(self) -> Tensor:
        """tr (C + gamma I)^-1 (*batch,)."""
        return self.inverse.trace_inverse()

    def latest(self) -> Tensor:
        """C itself (*batch, D, D), of all statistics so far, whenever the last :meth:`refresh` was.

        In float64 and positive semi-definite up to its rounding, so that even the smallest damping makes it definite.
        """
        return self._dense({key: value.double() for key, value in self._candidate().items()})

    def to_dense(self) -> Tensor:
        """C + gamma I (*batch, D, D), D = out * in in row-major order, as of the last refresh."""
        dense = self._dense(self.snapshot)
        damping = self._damping.to(dense.dtype).expand(*self.batch_shape, *self.shape).flatten(-2)
        return dense + torch.diag_embed(damping)

    # --- state ------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """All that training resumes from: averages, the statistics of the last refresh, damping and counters.

        Inverses and eigenvectors are rebuilt, not stored.
        """
        state = {"skipped": self.skipped, "failures": self.failures, "damping": self._damping}
        for key, average in self.averages.items():
            state[f"average.{key}"] = average.value
            state[f"weight.{key}"] = average.weight
            state[f"refreshed.{key}"] = self.snapshot[key]
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_tensors` gave, device and dtype included, and rebuild the inverse."""
        own = {key: value.clone() for key, value in state.items()}
        self.skipped, self.failures, self._damping = own["skipped"], own["failures"], own["damping"]
        for key, average in self.averages.items():
            average.value, average.weight = own[f"average.{key}"], own[f"weight.{key}"]
            average.discard()
        self.snapshot = {key: own[f"refreshed.{key}"] for key in self.averages}
        self._factorize_snapshot()

    # --- helpers ----------------------------------------------------------------------------------

    def _candidate(self) -> dict[str, Tensor]:
        return {key: average.debiased() for key, average in self.averages.items()}

    def _factorize_snapshot(self) -> None:
        self.prepared, _ = self._prepare(self.snapshot)
        inverse, _ = self._invert(self.prepared, self._damping)
        self._install(inverse)

    def _install(self, inverse: DampedInverse) -> None:
        self.inverse = inverse
        self._step_inverse = None

    def _as_damping(self, damping: Tensor | float) -> Tensor:
        return torch.zeros_like(self._damping) + torch.as_tensor(
            damping, dtype=self._damping.dtype, device=self._damping.device
        )

    def _nothing_failed(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=torch.bool, device=self.skipped.device)

    def _count_failures(self, failed: Tensor, candidate: dict[str, Tensor]) -> None:
        self.failures = torch.where(failed, self.failures + 1, 0)
        if bool((self.failures >= _MAX_CONSECUTIVE_FAILURES).any()):
            worst = {key: f"{_condition_number(key, value).max().item():.1e}" for key, value in candidate.items()}
            raise CurvatureError(
                f"the curvature of {self.name!r} could not be factorized {_MAX_CONSECUTIVE_FAILURES} times in a row "
                f"(condition numbers: {worst}); lower the learning rate, raise the damping or refresh more often"
            )


def _condition_number(key: str, value: Tensor) -> Tensor:
    """Of a statistic: a symmetric matrix (capital letter), or the diagonal of one (*batch, out, in)."""
    if key.isupper():
        return linalg.condition_number(linalg.symmetrize(value))
    return value.amax((-2, -1)) / value.amin((-2, -1))


def _choose(failed: Tensor, old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per batch element: ``old`` where it failed, ``new`` elsewhere."""
    batch_dims = failed.dim()
    return {
        key: torch.where(failed.reshape(failed.shape + (1,) * (value.dim() - batch_dims)), old[key], value)
        for key, value in new.items()
    }
