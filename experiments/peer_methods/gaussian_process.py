"""Exact Gaussian process regression with the package gpytorch (Gardner et al. 2018).

Constant mean, a length scale per input, and homoscedastic noise; Matern 5/2 and squared-exponential kernels are both
fitted by maximum marginal likelihood (L-BFGS, Cholesky factorizations in float64), and the one with the higher
marginal likelihood predicts.
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


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    kernels: Sequence[str] = ("matern52", "rbf"),
    iterations: int = 60,
) -> Iterator[Prediction]:
    """Predictions with the kernel of highest marginal likelihood in each split.

    Args:
        splits: R of them.
        budget: not used, there is no network.
        kernels: of "matern52" and "rbf".
        iterations: of L-BFGS, at most.
    """
    import gpytorch

    for r in range(splits.count):
        started = time.perf_counter()
        x, y = splits.x_train[r].double(), splits.y_train[r, :, 0].double()
        with gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.max_cholesky_size(len(x) + 1):
            fits = {kernel: _fit(x, y, kernel, iterations) for kernel in kernels}
            kernel = max(fits, key=lambda name: fits[name][1])
            model, evidence = fits[kernel]
            seconds = time.perf_counter() - started
            model.eval()
            with torch.no_grad():
                prediction = model.likelihood(model(splits.x_test[r].double()))
        chosen: dict[str, float | str] = {
            "kernel": kernel,
            "noise_std": math.sqrt(float(model.likelihood.noise)),
            "log_evidence_per_datum": evidence,
        }
        yield Prediction(Mixture(prediction.mean[None], prediction.stddev[None]), seconds, chosen)


def _model(x: Tensor, y: Tensor, kernel: str) -> Any:
    """An exact GP on standardized data, its noise standard deviation about 0.3 to begin with."""
    import gpytorch

    kinds = {"matern52": gpytorch.kernels.MaternKernel, "rbf": gpytorch.kernels.RBFKernel}

    class ExactGP(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(kinds[kernel](ard_num_dims=x.shape[1]))

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = ExactGP().double()
    model.likelihood.noise = 0.1
    model.covar_module.base_kernel.lengthscale = math.sqrt(x.shape[1])
    return model


def _fit(x: Tensor, y: Tensor, kernel: str, iterations: int) -> tuple[Any, float]:
    """The model at a maximum of the log marginal likelihood, and that per datum (nats).

    A line search may try a signal variance so large that the noise is lost in rounding: it is told to come back.
    """
    import gpytorch
    from linear_operator.utils.errors import NotPSDError

    model = _model(x, y, kernel).train()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        try:
            loss = -objective(model(x), y)
        except NotPSDError:
            return torch.tensor(_REFUSED)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return model, float(objective(model(x), y))
