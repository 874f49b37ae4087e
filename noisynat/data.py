"""Shuffled batches of tensors in memory, one permutation per replica, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisynat.random import derived_seed

_ENTRIES_AT_ONCE = 2**18  # of inputs that are gathered; single batches may have more


class TensorBatches:
    """Batches of (x, y), reshuffled every epoch; faster than a DataLoader where the data fit in memory.

    Args:
        x: inputs (*replicas, N, ...).
        y: targets (*replicas, N, ...).
        batch_size: B; the last batch of an epoch may be smaller.
        replicas: leading dimensions of x and y; each replica is shuffled by itself.
        shuffle: whether to reshuffle.
        seed: of the permutations; by default derived from torch's global generator, which is not advanced.

    Raises:
        ValueError: if x and y disagree, are empty, or batch_size is not positive.

    Example:
        >>> import torch, noisynat
        >>> batches = noisynat.TensorBatches(torch.zeros(5, 2), torch.zeros(5, 1), batch_size=2)
        >>> [len(x) for x, y in batches]
        [2, 2, 1]
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int = 32,
        *,
        replicas: Sequence[int] = (),
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        lead = len(replicas)
        if x.shape[: lead + 1] != y.shape[: lead + 1] or x.shape[:lead] != torch.Size(replicas):
            raise ValueError(
                f"x {tuple(x.shape)} and y {tuple(y.shape)} must begin with the same (*replicas, N), "
                f"replicas={tuple(replicas)}"
            )
        if x.shape[lead] == 0:
            raise ValueError("there are no examples")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.x, self.y = x, y
        self.batch_size, self.shuffle = batch_size, shuffle
        self.replicas = torch.Size(replicas)
        self.num_examples = x.shape[lead]
        self._generator = torch.Generator().manual_seed(derived_seed("batches") if seed is None else seed)
        self._epoch_state = self._generator.get_state()
        self._next_batch = 0
        self._resuming = False

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._resuming:
            self._resuming = False
        else:
            self._epoch_state = self._generator.get_state()
            self._next_batch = 0
        order = self._order()
        while self._next_batch < len(self):
            for batch in self._gather(order, self._next_batch):
                self._next_batch += 1
                yield batch
        self._epoch_state, self._next_batch = self._generator.get_state(), 0  # the next epoch's beginning

    def _order(self) -> Tensor:
        if not self.shuffle:
            order = torch.arange(self.num_examples).expand(*self.replicas, -1)
        elif self.replicas:
            shape = (*self.replicas, self.num_examples)
            keys = torch.rand(shape, generator=self._generator, dtype=torch.float64)
            order = torch.from_numpy(np.argsort(keys.numpy(), axis=-1))  # several times faster than PyTorch's
        else:
            order = torch.randperm(self.num_examples, generator=self._generator)
        return order.to(self.x.device)

    def _gather(self, order: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from number ``first`` on, as many small ones at once as are cheaper together."""
        rest = order[..., first * self.batch_size :]
        size = min(self.batch_size, rest.shape[-1])
        entries = size * self.x.numel() // self.num_examples
        count = min(max(_ENTRIES_AT_ONCE // max(entries, 1), 1), rest.shape[-1] // size)
        chosen = rest[..., : count * size].unflatten(-1, (count, size)).movedim(-2, 0)  # (count, *replicas, size)
        return zip(self._take(self.x, chosen), self._take(self.y, chosen), strict=True)

    def _take(self, values: Tensor, chosen: Tensor) -> Tensor:
        lead = len(self.replicas)
        if values.is_contiguous():  # of which rows can be copied whole
            first = torch.arange(self.replicas.numel(), device=chosen.device) * self.num_examples
            rows = chosen + first.reshape(*self.replicas, 1)
            return values.flatten(0, lead).index_select(0, rows.flatten()).unflatten(0, chosen.shape)
        own = [
            torch.arange(n, device=chosen.device).reshape(-1, *(1,) * (lead - i)) for i, n in enumerate(self.replicas)
        ]
        return values[(*own, chosen)]

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands: the epoch's permutation and the next batch."""
        return {"epoch_state": self._epoch_state, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration go on where :meth:`state_dict` was called."""
        self._epoch_state = state["epoch_state"]
        self._generator.set_state(state["epoch_state"])
        self._next_batch = int(state["next_batch"])
        self._resuming = True
