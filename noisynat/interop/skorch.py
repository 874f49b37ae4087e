"""A network as a skorch net: scikit-learn's fit, predict, searches and pipelines for a module of one's own.

skorch (Tietz et al. 2017) comes with the extra ``noisynat[skorch]``; without it importing this module raises
ImportError. A plain ``skorch.NeuralNet`` hands its criterion the module's outputs and its optimizer a list of
parameters; ours need the batch's inputs and the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisynat.errors import check_finite
from noisynat.likelihoods import ClassModel
from noisynat.network import VariationalNetwork
from noisynat.optim import NoisyNaturalGradient
from noisynat.predictive import Predictive

try:
    from skorch import NeuralNet
    from skorch.callbacks import GradientNormClipping
    from skorch.dataset import unpack_data
    from skorch.utils import to_numpy, to_tensor
except ImportError as error:
    raise ImportError('skorch is not installed; get it with pip install "noisynat[skorch]"') from error

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

__all__ = ["SkorchNetwork"]


class SkorchNetwork(NeuralNet):
    """A ``skorch.NeuralNet`` whose module is a :class:`~noisynat.VariationalNetwork`.

    What ``fit`` minimizes is the network's own loss, by one of this library's optimizers, or, for a ``"mean_field"``
    posterior, by any of torch's; the network's likelihood stands for skorch's criterion. The history's ``train_loss``
    is the mean negative log-likelihood at sampled weights (the negative ELBO per example of a ``"mean_field"``
    posterior), ``valid_loss`` the mean negative log density (of classes, log probability) under the predictive, in
    nats.

    Predictions average over the posterior. Every call draws the same random numbers, so that repeated and batched
    predictions agree. Gradient clipping of a natural posterior is refused: it would scale the likelihood's part of the
    step and not the prior's.

    Args:
        module: makes the network of its ``module__`` arguments: :class:`~noisynat.VariationalNetwork` itself, or a
            function. ``num_data``, unless given, is the number of training examples that ``fit`` is left with after
            ``train_split``.
        criterion: is not used.
        optimizer: a class; it is given the network, ``lr`` and its ``optimizer__`` arguments.
        lr: learning rate.
        num_samples: posterior samples of a prediction.
        seed: of their random numbers.
        use_caching: as for ``skorch.NeuralNet``; only False will do for scores on the training part, whose predictions
            are not those of training passes.
        settings: as for ``skorch.NeuralNet``.

    Raises:
        ImportError: if skorch is not installed.
    """

    def __init__(
        self,
        module: Any = VariationalNetwork,
        criterion: Any = nn.Identity,
        optimizer: Any = NoisyNaturalGradient,
        lr: float = 0.02,
        *,
        num_samples: int = 100,
        seed: int = 0,
        use_caching: bool | str = False,
        **settings: Any,
    ) -> None:
        super().__init__(module, criterion, optimizer, lr, use_caching=use_caching, **settings)
        self.num_samples, self.seed = num_samples, seed

    # --- what is made -----------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Make the network and train it; see ``skorch.NeuralNet.fit``.

        Raises:
            TypeError: if the optimizer is not one for the network's posterior.
            ValueError: if gradients of a natural posterior are to be clipped.
            NonFiniteLossError: when a loss is not finite; parameters are as they were before that step.
        """
        self._num_data = len(self.get_split_datasets(X, y, **fit_params)[0])
        if self.warm_start and self.initialized_:
            self.module_.num_data = self.get_params_for("module")["num_data"]
        super().fit(X, y, **fit_params)
        return self

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> Self:
        """Go on training; the network's ``num_data`` stays as it is. See ``skorch.NeuralNet.partial_fit``."""
        if not self.initialized_:
            self._num_data = len(self.get_split_datasets(X, y, **fit_params)[0])
        super().partial_fit(X, y, classes, **fit_params)
        return self

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Arguments of the module and the like, ``num_data`` of the module included."""
        params: dict[str, Any] = super().get_params_for(prefix)
        if prefix == "module" and hasattr(self, "_num_data"):
            params.setdefault("num_data", self._num_data)
        return params

    def initialize_optimizer(self, *_: Any) -> Self:
        """Make the optimizer: of the network, if its posterior is a natural one."""
        if not self.module_.is_natural:
            super().initialize_optimizer()
            return self
        if not (isinstance(self.optimizer, type) and issubclass(self.optimizer, NoisyNaturalGradient)):
            raise TypeError(
                f"a {self.module_.structure!r} posterior is trained by noisynat's optimizers, such as "
                f"NoisyNaturalGradient, not by {self.optimizer!r}"
            )
        if any(isinstance(callback, GradientNormClipping) for _, callback in self.callbacks_):
            raise ValueError(
                "GradientNormClipping would scale the likelihood's part of the step and not the prior's; leave it out: "
                "the optimizer's kl_clip bounds the whole step"
            )
        (groups,), settings = self.get_params_for_optimizer("optimizer", self.get_all_learnable_params())
        if len(groups) > 1:
            settings["param_groups"] = groups
        self.optimizer_ = self.optimizer(self.module_, **settings)
        return self

    # --- steps ------------------------------------------------------------------------------------

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Back-propagate the objective of a batch."""
        self._set_training(True)
        x, y = self._tensors(batch)
        loss = self.module_.loss(x, y) if self.module_.is_natural else self.module_.negative_elbo(x, y)
        check_finite(loss, f"epoch {len(self.history)}")
        loss.backward()
        return {"loss": loss, "y_pred": None}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """The predictive's mean negative log density of a batch."""
        self._set_training(False)
        x, y = self._tensors(batch)
        prediction = self._predict(x)
        return {"loss": -prediction.log_prob(y).mean(), "y_pred": prediction.mean}

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """The predictive mean, of classes their probabilities; with ``training`` the network's outputs of training."""
        if training:
            outputs: Tensor = super().evaluation_step(batch, training)
            return outputs
        self.check_is_fitted()
        self._set_training(False)
        x = to_tensor(unpack_data(batch)[0], device=self.device)
        return self._predict(x).mean

    # --- predictions ------------------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        """The most probable classes, (N,) or, of binary targets, (N, K); of numbers the predictive mean, (N, K)."""
        if self._has_classes:
            return to_numpy(self.predictive(X).mode)
        return self.predict_proba(X)

    def predictive(self, X: Any) -> Predictive:
        """All that is known of the targets at ``X``, as one prediction."""
        self.check_is_fitted()
        self._set_training(False)
        batches = self.get_iterator(self.get_dataset(X))
        return self._predict(torch.cat([to_tensor(unpack_data(batch)[0], device=self.device) for batch in batches]))

    @property
    def _has_classes(self) -> bool:
        return isinstance(self.module_.likelihood.observation_model(), ClassModel)

    def _predict(self, x: Tensor) -> Predictive:
        generator = torch.Generator(x.device).manual_seed(self.seed)
        prediction: Predictive = self.module_.predict(x, self.num_samples, generator)
        return prediction

    def _tensors(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = (to_tensor(part, device=self.device) for part in unpack_data(batch))
        return x, y
