"""The regressor: a mixture of Bayesian networks whose noise may vary with the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import noisynat
from noisynat.likelihoods import Likelihood
from noisynat.sklearn.base import BayesianMLP, seed_of

if TYPE_CHECKING:
    from typing_extensions import Self

_NOISES = ("varying", "constant")
_NOISE: dict[str, Any] = {"noise": "gamma", "a0": 1.0, "b0": 0.001, "initial_std": 0.3}  # of standardized targets


class BayesianMLPRegressor(MultiOutputMixin, RegressorMixin, BayesianMLP):
    """Regression by a mixture of Bayesian neural networks, as a scikit-learn estimator that needs no tuning.

    Inputs and targets are standardized inside, outliers among the inputs drawn in. A few networks with Kronecker
    posteriors are trained as one batch; together they predict. A thorough training of small networks ends with dense
    posteriors (:doc:`/howto/better_posterior`), which pays where there is little noise. The noise is inferred, and by
    default varies with the inputs. All that is said of y (std, covariance, intervals, draws, densities) includes the
    noise and is in the targets' own units.

    Args:
        hidden_layer_sizes: units of each hidden layer.
        activation: ``"relu"``, ``"tanh"``, ``"logistic"`` or ``"identity"``.
        noise: ``"varying"``, with the inputs, or ``"constant"``; every target has its own.
        posterior: ``"auto"`` is ``"kronecker"``, or ``"dense"`` in a thorough training of a network of up to 1,500
            weights. ``"dense"`` is Kronecker for the first nine tenths of the epochs. Also ``"matrix_normal"``,
            ``"eigen_corrected"`` and ``"diagonal"``.
        prior_variance: of every weight, on standardized data, or ``"empirical_bayes"``, fitted by layer.
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
        elbo_: evidence lower bound of the mixture's networks on the training data, weighted mean, nats; after ``fit``.
        elbo_history_: running estimate per epoch, mean over networks, nats per example.
        feature_names_in_: names of the features, if X had them as strings.
        loss_curve_: mean negative log-likelihood per epoch at sampled weights, mean over networks, nats per example.
        mixture_weights_: of the networks, (n_networks,), proportional to exp(10 ELBO / N): those that went astray drop
            out, the others count alike.
        n_features_in_: features.
        n_iter_: epochs.
        n_outputs_: targets.
        n_samples_seen_: examples trained on, by ``fit`` and every ``partial_fit`` together.
        network_: the trained :class:`noisynat.VariationalNetwork`, on such data.
        x_scaler_: scikit-learn's scaler of the inputs.
        y_scaler_: of the targets.

    Example:
        >>> import numpy as np
        >>> from noisynat.sklearn import BayesianMLPRegressor
        >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
        >>> model = BayesianMLPRegressor(max_iter=20, random_state=0).fit(X, np.sin(3 * X[:, 0]))
        >>> mean, std = model.predict(X[:5], return_std=True)
        >>> mean.shape, std.shape
        ((5,), (5,))
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (50,),
        activation: str = "relu",
        *,
        noise: str = "varying",
        posterior: str = "auto",
        prior_variance: float | Literal["empirical_bayes"] = 0.1,
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
        self.noise = noise
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
            y: targets (n,) or (n, outputs); predictions have the same form.

        Raises:
            ValueError, TypeError: if the data or a setting are not as described.
        """
        X, y = self._validated(X, y, reset=True)
        self._scale_targets(y)
        return self._fit(X, y)

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Go on training by one pass over new examples.

        The first call starts a network and fixes the scales of inputs and targets, so let it have many examples; after
        :meth:`fit`, training goes on from there. The posterior is that of all examples so far: those of every call
        count as new, so give each once, in random order. One pass learns less than ``fit``; with data that fit in
        memory, use that. The weights of the mixture stay as they were, at first equal.

        Args:
            X: inputs (n, features).
            y: targets, in the form of the first call.

        Raises:
            ValueError, TypeError: if the data or a setting are not as described.
        """
        first = not self.__sklearn_is_fitted__()
        X, y = self._validated(X, y, reset=first)
        if first:
            self._scale_targets(y)
        else:
            self._check_form(y)
        return self._fit_on(X, y, first=first)

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64, multi_output=True, y_numeric=True)
        return X, y.astype(np.float64)

    def _scale_targets(self, y: np.ndarray) -> None:
        self._columns = y.ndim == 2
        self.y_scaler_ = StandardScaler().fit(y.reshape(len(y), -1))
        self.n_outputs_ = self.y_scaler_.n_features_in_

    def _check_form(self, y: np.ndarray) -> None:
        expected = ("n", self.n_outputs_) if self._columns else ("n",)
        if (y.ndim == 2) != self._columns or y.size != len(y) * self.n_outputs_:
            raise ValueError(f"y has shape {y.shape}, but training began with targets {expected}".replace("'", ""))

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.noise not in _NOISES:
            raise ValueError(f"noise is one of {', '.join(_NOISES)}; got {self.noise!r}")

    def _encoded(self, y: np.ndarray) -> Tensor:
        return torch.from_numpy(self.y_scaler_.transform(y.reshape(len(y), -1))).float()

    def _outputs(self) -> int:
        return self.n_outputs_ * (2 if self.noise == "varying" else 1)

    def _likelihood(self, noise_step: float) -> Likelihood:
        varying = self.noise == "varying"
        kind = noisynat.HeteroscedasticGaussianLikelihood if varying else noisynat.GaussianLikelihood
        return kind(num_outputs=self.n_outputs_, step_size=noise_step, **_NOISE)

    def _log_jacobian(self) -> float:
        return -float(np.log(self.y_scaler_.scale_).sum())

    # --- prediction -------------------------------------------------------------------------------

    def predict(
        self, X: ArrayLike, return_std: bool = False, return_cov: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The mean of y, and its uncertainty, noise included.

        Args:
            X: inputs (n, features).
            return_std: whether to return the standard deviation too.
            return_cov: whether to return the covariance between all rows too.

        Returns:
            The mean, of the form of the training targets, (n,) or (n, outputs); with it the standard deviation, of
            the same form, or the covariance, (n, n) or (n, n, outputs), each target's own.

        Raises:
            ValueError: if X is not as in training, or both uncertainties are asked for.
        """
        if return_std and return_cov:
            raise ValueError("ask for one of return_std and return_cov; the root of the covariance's diagonal is std")
        x = self._checked(X)
        if return_cov:
            predictive = self._predictive(x)
            covariance = predictive.covariance.movedim(0, -1).numpy() * self.y_scaler_.scale_**2
            return self._targets(predictive.mean), covariance if self._columns else covariance[..., 0]
        means, stds = np.empty((len(x), self.n_outputs_)), np.empty((len(x), self.n_outputs_))
        for rows, predictive in self._predictives(x):
            means[rows] = predictive.mean
            if return_std:
                stds[rows] = predictive.stddev
        mean = self._targets(means)
        return (mean, self._formed(stds * self.y_scaler_.scale_)) if return_std else mean

    def predict_interval(self, X: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Central intervals that hold y, noise included, with probability ``level``: quantiles of the mixture.

        Args:
            X: inputs (n, features).
            level: strictly between 0 and 1.

        Returns:
            Lower and upper ends, each of the form of the training targets.

        Raises:
            ValueError: if X is not as in training, or level is out of range.
        """
        x = self._checked(X)
        ends = np.empty((2, len(x), self.n_outputs_))
        for rows, predictive in self._predictives(x):
            ends[:, rows] = torch.stack(predictive.interval(level))
        return self._targets(ends[0]), self._targets(ends[1])

    def predict_cdf(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Probability of a target up to y, noise included: the distribution function of the mixture.

        Uniform on (0, 1) over held-out data if the model is calibrated.

        Args:
            X: inputs (n, features).
            y: targets, of the form of the training targets.

        Returns:
            Of the form of y.

        Raises:
            ValueError: if X or y are not as in training.
        """
        x, targets = self._checked_pair(X, y)
        values = [predictive.cdf(targets[rows]) for rows, predictive in self._predictives(x)]
        return self._formed(torch.cat(values).numpy())

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """Draws of y, noise included; the rows of each draw are of one function.

        Args:
            X: inputs (n, features).
            n_samples: draws.
            random_state: of the draws; None takes the estimator's own, so that every call gives the same.

        Returns:
            (n, n_samples), or (n, outputs, n_samples) if the training targets had columns.

        Raises:
            ValueError: if X is not as in training, or n_samples is not positive.
        """
        x = self._checked(X)
        seed = None if random_state is None else seed_of(random_state)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        draws = self._predictive(x, n_samples * self.n_networks, seed).sample(n_samples)  # (n_samples, n, outputs)
        return np.moveaxis(np.stack([self._targets(draw) for draw in draws]), 0, -1)

    def log_likelihood(self, X: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Log density of every example's y under the prediction, nats, in the targets' own units, (n,).

        That of the mixture, jointly over several targets. Its mean over held-out data is the test log-likelihood.

        Args:
            X: inputs (n, features).
            y: targets, of the form of the training targets.

        Raises:
            ValueError: if X or y are not as in training.
        """
        x, targets = self._checked_pair(X, y)
        values = [predictive.log_prob(targets[rows]) for rows, predictive in self._predictives(x)]
        return torch.cat(values).numpy() + self._log_jacobian()

    def _checked(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        return self._inputs(validate_data(self, X, reset=False, dtype=np.float64))

    def _checked_pair(self, X: ArrayLike, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """The network's inputs, and standardized targets."""
        check_is_fitted(self)
        X, y = self._validated(X, y, reset=False)
        self._check_form(y)
        return self._inputs(X), torch.from_numpy(self.y_scaler_.transform(y.reshape(len(y), -1)))

    def _targets(self, standardized: Tensor | np.ndarray) -> np.ndarray:
        """In the targets' own units and form."""
        return self._formed(self.y_scaler_.inverse_transform(np.asarray(standardized)))

    def _formed(self, values: np.ndarray) -> np.ndarray:
        return values if self._columns else values[:, 0]
