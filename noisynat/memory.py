"""How much memory a network's posteriors will take, before any of it is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from noisynat.layers.convert import convertible, matrix_shape
from noisynat.layers.norm import Normalization
from noisynat.posteriors.families import FORMS, FactorSizes, Rank, Structure

_UNITS = ("KiB", "MiB", "GiB", "TiB")
_DOUBLE = 8  # bytes; a dense curvature averages in double precision


class LayerSize(NamedTuple):
    """Of a layer's weights.

    Args:
        shape: (groups, out / groups, columns).
        diagonal_inputs: whether of the Kronecker factor A only the diagonal is kept.
        full_covariance: whether Kronecker posteriors are dense in each group.
    """

    shape: tuple[int, int, int]
    diagonal_inputs: bool = False
    full_covariance: bool = False


@dataclass(frozen=True)
class MemoryRow:
    """What one posterior takes.

    Args:
        name: of its layers.
        structure: its family.
        side: rows and columns of its largest matrix.
        bytes: of all replicas.
    """

    name: str
    structure: str
    side: int
    bytes: int


@dataclass(frozen=True)
class MemoryForecast:
    """A row per posterior: statistics, factors and inverses of all replicas; activations and optimizer not counted.

    While a factorization is renewed, one posterior at a time needs up to as much again.
    """

    rows: tuple[MemoryRow, ...]

    @property
    def total(self) -> int:
        """Bytes of all posteriors."""
        return sum(row.bytes for row in self.rows)

    @property
    def largest(self) -> MemoryRow:
        """The posterior that takes most."""
        return max(self.rows, key=lambda row: row.bytes)

    def __str__(self) -> str:
        table = [("posterior of", "structure", "largest matrix", "memory")]
        table += [(r.name, r.structure, f"{r.side} x {r.side}", in_words(r.bytes)) for r in self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, f"{in_words(self.total)} in all"])


def memory_forecast(
    net: nn.Module,
    posterior: Structure = "kronecker",
    *,
    replicas: int | Sequence[int] | None = None,
    rank: Rank = "auto",
    max_factor_dim: int = 8192,
    layers: str | Sequence[str] | None = None,
) -> MemoryForecast:
    """What the posteriors of a :class:`~noisynat.VariationalNetwork` with these arguments would take.

    Args:
        net: of any size, also on the device ``"meta"``; nothing is allocated.
        posterior: the family.
        replicas: as for the network.
        rank: as for the network.
        max_factor_dim: as for the network.
        layers: as for the network.

    Raises:
        ValueError: if an entry of ``layers`` fits none.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(784, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10))
        >>> print(noisynat.memory_forecast(net, "kronecker"))
        posterior of  structure  largest matrix  memory
        ------------  ---------  --------------  -------
        0             kronecker  1000 x 1000     6.4 MiB
        2             kronecker  1001 x 1001     3.9 MiB
        10.3 MiB in all
        >>> noisynat.memory_forecast(net, "dense").largest.side
        795010
    """
    found = convertible(net, [layers] if isinstance(layers, str) else layers)
    sizes = {
        name: LayerSize(matrix_shape(module), isinstance(module, nn.Embedding), isinstance(module, Normalization))
        for name, module in found.items()
    }
    size = next(iter(found.values())).weight.element_size() if found else 4
    count = replicas if isinstance(replicas, int) else math.prod(replicas or ())
    return forecast(sizes, posterior, count, size, FactorSizes(rank, max_factor_dim))


def forecast(
    layers: dict[str, LayerSize], structure: str, replicas: int, element_size: int, sizes: FactorSizes
) -> MemoryForecast:
    """As :func:`memory_forecast`, from the sizes of the layers by name.

    Args:
        layers: with a posterior.
        structure: the family.
        replicas: their number, 1 for none.
        element_size: bytes of a weight's entry.
        sizes: of Kronecker factors.
    """
    if structure == "dense":
        layers = {"+".join(layers): LayerSize((1, 1, sum(math.prod(size.shape) for size in layers.values())))}
    elif structure == "dense_per_layer":
        layers = {name: LayerSize((1, 1, math.prod(size.shape))) for name, size in layers.items()}
    rows = []
    for name, ((groups, out, columns), diagonal_inputs, full_covariance) in layers.items():
        own = "dense_per_layer" if full_covariance and structure in FORMS else structure
        ranks = sizes.kept(own, (out, columns))
        if diagonal_inputs and structure in FORMS:
            ranks = (out if ranks is None else ranks[0], None)
        if ranks is None:
            entries, side = _entries(own, out, columns, element_size), _side(own, out, columns)
        else:
            entries, side = _truncated((out, columns), ranks), _largest((out, columns), ranks)
        rows.append(MemoryRow(name, own, side, int(replicas * groups * element_size * entries)))
    return MemoryForecast(tuple(rows))


def check(found: MemoryForecast, device: torch.device) -> None:
    """Refuse what ``device`` cannot hold even if it held nothing else.

    Raises:
        MemoryError: with the posterior that takes most.
    """
    there = _capacity(device)
    if there is None or found.total <= there:
        return
    worst = found.largest
    raise MemoryError(
        f"the {worst.structure!r} posterior of {worst.name!r}, with matrices of {worst.side} x {worst.side}, takes "
        f"{in_words(worst.bytes)} of {in_words(found.total)} in all, and this device has {in_words(there)}; use "
        "posterior='kronecker' or 'diagonal', fewer replicas, or layers= to leave layers out"
    )


def in_words(size: float) -> str:
    """Bytes with a unit, as ``"1.5 GiB"``."""
    if size < 1024:
        return f"{size:.0f} bytes"
    power = min(int(math.log2(size) / 10), len(_UNITS))
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"


def _side(structure: str, out: int, columns: int) -> int:
    if structure in ("dense", "dense_per_layer"):
        return out * columns
    return 1 if structure in ("diagonal", "mean_field") else max(out, columns)


def _entries(structure: str, out: int, columns: int, element_size: int) -> float:
    """Entries of a weight's size that a posterior keeps: averages, those of the last refresh, inverses, the step's."""
    weights, factors = out * columns, out**2 + columns**2
    if structure == "mean_field":
        return weights  # log standard deviations
    if structure == "diagonal":
        return 5 * weights
    if structure == "kronecker":
        return 3 * factors + 2 * weights
    if structure == "matrix_normal":
        return 4 * factors + 2 * weights
    if structure == "eigen_corrected":
        return 3 * factors + 4 * weights
    return weights**2 * (2 + 2 * _DOUBLE / element_size)


def _largest(shape: tuple[int, int], ranks: tuple[int | None, int | None]) -> int:
    return max((size for size, rank in zip(shape, ranks, strict=True) if rank is not None), default=1)


def _truncated(shape: tuple[int, int], ranks: tuple[int | None, int | None]) -> int:
    """Entries of factors of which leading eigenvalues, or the diagonal, are kept."""
    entries, table = 0, 2
    for size, rank in zip(shape, ranks, strict=True):
        entries += 2 * size if rank is None else size**2 + size * rank
        table *= size if rank is None else rank + 1
    return entries + table


def _capacity(device: torch.device) -> int | None:
    """All memory of ``device``, in bytes; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" else None
    except (AttributeError, OSError, ValueError):  # not on this platform
        return None
