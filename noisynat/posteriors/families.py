"""The posterior families by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from noisynat.curvature import Curvature, Dense, Diagonal, EigenCorrected, Kronecker, TruncatedKronecker
from noisynat.curvature.kronecker import DampingForm
from noisynat.curvature.sharing import Sharing, checked
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.mean_field import MeanFieldPosterior
from noisynat.posteriors.natural import NaturalPosterior
from noisynat.priors import GaussianPrior

if TYPE_CHECKING:
    from noisynat.layers.base import VariationalLayer

Structure = Literal[
    "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer", "mean_field"
]
STRUCTURES: tuple[str, ...] = get_args(Structure)

Rank = int | Literal["auto"] | None
_WHOLE = 256  # rows of a Kronecker factor up to which all its eigenvalues are kept by default
_LEADING = 32  # eigenvalues that are kept of larger ones
FORMS: dict[str, DampingForm] = {"matrix_normal": "factored", "kronecker": "exact", "eigen_corrected": "exact"}

_CURVATURES: dict[str, Callable[..., Curvature]] = {
    "diagonal": Diagonal,
    "matrix_normal": partial(Kronecker, damping_form="factored"),
    "kronecker": Kronecker,
    "eigen_corrected": EigenCorrected,
    "dense": Dense,
    "dense_per_layer": Dense,
}


def is_wide(shape: tuple[int, int]) -> bool:
    """Whether a weight of ``shape`` (out, in) has Kronecker factors too large to keep all eigenvalues by default."""
    return max(shape) > _WHOLE


@dataclass(frozen=True)
class FactorSizes:
    """How much is kept of the Kronecker factors of a layer.

    Args:
        rank: leading eigenvalues of each, the others being represented by their mean; None keeps all, ``"auto"`` all
            of a layer whose factors have at most 256 rows, and otherwise 32.
        max_dim: rows of a factor beyond which it is only its diagonal.
    """

    rank: Rank = "auto"
    max_dim: int = 8192

    def __post_init__(self) -> None:
        if self.rank not in (None, "auto") and not (isinstance(self.rank, int) and self.rank > 0):
            raise ValueError(f"rank is a positive whole number, None or 'auto', got {self.rank!r}")
        if not (isinstance(self.max_dim, int) and self.max_dim > 0):
            raise ValueError(f"max_factor_dim is a positive whole number, got {self.max_dim!r}")

    def kept(self, structure: str, shape: tuple[int, int]) -> tuple[int | None, int | None] | None:
        """Ranks of S and A of a layer with a weight of ``shape``, None for a diagonal; None if both are kept whole."""
        if structure not in FORMS:
            return None
        rank = self.rank
        if structure == "eigen_corrected" or (rank == "auto" and not is_wide(shape)):
            rank = None
        elif rank == "auto":
            rank = _LEADING
        if max(shape) <= min(self.max_dim, rank or self.max_dim):
            return None
        outputs, inputs = (None if size > self.max_dim else min(size, rank or size) for size in shape)
        return outputs, inputs


def make_posteriors(
    layers: Sequence[VariationalLayer],
    structure: Structure,
    priors: Sequence[GaussianPrior],
    sizes: FactorSizes,
    rules: Sequence[Sharing],
    natural: type[NaturalPosterior] = NaturalPosterior,
    **settings: Any,
) -> list[Posterior]:
    """The posteriors of a network's layers: one per layer, or a joint one for ``"dense"``.

    Args:
        layers: of the network.
        structure: name of the family.
        priors: of each layer.
        sizes: of Kronecker factors.
        rules: for weight sharing, of each layer.
        natural: makes those with a curvature.
        settings: as for :class:`~noisynat.posteriors.base.Posterior`, and ``initial_precision``.
    """
    settings = {**settings, "structure": structure}
    if structure == "mean_field":
        return [MeanFieldPosterior(layer, prior, **settings) for layer, prior in zip(layers, priors, strict=True)]
    if structure == "dense":
        return [natural(layers, priors, Dense, **settings)]
    curvatures = [_curvature(structure, layer, sizes, rule) for layer, rule in zip(layers, rules, strict=True)]
    return [
        natural([layer], [prior], curvature, **settings)
        for layer, prior, curvature in zip(layers, priors, curvatures, strict=True)
    ]


def rules_by_layer(sharing: Sharing | Mapping[str, Sharing], names: Sequence[str]) -> list[Sharing]:
    """The rule for weight sharing of each layer.

    Args:
        sharing: of all layers, or by their names or patterns; the first entry that fits a layer counts, and
            ``"expand"`` where none does.
        names: of the layers.

    Raises:
        ValueError: if there is no such rule, or an entry fits no layer.
    """
    by_pattern = sharing if isinstance(sharing, Mapping) else {"*": sharing}
    for pattern, rule in by_pattern.items():
        checked(rule)
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the entry {pattern!r} of sharing fits none of the layers {', '.join(names)}")
    return [next((rule for p, rule in by_pattern.items() if fnmatchcase(name, p)), "expand") for name in names]


def _curvature(structure: str, layer: VariationalLayer, sizes: FactorSizes, rule: Sharing) -> Callable[..., Curvature]:
    if layer.full_covariance and structure in FORMS:
        return Dense
    shape = layer.matrix_shape[1:]
    ranks = sizes.kept(structure, shape)
    if layer.diagonal_inputs and structure in FORMS:
        outputs = shape[0] if ranks is None else ranks[0]
        return partial(TruncatedKronecker, ranks=(outputs, None), damping_form=FORMS[structure], rule=rule)
    if structure not in FORMS:
        return _CURVATURES[structure]
    if ranks is None:
        return partial(_CURVATURES[structure], rule=rule)
    if None in ranks:
        diagonal = " and ".join(f"{size}" for size, rank in zip(shape, ranks, strict=True) if rank is None)
        warnings.warn(
            f"layer {layer.name!r} has Kronecker factors of {diagonal} rows, more than max_factor_dim={sizes.max_dim}: "
            "its posterior keeps only their diagonals",
            stacklevel=5,
        )
    return partial(TruncatedKronecker, ranks=ranks, damping_form=FORMS[structure], rule=rule)
