"""Likelihoods: what the network's outputs say about the targets."""

from noisynat.likelihoods.base import ClassModel, Likelihood, ObservationModel, OrderedModel
from noisynat.likelihoods.bernoulli import BernoulliLikelihood
from noisynat.likelihoods.categorical import CategoricalLikelihood
from noisynat.likelihoods.distribution import DistributionLikelihood
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.likelihoods.heteroscedastic import HeteroscedasticGaussianLikelihood
from noisynat.likelihoods.poisson import PoissonLikelihood
from noisynat.likelihoods.student import StudentTLikelihood

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "ClassModel",
    "DistributionLikelihood",
    "GaussianLikelihood",
    "HeteroscedasticGaussianLikelihood",
    "Likelihood",
    "ObservationModel",
    "OrderedModel",
    "PoissonLikelihood",
    "StudentTLikelihood",
]
