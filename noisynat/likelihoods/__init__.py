"""Likelihoods: what the network's outputs say about the targets."""

from noisynat.likelihoods.base import Likelihood
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.likelihoods.heteroscedastic import HeteroscedasticGaussianLikelihood

__all__ = ["GaussianLikelihood", "HeteroscedasticGaussianLikelihood", "Likelihood"]
