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
from noisynat.priors import GaussianPrior

if TYPE_CHECKING:
    from noisynat.layers.base import VariationalLayer


class MeanFieldPosterior(Posterior):
    """q(W) = N(M, diag(exp(log_std))^2) of one layer.

    Args:
        layer: whose weights it describes.
        prior: p(W).
        initial_precision: sets the standard deviation that every weight starts from to that of a natural posterior,
            sqrt((lambda / N) / (initial_precision + gamma)) with gamma = lambda / (N eta).
        settings: as for :class:`~noisynat.posteriors.base.Posterior`.
    """

    def __init__(
        self, layer: VariationalLayer, prior: GaussianPrior, *, initial_precision: float = 1.0, **settings: Any
    ) -> None:
        super().__init__((layer,), (prior,), **settings)
        scale = self.kl_weight / self.num_data
        variance = scale / (initial_precision + scale / self.prior_variance[0])  # (*replicas,)
        log_std = variance.log() / 2
        self.log_std = nn.Parameter(log_std.to(layer.mean.dtype)[..., None, None].expand(layer.mean.shape).clone())
        noise.check_mode(self.noise_mode, self.structure, self._root)

    @property
    def _root(self) -> DampedInverse:
        return KroneckerBasisInverse((2 * self.pack([self.log_std])).exp())

    @property
    def _scale(self) -> float:
        return 1.0

    def _log_determinant(self) -> Tensor:
        return 2 * self.log_std.sum((-2, -1))

    def covariance(self) -> Tensor:
        return torch.diag_embed((2 * self.log_std).exp().flatten(-2))
