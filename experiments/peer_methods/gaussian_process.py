"""Exact Gaussian process regression with the package gpytorch (Gardner et al. 2018).

Constant mean, a length scale per input, and homoscedastic noise; Matern 5/2 and squared-exponential kernels are both
fitted by maximum marginal likelihood (L-BFGS from long and from short length scales, Cholesky factorizations in
float64), and the fit of highest marginal likelihood predicts.

The noise variance is at least delta^2 / 12, that of rounding to the targets' resolution delta. Without such a floor the
marginal likelihood has no useful maximum where repeated rows of inputs have equal rounded targets (wine: integer
grades): it grows without bound as noise and length scales vanish, and such a fit predicts only what it has seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.mixture import Mixture
from experiments.protocol import Splits

_REFUSED = 1e3  # nats per datum, where a covariance has no Cholesky factor
_LEAST_NOISE = 1e-4  # variance, gpytorch's own bound; standardized targets


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    kernels: Sequence[str] = ("matern52", "rbf"),
    scales: Sequence[float] = (1.0, 0.4),
    iterations: int = 60,
) -> Iterator[Prediction]:
    """Predictions of the fit of highest marginal likelihood in each split.

    Args:
        splits: R of them.
        budget: not used, there is no network.
        kernels: of "matern52" and "rbf".
        scales: initial length scales over the square root of the number of inputs, a fit from each.
        iterations: of L-BFGS per fit, at most.
    """
    import gpytorch

    for r in range(splits.count):
        started = time.perf_counter()
        x, y = splits.x_train[r].double(), splits.y_train[r, :, 0].double()
        with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.max_cholesky_size(len(x) + 1):
            fits = [(kernel, *fit(x, y, kernel, scale, iterations)) for kernel in kernels for scale in scales]
            kernel, model, evidence = max(fits, key=lambda fit: fit[2])
            seconds = time.perf_counter() - started
            model.eval()
            with torch.no_grad():
                prediction = model.likelihood(model(splits.x_test[r].double()))
        chosen: dict[str, float | str] = {
            "kernel": kernel,
            "noise_std": math.sqrt(model.likelihood.noise.item()),
            "log_evidence_per_datum": evidence,
        }
        yield Prediction(Mixture(prediction.mean[None], prediction.stddev[None]), seconds, chosen)


def _noise_floor(y: Tensor) -> float:
    """Variance of rounding to the resolution of ``y``, the least difference between two values."""
    return max(float(y.unique().diff().min()) ** 2 / 12, _LEAST_NOISE)


def _model(x: Tensor, y: Tensor, kernel: str, scale: float) -> Any:
    """An exact GP on standardized data, its noise variance 0.1 above the floor to begin with."""
    import gpytorch

    kinds = {"matern52": gpytorch.kernels.MaternKernel, "rbf": gpytorch.kernels.RBFKernel}

    floor = _noise_floor(y)

    class ExactGP(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            constraint = gpytorch.constraints.GreaterThan(floor)
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint))
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(kinds[kernel](ard_num_dims=x.shape[1]))

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = ExactGP().double()
    model.likelihood.noise = floor + 0.1
    model.covar_module.base_kernel.lengthscale = scale * math.sqrt(x.shape[1])
    return model


def fit(x: Tensor, y: Tensor, kernel: str, scale: float, iterations: int) -> tuple[Any, float]:
    """The model at a maximum of the log marginal likelihood, and that per datum (nats).

    A line search may try a signal variance so large that the noise is lost in rounding, or a length scale that
    underflows to zero: it is told to come back.
    """
    import gpytorch
    from linear_operator.utils.errors import NanError, NotPSDError

    model = _model(x, y, kernel, scale).train()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        try:
            loss = -objective(model(x), y)
        except (NanError, NotPSDError):
            return torch.tensor(_REFUSED)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return model, float(objective(model(x), y))
