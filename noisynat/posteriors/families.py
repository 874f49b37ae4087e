"""The posterior families by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from noisynat.curvature import Curvature, Dense, Diagonal, EigenCorrected, Kronecker
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

_CURVATURES: dict[str, Callable[..., Curvature]] = {
    "diagonal": Diagonal,
    "matrix_normal": partial(Kronecker, damping_form="factored"),
    "kronecker": Kronecker,
    "eigen_corrected": EigenCorrected,
    "dense": Dense,
    "dense_per_layer": Dense,
}


def make_posteriors(
    layers: Sequence[VariationalLayer], structure: Structure, priors: Sequence[GaussianPrior], **settings: Any
) -> list[Posterior]:
    """The posteriors of a network's layers: one per layer, or a joint one for ``"dense"``.

    Args:
        layers: of the network.
        structure: name of the family.
        priors: of each layer.
        settings: as for :class:`~noisynat.posteriors.base.Posterior`, and ``initial_precision``.
    """
    settings = {**settings, "structure": structure}
    if structure == "mean_field":
        return [MeanFieldPosterior(layer, prior, **settings) for layer, prior in zip(layers, priors, strict=True)]
    curvature = _CURVATURES[structure]
    if structure == "dense":
        return [NaturalPosterior(layers, priors, curvature, **settings)]
    return [
        NaturalPosterior([layer], [prior], curvature, **settings) for layer, prior in zip(layers, priors, strict=True)
    ]
