"""Bayes by Backprop: a fully factorized Gaussian whose means and log standard deviations follow the gradient.

Blundell et al. (2015); with local reparameterization (Kingma et al. 2015). The KL is exact and summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisynat.curvature.inverse import DampedInverse, KroneckerBasisInverse
from noisynat.posteriors import noise
from noisynat.posteriors.base import Posterior

if TYPE_CHECKING:
    from noisynat.layers.base import VariationalLayer


class MeanFieldPosterior(Posterior):
    """q(W) = N(M, diag(exp(log_std))^2) of one layer.

    Args:
        layer: whose weights it describes.
        initial_std: standard deviation that every weight starts from.
        settings: as for :class:`~noisynat.posteriors.base.Posterior`.
    """

    def __init__(self, layer: VariationalLayer, *args: Any, initial_std: float = 0.05, **settings: Any) -> None:
        super().__init__((layer,), *args, **settings)
        noise.check_mode(self.noise_mode, self.structure, True)
        self.log_std = nn.Parameter(torch.full_like(layer.mean, initial_std).log())

    @property
    def _root(self) -> DampedInverse:
        return KroneckerBasisInverse(self.log_std.exp())

    @property
    def _scale(self) -> float:
        return 1.0

    def _log_determinant(self) -> Tensor:
        return 2 * self.log_std.sum((-2, -1))

    def covariance(self) -> Tensor:
        return torch.diag_embed((2 * self.log_std).exp().flatten(-2))
