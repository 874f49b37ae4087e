"""What regressor and classifier share: settings, scaling of inputs, training, prediction in chunks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from torch import Tensor

import noisynat
from noisynat.likelihoods import Likelihood
from noisynat.sklearn import course

if TYPE_CHECKING:
    from typing_extensions import Self

_SHARPNESS = 10.0  # of the networks' weights, per nat of ELBO per example: those that went astray drop out
_ENTRIES_AT_ONCE = 2**22  # outputs of all posterior samples that a prediction holds in memory


class BayesianMLP(BaseEstimator, ABC):
    """A mixture of Bayesian neural networks of one shape; see the estimators for arguments."""

    network_: noisynat.VariationalNetwork
    n_features_in_: int
    _optimizer_state: dict[str, Any] | None

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int],
        activation: str,
        posterior: str,
        prior_variance: float | Literal["empirical_bayes"],
        input_limit: float | None,
        n_networks: int,
        effort: str,
        max_iter: int | Literal["auto"],
        batch_size: int | Literal["auto"],
        learning_rate_init: float,
        n_posterior_samples: int,
        random_state: int | np.random.RandomState | None,
        verbose: bool,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.posterior = posterior
        self.prior_variance = prior_variance
        self.input_limit = input_limit
        self.n_networks = n_networks
        self.effort = effort
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.n_posterior_samples = n_posterior_samples
        self.random_state = random_state
        self.verbose = verbose

    # --- what an estimator supplies ---------------------------------------------------------------

    @abstractmethod
    def _encoded(self, y: np.ndarray) -> Tensor:
        """Targets as the likelihood wants them."""

    @abstractmethod
    def _outputs(self) -> int:
        """Of the network."""

    @abstractmethod
    def _likelihood(self, noise_step: float) -> Likelihood:
        """p(y | f); ``noise_step`` is the step size of the noise's precision."""

    def _log_jacobian(self) -> float:
        """Log density of an example in the targets' own units less that in the network's."""
        return 0.0

    # --- training ---------------------------------------------------------------------------------

    def _fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Train from the beginning on validated data, whose targets are known to :meth:`_encoded`."""
        network, plan = self._started(X)
        x, targets = self._inputs(X).float(), self._encoded(y)
        with course.threads_for(self.n_networks * plan.batch_size * max(self._sizes())):
            network, columns, self._optimizer_state = course.train(
                network, x, targets, plan, self._seed, bool(self.verbose)
            )
            elbo = network.elbo(x, targets, num_samples=40 if len(x) < 4000 else 20)
        self.mixture_weights_ = torch.softmax(_SHARPNESS * elbo.per_datum, -1).numpy()
        self.elbo_ = float(self.mixture_weights_ @ elbo.total.numpy()) + len(x) * self._log_jacobian()
        self.network_ = network.double()  # predictions are made in double precision
        self._progress = 1.0
        self._record(columns)
        return self

    def _fit_on(self, X: np.ndarray, y: np.ndarray, *, first: bool) -> Self:
        """Go on by one pass over validated data."""
        if first:
            network, _ = self._started(X)
            self.mixture_weights_ = np.full(self.n_networks, 1 / self.n_networks)
            self._progress, self._optimizer_state = 0.0, None
        else:
            network = self.network_.float()
            self.n_samples_seen_ += len(X)
            network.num_data = self.n_samples_seen_
        columns, self._progress, self._optimizer_state = course.train_on(
            network,
            self._inputs(X).float(),
            self._encoded(y),
            replace(self._course(len(X), "thorough"), shortness=1.0),
            self._progress,
            self._optimizer_state,
            self._seed + self.n_samples_seen_,
            bool(self.verbose),
        )
        self.network_ = network.double()
        self._record(columns)
        return self

    def _started(self, X: np.ndarray) -> tuple[noisynat.VariationalNetwork, course.Course]:
        """An untrained network for X, and how it is to be trained; forgets any training before."""
        self._check_settings()
        self._seed = seed_of(self.random_state)
        self.x_scaler_ = StandardScaler().fit(X)
        self.n_samples_seen_ = len(X)
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.elbo_history_: list[float] = []
        plan = self._course(len(X))
        network = noisynat.VariationalNetwork(
            course.make_net(self._sizes(), self.activation, self._seed),
            self._likelihood(plan.noise_step(len(X))),
            noisynat.GaussianPrior(self.prior_variance),
            plan.structure,
            num_data=len(X),
            replicas=self.n_networks,
            initial_precision=plan.initial_precision,
            seed=self._seed,
        )
        return network, plan

    def _record(self, columns: dict[str, list[Any]]) -> None:
        """Histories as means over the networks, in the targets' own units."""
        self.loss_curve_ += [float(np.mean(loss)) - self._log_jacobian() for loss in columns["loss"]]
        self.elbo_history_ += [float(np.mean(elbo)) + self._log_jacobian() for elbo in columns["elbo"]]
        self.n_iter_ += len(columns["loss"])

    def _course(self, examples: int, effort: str | None = None) -> course.Course:
        return course.Course.for_size(
            examples,
            course.count_weights(self._sizes()),
            effort=effort or self.effort,
            epochs=None if self.max_iter == "auto" else int(self.max_iter),
            batch_size=None if self.batch_size == "auto" else int(self.batch_size),
            learning_rate=self.learning_rate_init,
            posterior=self.posterior,
        )

    def _sizes(self) -> list[int]:
        return [self.n_features_in_, *self._hidden(), self._outputs()]

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        return list(sizes) if isinstance(sizes, Iterable) else [sizes]

    def _inputs(self, X: np.ndarray) -> Tensor:
        """Standardized and limited, float64."""
        x = torch.from_numpy(self.x_scaler_.transform(X))
        return x if self.input_limit is None else x / (1 + (x / self.input_limit).square()).sqrt()

    # --- prediction -------------------------------------------------------------------------------

    def _predictive(self, x: Tensor, num_samples: int | None = None, seed: int | None = None) -> noisynat.Predictive:
        """Of the network's inputs x (n, features); the same numbers at every call, whatever rows x has."""
        num_samples = num_samples or self.n_posterior_samples
        return self.network_.predict(
            x,
            -(-num_samples // self.n_networks),
            torch.Generator().manual_seed(self._seed if seed is None else seed),
            combine=torch.from_numpy(self.mixture_weights_) if self.n_networks > 1 else "equal",
        )

    def _predictives(self, x: Tensor) -> Iterator[tuple[slice, noisynat.Predictive]]:
        """The predictive of x, as many rows at a time as keep its memory small."""
        rows = max(_ENTRIES_AT_ONCE // (self.n_posterior_samples * self._outputs()), 1)
        for start in range(0, len(x), rows):
            at = slice(start, start + rows)
            yield at, self._predictive(x[at])

    # --- settings ---------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Raise ValueError or TypeError for a setting that training could not use."""
        for name in ("n_networks", "n_posterior_samples", "max_iter", "batch_size"):
            value = getattr(self, name)
            if name in ("max_iter", "batch_size") and isinstance(value, str) and value == "auto":
                continue
            if not _is_positive_whole(value):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        if not all(map(_is_positive_whole, self._hidden())):
            raise ValueError(f"hidden_layer_sizes must be positive whole numbers, got {self.hidden_layer_sizes!r}")
        if not _is_positive(self.learning_rate_init):
            raise ValueError(f"learning_rate_init must be a positive number, got {self.learning_rate_init!r}")
        if self.input_limit is not None and not _is_positive(self.input_limit):
            raise ValueError(f"input_limit must be a positive number or None, got {self.input_limit!r}")
        for name, names in {
            "activation": course.ACTIVATIONS,
            "posterior": course.STRUCTURES,
            "effort": course.EFFORTS,
        }.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} is one of {', '.join(names)}; got {getattr(self, name)!r}")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")


def _is_positive_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and 0 < float(value) < float("inf")


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """A seed: of a RandomState its next number; of None one that follows NumPy's global state, without advancing it."""
    if random_state is None:
        state = check_random_state(None).get_state(legacy=False)["state"]
        digest = hashlib.sha256(state["key"].tobytes() + int(state["pos"]).to_bytes(8, "little")).digest()
        return int.from_bytes(digest[:4], "little") >> 1
    return int(check_random_state(random_state).randint(2**31 - 1))
