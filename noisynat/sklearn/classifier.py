"""The classifier: a mixture of Bayesian networks with a categorical or, for two classes, a Bernoulli likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

import noisynat
from noisynat.likelihoods import Likelihood
from noisynat.sklearn.base import BayesianMLP

if TYPE_CHECKING:
    from typing_extensions import Self


class BayesianMLPClassifier(ClassifierMixin, BayesianMLP):
    """Classification by a mixture of Bayesian neural networks, as a scikit-learn estimator that needs no tuning.

    Inputs are standardized inside, outliers drawn in. A few networks with Kronecker posteriors are trained as one
    batch; together they predict. A thorough training of small networks ends with dense posteriors
    (:doc:`/howto/better_posterior`). Probabilities are averages over the posterior, so that they are less sure where
    there are few examples. Classes may be numbers or strings, two or more.

    Args:
        hidden_layer_sizes: units of each hidden layer.
        activation: ``"relu"``, ``"tanh"``, ``"logistic"`` or ``"identity"``.
        posterior: ``"auto"`` is ``"kronecker"``, or ``"dense"`` in a thorough training of a network of up to 1,500
            weights. ``"dense"`` is Kronecker for the first nine tenths of the epochs. Also ``"matrix_normal"``,
            ``"eigen_corrected"`` and ``"diagonal"``.
        prior_variance: of every weight, on standardized inputs, or ``"empirical_bayes"``, fitted by layer.
        input_limit: standardized inputs x become x / sqrt(1 + (x / limit)^2), so that an outlier is never further out
            than this (the smooth clipping of Holzmüller et al. 2024). None leaves them as they are, for predictions
            that are to grow less sure the further one goes from the data.
        n_networks: in the mixture.
        effort: ``"quick"`` is 80 steps on all examples at once; beyond 1,600 examples, a step more for every 20, on
            2,000 at a time. ``"thorough"`` is about 4,000 steps, fewer if there are fewer than 267 examples, on batches
            of 32, from 4,000 examples on 128, from 20,000 on 512.
        max_iter: epochs; ``"auto"`` makes the steps that belong to the effort.
        batch_size: examples per step; ``"auto"`` is that of the effort.
        learning_rate_init: of the means, at the start of a course of 4,000 steps; shorter ones have larger rates. It
            falls along half a cosine.
        n_posterior_samples: networks drawn from the posterior for a prediction, of all parts of the mixture together.
        random_state: makes training and predictions repeatable. None follows NumPy's global generator, which is read
            but not advanced.
        verbose: whether to show progress.

    Attributes:
        classes_: the classes, sorted.
        elbo_: evidence lower bound of the mixture's networks on the training data, weighted mean, nats; after ``fit``.
        elbo_history_: running estimate per epoch, mean over networks, nats per example.
        feature_names_in_: names of the features, if X had them as strings.
        loss_curve_: mean negative log-likelihood per epoch at sampled weights, mean over networks, nats per example.
        mixture_weights_: of the networks, (n_networks,), proportional to exp(10 ELBO / N): those that went astray drop
            out, the others count alike.
        n_features_in_: features.
        n_iter_: epochs.
        n_samples_seen_: examples trained on, by ``fit`` and every ``partial_fit`` together.
        network_: the trained :class:`noisynat.VariationalNetwork`, on such inputs.
        x_scaler_: scikit-learn's scaler of the inputs.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from noisynat.sklearn import BayesianMLPClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = BayesianMLPClassifier(max_iter=20, random_state=0).fit(X, y)
        >>> model.predict_proba(X[:5]).shape
        (5, 3)
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (50,),
        activation: str = "relu",
        *,
        posterior: str = "auto",
        prior_variance: float | Literal["empirical_bayes"] = 0.3,
        input_limit: float | None = 3.0,
        n_networks: int = 3,
        effort: str = "quick",
        max_iter: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        learning_rate_init: float = 0.02,
        n_posterior_samples: int = 500,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            posterior,
            prior_variance,
            input_limit,
            n_networks,
            effort,
            max_iter,
            batch_size,
            learning_rate_init,
            n_posterior_samples,
            random_state,
            verbose,
        )

    # --- training ---------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train from the beginning.

        Args:
            X: inputs (n, features).
            y: classes (n,), of two kinds at least.

        Raises:
            ValueError, TypeError: if the data or a setting are not as described.
        """
        X, y = self._validated(X, y, reset=True)
        self._set_classes(unique_labels(y))
        return self._fit(X, y)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Go on training by one pass over new examples.

        The first call starts a network and fixes the scales of inputs, so let it have many examples; after :meth:`fit`,
        training goes on from there. The posterior is that of all examples so far: those of every call count as new, so
        give each once, in random order. One pass learns less than ``fit``; with data that fit in memory, use that. The
        weights of the mixture stay as they were, at first equal.

        Args:
            X: inputs (n, features).
            y: classes (n,).
            classes: all there will ever be; wanted in the first call, and later the same or None.

        Raises:
            ValueError, TypeError: if the data, the classes or a setting are not as described.
        """
        first = not self.__sklearn_is_fitted__()
        X, y = self._validated(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes=, all that will ever occur")
            self._set_classes(unique_labels(classes))
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"classes={classes!r}, but training began with {self.classes_!r}")
        self._numbers(y)
        return self._fit_on(X, y, first=first)

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64)
        check_classification_targets(y)
        return X, column_or_1d(y, warn=True)

    def _set_classes(self, classes: np.ndarray) -> None:
        if len(classes) < 2:
            raise ValueError(f"a classifier needs at least 2 classes, and y has one class, {classes[0]!r}")
        self.classes_ = classes

    def _numbers(self, y: np.ndarray) -> np.ndarray:
        """Of classes, (n,) from 0; raises ValueError for a class that is not among them."""
        numbers = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        strange = self.classes_[numbers] != y
        if strange.any():
            raise ValueError(f"y has classes that training has not: {np.unique(y[strange])!r}")
        return numbers

    def _encoded(self, y: np.ndarray) -> Tensor:
        numbers = torch.from_numpy(self._numbers(y))
        return numbers.unsqueeze(-1).float() if len(self.classes_) == 2 else numbers

    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _likelihood(self, noise_step: float) -> Likelihood:
        return noisynat.BernoulliLikelihood() if len(self.classes_) == 2 else noisynat.CategoricalLikelihood()

    # --- prediction -------------------------------------------------------------------------------

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable classes, (n,).

        Args:
            X: inputs (n, features).

        Raises:
            ValueError: if X is not as in training.
        """
        logs = self.predict_log_proba(X)
        return self.classes_[logs.argmax(1)]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities of the classes, in the order of ``classes_``, (n, classes).

        Args:
            X: inputs (n, features).

        Raises:
            ValueError: if X is not as in training.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: ArrayLike) -> np.ndarray:
        """Logarithms of the probabilities, (n, classes), exact also where those are next to nothing.

        Args:
            X: inputs (n, features).

        Raises:
            ValueError: if X is not as in training.
        """
        check_is_fitted(self)
        x = self._inputs(validate_data(self, X, reset=False, dtype=np.float64))
        result = np.empty((len(x), len(self.classes_)))
        for rows, predictive in self._predictives(x):
            for number in range(len(self.classes_)):
                y = torch.full((len(x[rows]),), number)
                result[rows, number] = predictive.log_prob(y.unsqueeze(-1) if self._outputs() == 1 else y)
        return result - logsumexp(result, axis=1, keepdims=True)  # by rounding, the sum of probabilities is not one

    def log_likelihood(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Log probability of every example's class, nats, (n,); its mean is minus the log loss.

        Args:
            X: inputs (n, features).
            y: classes (n,).

        Raises:
            ValueError: if X or y are not as in training.
        """
        check_is_fitted(self)
        X, y = self._validated(X, y, reset=False)
        numbers = self._numbers(y)
        return self.predict_log_proba(X)[np.arange(len(y)), numbers]
