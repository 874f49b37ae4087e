"""The Laplace approximation of the package laplace-torch (Daxberger et al. 2021), linearized predictive.

Networks are trained to the maximum a posteriori with Adam and a learned noise. Around them the package fits the
generalized Gauss-Newton matrix of all weights; prior precision (a value per weight or bias tensor) and noise are then
tuned by its marginal likelihood, all in float64: with next to no noise, single precision finds the posterior precision
not to be positive definite. A network trained with unit noise needs no variant of its own: its weights are those
of a learned noise and a prior precision divided by the noise variance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.map_training import train_map
from experiments.peer_methods.mixture import Mixture
from experiments.protocol import Splits

_BATCH = 2048
_PREDICTED_AT_ONCE = 512  # the package's memory for a prediction grows with the square of the examples


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    structure: Literal["full", "kron"] = "full",
    prior_precision: float = 1.0,
    lr: float = 0.01,
    tuning_steps: int = 60,
    tuning_lr: float = 0.1,
) -> Iterator[Prediction]:
    """Predictions of the linearized network.

    Args:
        splits: R of them.
        budget: of the networks' training.
        structure: of the Gauss-Newton matrix.
        prior_precision: that the network is trained with, and that the tuning begins with.
        lr: of Adam at the beginning.
        tuning_steps: of Adam on the logarithms of prior precisions and noise.
        tuning_lr: of those steps.
    """
    from laplace import Laplace
    from laplace.curvature import BackPackGGN, CurvlinopsGGN

    # The same full matrix from either; the default, CurvlinopsGGN, takes a hundred times as long.
    backend = BackPackGGN if structure == "full" else CurvlinopsGGN
    started = time.perf_counter()
    nets, log_std = train_map(
        splits.x_train,
        splits.y_train,
        budget.hidden,
        prior_precision,
        "learned",
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        lr=lr,
        seed=budget.seed,
    )
    training = (time.perf_counter() - started) / splits.count
    for r in range(splits.count):
        started = time.perf_counter()
        examples = TensorDataset(splits.x_train[r].double(), splits.y_train[r].double())
        data = DataLoader(examples, batch_size=_BATCH, generator=torch.Generator())
        posterior = Laplace(
            nets.single(r).double(),
            "regression",
            subset_of_weights="all",
            hessian_structure=structure,
            backend=backend,
        )
        posterior.fit(data)
        evidence = _tune(posterior, prior_precision, log_std[r].double(), tuning_steps, tuning_lr)
        seconds = training + time.perf_counter() - started
        with torch.no_grad():
            chunks = splits.x_test[r].double().split(_PREDICTED_AT_ONCE)
            means, variances = zip(*(posterior(x, pred_type="glm") for x in chunks), strict=True)
            mean = torch.cat(means)
            std = (torch.cat(variances)[:, 0, 0] + posterior.sigma_noise.square()).sqrt()
        chosen = {"noise_std": float(posterior.sigma_noise), "log_evidence_per_datum": evidence / splits.num_train}
        yield Prediction(Mixture(mean.T, std[None]), seconds, chosen)


def _tune(posterior: Any, prior_precision: float, log_std: Tensor, steps: int, lr: float) -> float:
    """Set prior precisions and noise to a maximum of the log marginal likelihood, and return that (nats)."""
    log_precision = torch.full((posterior.n_layers,), prior_precision, dtype=torch.float64).log().requires_grad_()
    log_std = log_std.reshape(1).clone().requires_grad_()
    optimizer = torch.optim.Adam([log_precision, log_std], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (-posterior.log_marginal_likelihood(log_precision.exp(), log_std.exp())).backward()
        optimizer.step()
    with torch.no_grad():  # also leaves these values in the posterior
        return float(posterior.log_marginal_likelihood(log_precision.exp(), log_std.exp()))
