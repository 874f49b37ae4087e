"""Bayes by Backprop (Blundell et al. 2015) written in Pyro: a mean-field guide fitted by stochastic ELBO gradients.

Weights have the prior N(0, 1) and the noise precision a weak Gamma prior, the ones of our own experiments; the guide
has a normal distribution for every weight and a log-normal one for the precision. It is written out, since the KL
divergence of Pyro's AutoNormal is estimated from the sample even where it is known: the guide's sites are auxiliary.
The KL's weight rises from 0 to 1 over half of the training: from full weight on the guide prunes hidden units before
they have learned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import noisynat
from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.mixture import Mixture
from experiments.peer_methods.stacked import StackedMLP
from experiments.protocol import Splits


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    lr: float = 0.02,
    initial_std: float = 0.02,
    kl_warmup: float = 0.5,
    a0: float = 1.0,
    b0: float = 0.001,
    initial_noise: float = 0.3,
) -> Iterator[Prediction]:
    """Predictions with weights and noise precisions drawn from each split's guide.

    Args:
        splits: R of them, in one model.
        budget: of the training.
        lr: of Adam at the beginning; it falls to zero along a cosine.
        initial_std: of every weight's guide.
        kl_warmup: fraction of the steps in which the KL's weight rises.
        a0: shape of the noise precision's Gamma prior.
        b0: its rate.
        initial_noise: standard deviation.
    """
    import pyro

    started = time.perf_counter()
    with torch.random.fork_rng():  # Pyro draws from the global generator
        pyro.set_rng_seed(budget.seed)
        model = _Model(splits, budget, a0, b0)
        guide = _Guide(model, initial_std, initial_noise)
        batches = noisynat.TensorBatches(
            splits.x_train, splits.y_train, budget.batch_size, replicas=(splits.count,), seed=budget.seed
        )
        _fit(model, guide, batches, budget.epochs, lr, kl_warmup)
        seconds = (time.perf_counter() - started) / splits.count
        mean, std = _samples(model, guide, splits.x_test, budget.test_samples)
    for r in range(splits.count):
        chosen = {"noise_std": float(std[:, r].square().mean().sqrt())}
        yield Prediction(Mixture(mean[:, r], std[:, r]), seconds, chosen)


class _Model:
    """R networks with independent priors; the networks share nothing, so their ELBOs add up.

    Calling it with a batch x (R, B, features), y (R, B, 1) and the KL's weight is Pyro's model of that batch.
    """

    def __init__(self, splits: Splits, budget: Budget, a0: float, b0: float) -> None:
        self.count, self.num_data = splits.count, splits.num_train
        self.a0, self.b0 = a0, b0
        self.start = dict(StackedMLP(splits.count, splits.features, budget.hidden, seed=budget.seed).named_parameters())

    def __call__(self, x: Tensor, y: Tensor, kl_weight: float = 1.0) -> None:
        import pyro
        from pyro import distributions as dist

        with pyro.poutine.scale(scale=kl_weight):
            weights = {
                name: pyro.sample(name, dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim()))
                for name, value in self.start.items()
            }
            precision = pyro.sample("precision", dist.Gamma(self.a0, self.b0).expand([self.count]).to_event(1))
        output = self.forward(x, weights)
        with pyro.poutine.scale(scale=self.num_data / x.shape[1]):
            likelihood = dist.Normal(output, precision.rsqrt()[:, None, None]).to_event(3)
            pyro.sample("y", likelihood, obs=y)

    @staticmethod
    def forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Outputs (R, B, 1)."""
        hidden = torch.baddbmm(weights["bias1"], x, weights["weight1"]).relu()
        return torch.baddbmm(weights["bias2"], hidden, weights["weight2"])


class _Guide(nn.Module):
    """Normal weights about the networks' initial weights, and a log-normal precision; called like the model."""

    def __init__(self, model: _Model, initial_std: float, initial_noise: float) -> None:
        super().__init__()
        start = {**model.start, "precision": torch.full((model.count,), -2 * math.log(initial_noise))}
        self.mean = nn.ParameterDict({name: value.detach().clone() for name, value in start.items()})
        self.log_std = nn.ParameterDict(
            {name: torch.full_like(value, math.log(initial_std)) for name, value in self.mean.items()}
        )

    def forward(self, x: Tensor, y: Tensor | None, kl_weight: float = 1.0) -> dict[str, Tensor]:
        """A draw of the weights and the precision, by name."""
        import pyro
        from pyro import distributions as dist

        draw: dict[str, Tensor] = {}
        with pyro.poutine.scale(scale=kl_weight):
            for name, mean in self.mean.items():
                kind = dist.LogNormal if name == "precision" else dist.Normal
                draw[name] = pyro.sample(name, kind(mean, self.log_std[name].exp()).to_event(mean.dim()))
        return draw


def _fit(
    model: _Model, guide: _Guide, batches: noisynat.TensorBatches, epochs: int, lr: float, kl_warmup: float
) -> None:
    import pyro
    from pyro.infer import TraceMeanField_ELBO

    objective = TraceMeanField_ELBO().differentiable_loss
    optimizer = torch.optim.Adam(guide.parameters(), lr=lr)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    with pyro.validation_enabled(False):
        for _ in range(epochs):
            for x, y in batches:
                step += 1
                optimizer.zero_grad()
                kl_weight = min(step / (kl_warmup * steps), 1.0) if kl_warmup else 1.0
                objective(model, guide, x, y, kl_weight).backward()
                optimizer.step()
                schedule.step()


@torch.no_grad()
def _samples(model: _Model, guide: _Guide, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Outputs (count, R, n) and noise standard deviations (count, R, 1) at draws from the guide, float64."""
    means, stds = [], []
    for _ in range(count):
        draw = guide(x, None)
        means.append(model.forward(x, draw)[..., 0].double())
        stds.append(draw["precision"].double().rsqrt()[:, None])
    return torch.stack(means), torch.stack(stds)
