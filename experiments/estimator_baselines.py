"""scikit-learn's own estimators, as models that give a probability to what was observed.

Inputs, and the targets of networks and Gaussian processes, are standardized; all else is scikit-learn's default, but
for the Gaussian process, whose default kernel knows no noise: it has a squared exponential and white noise here.
Networks and forests predict no spread; theirs is normal, with the root mean square of residuals on rows that they were
not trained on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.classification import multiclass_calibration_error

from noisynat.calibration import LEVELS
from noisynat.sklearn import BayesianMLPClassifier, BayesianMLPRegressor

TINY = 1e-15  # the least probability that counts, as in scikit-learn's log_loss
_BINS = 15


class Contender(ABC):
    """An estimator and how to score it.

    Args:
        estimator: to be fitted.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: np.ndarray, y: np.ndarray) -> None:
        """What is timed."""
        self.estimator.fit(X, y)

    def calibrate(self, X: np.ndarray, y: np.ndarray) -> None:
        """Estimate from the training part what the estimator does not say; not timed."""
        del X, y

    @abstractmethod
    def scores(self, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Figures on rows held out: ``log_likelihood`` (nats per row), ``error`` and ``calibration_error``."""


class Regressor(Contender):
    """Mean and standard deviation of a normal distribution, which the estimator gives."""

    def distribution(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, log density of y and CDF at y, each (n,)."""
        mean, std = self._normal(X)
        return mean, norm.logpdf(y, mean, std), norm.cdf(y, mean, std)

    def _normal(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, std = self.estimator.predict(X, return_std=True)
        return mean, std

    def scores(self, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
        mean, log_density, cdf = self.distribution(X, y)
        return {
            "log_likelihood": float(log_density.mean()),
            "error": float(np.sqrt(np.mean((mean - y) ** 2))),
            "calibration_error": interval_error(cdf),
        }


class PointRegressor(Regressor):
    """An estimator of the mean alone: the spread is that of its residuals on rows it was not trained on."""

    _std: float

    def calibrate(self, X: np.ndarray, y: np.ndarray) -> None:
        unseen = getattr(self.estimator, "oob_prediction_", None)
        if unseen is None:
            unseen = cross_val_predict(clone(self.estimator), X, y, cv=5)
        self._std = float(np.sqrt(np.mean((unseen - y) ** 2)))

    def _normal(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = self.estimator.predict(X)
        return mean, np.full(len(mean), self._std)


class OurRegressor(Regressor):
    """The mixture's own density and distribution function."""

    def distribution(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        model: BayesianMLPRegressor = self.estimator
        mean = np.asarray(model.predict(X))
        return mean, model.log_likelihood(X, y), model.predict_cdf(X, y)


class Classifier(Contender):
    """Probabilities of classes 0, 1, ..."""

    def scores(self, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
        probabilities = self.estimator.predict_proba(X)
        own = np.clip(probabilities[np.arange(len(y)), y], TINY, 1)
        return {
            "log_likelihood": float(np.log(own).mean()),
            "error": float((probabilities.argmax(1) != y).mean()),
            "calibration_error": float(
                multiclass_calibration_error(
                    torch.as_tensor(probabilities), torch.as_tensor(y), probabilities.shape[1], n_bins=_BINS
                )
            ),
        }


def interval_error(cdf: np.ndarray) -> float:
    """Mean distance between level and coverage of central intervals of 19 levels, from the CDF at the targets (n,)."""
    needed = np.abs(2 * cdf - 1)
    return float(np.mean([abs((needed <= level).mean() - level) for level in LEVELS]))


def _scaled(estimator: Any) -> Any:
    return make_pipeline(StandardScaler(), estimator)


def _mlp_regressor(seed: int) -> Any:
    return TransformedTargetRegressor(_scaled(MLPRegressor(random_state=seed)), transformer=StandardScaler())


def _gaussian_process(seed: int) -> Any:
    kernel = ConstantKernel() * RBF() + WhiteKernel()
    return _scaled(GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed))


OURS, NETWORK = "noisynat", "MLP"
REGRESSORS: dict[str, Callable[[int], Contender]] = {
    OURS: lambda seed: OurRegressor(BayesianMLPRegressor(random_state=seed)),
    "Gaussian process": lambda seed: Regressor(_gaussian_process(seed)),
    "Bayesian ridge": lambda seed: Regressor(_scaled(BayesianRidge())),
    NETWORK: lambda seed: PointRegressor(_mlp_regressor(seed)),
    "random forest": lambda seed: PointRegressor(RandomForestRegressor(oob_score=True, random_state=seed)),
}
CLASSIFIERS: dict[str, Callable[[int], Contender]] = {
    OURS: lambda seed: Classifier(BayesianMLPClassifier(random_state=seed)),
    "logistic regression": lambda seed: Classifier(_scaled(LogisticRegression(max_iter=1000))),
    NETWORK: lambda seed: Classifier(_scaled(MLPClassifier(random_state=seed))),
    "random forest": lambda seed: Classifier(RandomForestClassifier(random_state=seed)),
}
