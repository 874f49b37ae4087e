"""Debiased moving averages of second moments.

An average starts either from a prior value of full weight, which then decays as decay^k, or from nothing, in
which case it is divided by the weight 1 - decay^k that it has gathered (Kingma and Ba 2015, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 256  # rows and columns from which products are taken in blocks

_NOTHING = 1e8  # times the smallest normal number: an average that decays has hundreds of steps left


def nothing(dtype: torch.dtype) -> float:
    """What is as good as zero: next to the denormal numbers."""
    return _NOTHING * torch.finfo(dtype).tiny


class MovingAverage:
    """An exponential moving average of matrices ``left^T right / count``, kept per batch element.

    Micro-batches are pooled: everything that :meth:`accumulate` was given since the last :meth:`commit`
    counts as one batch, so gradient accumulation leaves the average as one large batch would.

    Args:
        initial: first value (*batch, m, n), which has weight one, or zero where ``informative`` is False.
        informative: whether ``initial`` counts; if not, the average is debiased.
    """

    def __init__(self, initial: Tensor, *, informative: bool = True) -> None:
        self.value = initial
        self.informative = informative
        self.weight = torch.full(initial.shape[:-2], float(informative), dtype=torch.float64, device=initial.device)
        self._pending: list[tuple[Tensor, Tensor, float]] = []

    def accumulate(self, left: Tensor, right: Tensor, count: float) -> None:
        """Add ``left^T right`` of rows (*batch, rows, m) and (*batch, rows, n), which stand for ``count`` examples."""
        self._pending.append((left, right, count))

    def discard(self) -> None:
        """Forget what was accumulated since the last commit."""
        self._pending.clear()

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def pending_bound(self) -> Tensor:
        """A bound of the entries of what is pending, () or (*batch,); it is finite where they are."""
        bound = torch.zeros((), device=self.value.device)
        for left, right, _ in self._pending:
            norm = torch.linalg.vector_norm(left, dim=(-2, -1))
            other = norm if right is left else torch.linalg.vector_norm(right, dim=(-2, -1))
            bound = bound + norm * other
        return bound

    @property
    def is_small(self) -> bool:
        """Whether a batch's products are short work, which gains from being part of a compiled step."""
        return min(self.value.shape[-2:]) < _LARGE

    def commit(self, decay: float | Tensor, finite: Tensor | None) -> None:
        """Blend the pooled batch in with weight ``1 - decay``, a tensor () where code is compiled.

        Elements outside the mask ``finite`` (*batch,), if there is one, stay as they are.
        """
        total = sum(count for _, _, count in self._pending)
        if finite is None:
            self._blend(self.value, decay, total, None)
            self.weight = decay * self.weight + (1 - decay)
        else:
            updated = torch.where(finite[..., None, None], self.value, 0)
            self._blend(updated, decay, total, finite)
            self.value = torch.where(finite[..., None, None], updated, self.value)
            self.weight = torch.where(finite, decay * self.weight + (1 - decay), self.weight)
        self._pending.clear()

    def _blend(self, value: Tensor, decay: float | Tensor, total: float, finite: Tensor | None) -> None:
        """``value <- decay value + (1 - decay) pooled batch``, in place.

        By one fused product, except for small matrices in single precision: their products are added row by row, and
        terms of size (1 - decay) / count would drown in the rounding of the average.
        """
        flat, keep = value.view(-1, *value.shape[-2:]), decay
        weight = (1 - decay) / total
        for left, right, _ in self._pending:
            left_rows = self._rows(left, finite)
            right_rows = left_rows if right is left else self._rows(right, finite)
            if isinstance(keep, Tensor) or isinstance(weight, Tensor):
                flat.mul_(keep).add_(left_rows.mT @ right_rows * weight)
            elif len(flat) == 1 and min(value.shape[-2:]) >= _LARGE:
                flat[0].addmm_(left_rows[0].mT, right_rows[0], beta=keep, alpha=weight)
            elif value.dtype == torch.float64:
                flat.baddbmm_(left_rows.mT, right_rows, beta=keep, alpha=weight)
            else:
                flat.mul_(keep).add_(left_rows.mT @ right_rows, alpha=weight)
            keep = 1.0

    def _rows(self, rows: Tensor, finite: Tensor | None) -> Tensor:
        """Rows of all elements (elements, rows, m), zeros of those outside the mask."""
        rows = rows.to(self.value.dtype).expand(*self.value.shape[:-2], *rows.shape[-2:])
        if finite is not None:
            rows = torch.where(finite[..., None, None], rows, 0)
        return rows.reshape(-1, *rows.shape[-2:])

    def flush(self) -> None:
        """Forget entries that would soon be denormal numbers, with which many processors compute many times slower."""
        torch.hardshrink(self.value, nothing(self.value.dtype), out=self.value)

    def debiased(self) -> Tensor:
        """The average (*batch, m, n), divided by its weight, as a new tensor."""
        if self.informative:
            return self.value.clone()
        divisor = self.weight.clamp(min=torch.finfo(torch.float64).tiny).to(self.value.dtype)
        return self.value / divisor[..., None, None]
