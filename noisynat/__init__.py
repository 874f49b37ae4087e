"""noisynat: Bayesian deep learning by noisy natural gradient."""

from noisynat.data import TensorBatches
from noisynat.elbo import ELBO
from noisynat.errors import CurvatureError, NonFiniteLossError
from noisynat.likelihoods import GaussianLikelihood, HeteroscedasticGaussianLikelihood, Likelihood
from noisynat.network import SampledFunction, VariationalNetwork
from noisynat.optim import NoisyAdam, NoisyKFAC, NoisyNaturalGradient, cosine_schedule
from noisynat.predictive import Predictive
from noisynat.priors import GaussianPrior
from noisynat.training import History, fit

__all__ = [
    "ELBO",
    "CurvatureError",
    "GaussianLikelihood",
    "GaussianPrior",
    "HeteroscedasticGaussianLikelihood",
    "History",
    "Likelihood",
    "NoisyAdam",
    "NoisyKFAC",
    "NoisyNaturalGradient",
    "NonFiniteLossError",
    "Predictive",
    "SampledFunction",
    "TensorBatches",
    "VariationalNetwork",
    "cosine_schedule",
    "fit",
]
__version__ = "0.1.0"
