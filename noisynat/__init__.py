"""noisynat: Bayesian deep learning by noisy natural gradient."""

from noisynat import acquisition, calibration, diagnostics
from noisynat.batch_norm import update_bn
from noisynat.data import TensorBatches
from noisynat.elbo import ELBO
from noisynat.errors import CurvatureError, NonFiniteLossError
from noisynat.functions import SampledFunction, SampledFunctions
from noisynat.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DistributionLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    Likelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from noisynat.memory import MemoryForecast, memory_forecast
from noisynat.network import VariationalNetwork
from noisynat.optim import KFAC, CompiledStep, NoisyAdam, NoisyKFAC, NoisyNaturalGradient, cosine_schedule
from noisynat.predictive import Predictive
from noisynat.priors import GaussianPrior
from noisynat.training import History, fit

__all__ = [
    "ELBO",
    "KFAC",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "CompiledStep",
    "CurvatureError",
    "DistributionLikelihood",
    "GaussianLikelihood",
    "GaussianPrior",
    "HeteroscedasticGaussianLikelihood",
    "History",
    "Likelihood",
    "MemoryForecast",
    "NoisyAdam",
    "NoisyKFAC",
    "NoisyNaturalGradient",
    "NonFiniteLossError",
    "PoissonLikelihood",
    "Predictive",
    "SampledFunction",
    "SampledFunctions",
    "StudentTLikelihood",
    "TensorBatches",
    "VariationalNetwork",
    "acquisition",
    "calibration",
    "cosine_schedule",
    "diagnostics",
    "fit",
    "memory_forecast",
    "update_bn",
]
__version__ = "0.1.0"
