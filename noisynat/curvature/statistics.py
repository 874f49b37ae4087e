"""Debiased moving averages of second moments.

An average starts either from a prior value of full weight, which then decays as decay^k, or from nothing, in
which case it is divided by the weight 1 - decay^k that it has gathered (Kingma and Ba 2015, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


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

    def pending_is_finite(self) -> Tensor:
        """Mask (*batch,) of the elements whose pending rows are all finite."""
        finite = torch.ones(self.value.shape[:-2], dtype=torch.bool, device=self.value.device)
        for left, right, _ in self._pending:
            finite = finite & torch.isfinite(left).flatten(-2).all(-1)
            if right is not left:
                finite = finite & torch.isfinite(right).flatten(-2).all(-1)
        return finite

    def commit(self, decay: float, finite: Tensor) -> None:
        """Blend the pooled batch in with weight ``1 - decay``; elements outside the mask ``finite`` (*batch,) stay."""
        total = sum(count for _, _, count in self._pending)
        everything = bool(finite.all())
        updated = self.value if everything else torch.where(finite[..., None, None], self.value, 0)
        keep = decay
        for left, right, _ in self._pending:
            rows = _matched(left, updated), _matched(right, updated)
            if not everything:
                rows = tuple(torch.where(finite[..., None, None], r, 0) for r in rows)  # type: ignore[assignment]
            updated = _scaled_add_product(updated, rows[0], rows[1], keep, (1 - decay) / total)
            keep = 1.0
        if everything:
            self.value = updated
            self.weight = decay * self.weight + (1 - decay)
        else:
            self.value = torch.where(finite[..., None, None], updated, self.value)
            self.weight = torch.where(finite, decay * self.weight + (1 - decay), self.weight)
        self._pending.clear()

    def debiased(self) -> Tensor:
        """The average (*batch, m, n), divided by its weight; a new tensor is not promised."""
        if self.informative:
            return self.value
        divisor = self.weight.clamp(min=torch.finfo(torch.float64).tiny).to(self.value.dtype)
        return self.value / divisor[..., None, None]


def _matched(rows: Tensor, value: Tensor) -> Tensor:
    return rows.to(value.dtype).expand(*value.shape[:-2], *rows.shape[-2:])


def _scaled_add_product(value: Tensor, left: Tensor, right: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta value + alpha left^T right`` as one fused product over the flattened batch."""
    flat = torch.baddbmm(
        value.reshape(-1, *value.shape[-2:]),
        left.mT.reshape(-1, left.shape[-1], left.shape[-2]),
        right.reshape(-1, *right.shape[-2:]),
        beta=beta,
        alpha=alpha,
    )
    return flat.reshape(value.shape)
