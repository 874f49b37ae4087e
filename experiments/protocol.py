"""The UCI regression protocol: fixed splits, standardization on each training part, all splits as replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import uci_data


@dataclass(frozen=True)
class Splits:
    """All splits of a data set, stacked: split r is replica r.

    Args:
        name: of the data set.
        x_train: standardized inputs (R, N, features).
        y_train: standardized targets (R, N, 1).
        x_test: inputs of the test parts, by the training parts' mean and scale, (R, n, features).
        y_test: likewise, (R, n, 1).
        y_mean: of the training targets, (R,), raw units.
        y_scale: their standard deviation, (R,), raw units.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    y_mean: Tensor
    y_scale: Tensor

    @property
    def count(self) -> int:
        """R, the number of splits."""
        return len(self.x_train)

    @property
    def num_train(self) -> int:
        """N, the training examples of a split."""
        return self.x_train.shape[1]

    @property
    def features(self) -> int:
        """Input columns."""
        return self.x_train.shape[2]


_TENSORS = ("x_train", "y_train", "x_test", "y_test", "y_mean", "y_scale")


def inner_splits(splits: Splits, fraction: float = 0.1, seed: int = 0) -> Splits:
    """Every training part divided again: what is chosen inside it is judged on the part held out.

    Args:
        splits: the outer splits; their test parts are not looked at, and their standardization stays.
        fraction: of each training part that is held out, at least one row.
        seed: of the permutations, one per split.

    Returns:
        Splits whose test parts are the rows held out.
    """
    held_out = max(round(fraction * splits.num_train), 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(splits.count, splits.num_train, generator=generator, dtype=torch.float64).argsort(1)
    parts = {}
    for key, value in {"x": splits.x_train, "y": splits.y_train}.items():
        shuffled = value.gather(1, order.unsqueeze(-1).expand(*order.shape, value.shape[-1]))
        parts[f"{key}_test"], parts[f"{key}_train"] = shuffled[:, :held_out], shuffled[:, held_out:]
    return Splits(splits.name, **parts, y_mean=splits.y_mean, y_scale=splits.y_scale)


def side_by_side(parts: Sequence[Splits]) -> Splits:
    """The splits of all ``parts`` as one, those of the first part first."""
    stacked = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    return Splits(parts[0].name, **stacked)


def rescaled(splits: Splits, scale: Tensor) -> Splits:
    """Inputs times ``scale`` (R, features): as prior variances times its squares, an input."""
    scale = scale.to(splits.x_train.dtype).unsqueeze(1)
    return replace(splits, x_train=scale * splits.x_train, x_test=scale * splits.x_test)


def load_splits(data: uci_data.Dataset, limit: int | None = None, dtype: torch.dtype = torch.float32) -> Splits:
    """The first ``limit`` (None: all) splits of ``data``, each standardized on its own training part.

    A feature that is constant in a training part becomes zero there and is left unscaled.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for split in data.splits()[:limit]:
        x, y = data.X[split.train], data.y[split.train]
        x_scale = x.std(0)
        x_scale[x_scale == 0] = 1.0
        values = {
            "x_train": (x - x.mean(0)) / x_scale,
            "y_train": ((y - y.mean()) / y.std())[:, None],
            "x_test": (data.X[split.test] - x.mean(0)) / x_scale,
            "y_test": ((data.y[split.test] - y.mean()) / y.std())[:, None],
            "y_mean": y.mean(),
            "y_scale": y.std(),
        }
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    return Splits(data.name, **{key: torch.as_tensor(np.stack(value), dtype=dtype) for key, value in columns.items()})
