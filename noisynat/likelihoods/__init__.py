"""Likelihoods: what the network's outputs say about the targets."""

from noisynat.likelihoods.base import Likelihood
from noisynat.likelihoods.gaussian import GaussianLikelihood

__all__ = ["GaussianLikelihood", "Likelihood"]
