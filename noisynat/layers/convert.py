"""Swap the layers of any ``nn.Module`` for variational ones, and say which parameter got a posterior."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from noisynat.layers.base import VariationalLayer
from noisynat.layers.conv import VariationalConv1d, VariationalConv2d
from noisynat.layers.embedding import VariationalEmbedding
from noisynat.layers.linear import VariationalLinear
from noisynat.layers.norm import Normalization, VariationalNorm
from noisynat.random import RandomStream

Convertible = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding | Normalization
_CONVERSIONS: dict[type[nn.Module], Callable[..., VariationalLayer]] = {
    nn.Linear: VariationalLinear.from_linear,
    nn.Conv1d: VariationalConv1d.from_conv,
    nn.Conv2d: VariationalConv2d.from_conv,
    nn.Embedding: VariationalEmbedding.from_embedding,
    nn.BatchNorm1d: VariationalNorm.from_norm,
    nn.BatchNorm2d: VariationalNorm.from_norm,
    nn.LayerNorm: VariationalNorm.from_norm,
    nn.GroupNorm: VariationalNorm.from_norm,
}
_WEIGHT_READERS = (nn.TransformerEncoderLayer,)  # its fast path in eval() uses its children's weights directly

POSTERIOR, POINT_ESTIMATE = "posterior", "point estimate"


@dataclass(frozen=True)
class CoverageRow:
    """What became of one parameter: its name in the original network, shape per replica and fate."""

    name: str
    shape: tuple[int, ...]
    kind: str
    detail: str

    @property
    def count(self) -> int:
        """Number of entries."""
        result = 1
        for size in self.shape:
            result *= size
        return result


@dataclass(frozen=True)
class Coverage:
    """A row per parameter of the original network: posterior or point estimate."""

    rows: tuple[CoverageRow, ...]

    def __iter__(self) -> Iterator[CoverageRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fraction(self) -> float:
        """Share of the parameters' entries that have a posterior."""
        total = sum(row.count for row in self.rows)
        return sum(row.count for row in self.rows if row.kind == POSTERIOR) / total if total else 0.0

    def __str__(self) -> str:
        table = [("parameter", "shape", "entries", "kind", "detail")]
        table += [(r.name, "x".join(map(str, r.shape)) or "scalar", str(r.count), r.kind, r.detail) for r in self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, f"{self.fraction:.1%} of the entries have a posterior"])


def convert(
    net: nn.Module,
    replicas: Sequence[int],
    stream: RandomStream,
    *,
    same_start: bool = False,
    only: Sequence[str] | None = None,
) -> tuple[nn.Module, list[VariationalLayer]]:
    """A copy of ``net`` whose linear layers, convolutions, embeddings and normalizations are variational.

    ``net`` stays as it is.

    Layers stay as they are if they are frozen, subclasses of PyTorch's, tied to another module's parameters, or owned
    by a module that reads their weight itself. Forward hooks of a converted layer are not carried over.

    Args:
        net: any module, also a single ``nn.Linear``.
        replicas: leading dimensions of the variational layers.
        stream: of the initial weights of all replicas but the first.
        same_start: start all replicas from ``net``'s weights.
        only: names or patterns (``*`` for any characters) of the layers to convert; None for all.

    Returns:
        The converted network and its variational layers in the order of ``net.named_modules()``.

    Raises:
        ValueError: if an entry of ``only`` fits no layer that can be converted.
    """
    net = copy.deepcopy(net)
    places = Counter(id(module) for _, module in net.named_modules(remove_duplicate=False))
    layers: dict[int, VariationalLayer] = {}
    for name, module in convertible(net, only).items():
        layer = layer_of(module, replicas, stream, same_start=same_start)
        layer.name, layer.reused = name, places[id(module)] > 1
        layer.train(module.training)
        layers[id(module)] = layer
    if id(net) in layers:
        return layers[id(net)], list(layers.values())
    for parent in list(net.modules()):
        for name, child in list(parent._modules.items()):  # named_children() gives a shared child only once
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
    return net, list(layers.values())


def layer_of(
    module: Convertible, replicas: Sequence[int], stream: RandomStream, *, same_start: bool = False
) -> VariationalLayer:
    """The variational layer that stands for an ordinary one; arguments as for :func:`convert`."""
    return _CONVERSIONS[type(module)](module, replicas, stream, same=same_start)


def convertible(net: nn.Module, only: Sequence[str] | None = None) -> dict[str, Convertible]:
    """The layers of ``net`` that :func:`convert` would convert, by name.

    Raises:
        ValueError: if an entry of ``only`` fits none.
    """
    owners = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    read_elsewhere = {id(c) for m in net.modules() if isinstance(m, _WEIGHT_READERS) for c in m.children()}
    able: dict[str, Convertible] = {}
    for name, module in net.named_modules():
        private = id(module) not in read_elsewhere and all(owners[id(p)] == 1 for p in module.parameters())
        if private and _supported(module):
            assert isinstance(module, Convertible)
            able[name or type(module).__name__.lower()] = module
    return {name: able[name] for name in chosen(list(able), only)}


def chosen(names: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """The ``names`` that one of ``patterns`` fits, in their order; all of them if it is None.

    Raises:
        ValueError: if a pattern fits none.
    """
    if patterns is None:
        return list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{pattern!r} fits no layer that can have a posterior; these can: {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _supported(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding) and (
        module.padding_idx is not None or module.max_norm is not None or module.sparse or module.scale_grad_by_freq
    ):
        return False  # some of its entries are not like the others
    trained = all(p.requires_grad for p in module.parameters())
    return type(module) in _CONVERSIONS and module.weight is not None and trained


def matrix_shape(module: Convertible) -> tuple[int, int, int]:
    """(groups, out / groups, columns) of the weight that :func:`convert` would give a layer."""
    assert module.weight is not None
    if isinstance(module, nn.Embedding):
        return 1, module.embedding_dim, module.num_embeddings
    if isinstance(module, Normalization):
        return module.weight.numel(), 1, 1 + (module.bias is not None)
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    outputs, inputs = len(module.weight), module.weight[0].numel()
    return groups, outputs // groups, inputs + (module.bias is not None)


def coverage(net: nn.Module, structure: str, replicas: Sequence[int]) -> Coverage:
    """What became of every parameter of the original network, from the converted one."""
    rows, seen = [], set()
    for module_name, module in net.named_modules():
        prefix = f"{module_name}." if module_name else ""
        if isinstance(module, VariationalLayer):
            rows.append(CoverageRow(f"{prefix}weight", module.weight_shape, POSTERIOR, structure))
            if module.has_bias:
                rows.append(CoverageRow(f"{prefix}bias", (module.out_features,), POSTERIOR, structure))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # tied to one that is listed
            seen.add(id(parameter))
            detail = type(module).__name__ if parameter.requires_grad else f"{type(module).__name__}, frozen"
            rows.append(CoverageRow(f"{prefix}{name}", tuple(parameter.shape), POINT_ESTIMATE, detail))
    return Coverage(tuple(rows))
