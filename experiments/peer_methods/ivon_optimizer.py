"""IVON (Shen et al. 2024), the improved variational online Newton method, by its authors' package ivon-opt.

A fully factorized Gaussian over all weights with the prior N(0, 1), which IVON states as a weight decay of 1 / N at an
effective sample size of N. The optimizer works weight by weight, so the networks of all splits share one. The noise's
log standard deviation is a parameter of its own, learned by Adam at the sampled weights.

Learning rate, first curvature and averaging were compared on 80% of the training parts of the first three splits of
boston, yacht and energy, by the log-likelihood of the other 20%. A large first curvature starts cold and keeps hidden
units alive, a slow average (beta2) stays cold for long: yacht wants both and boston neither, so each split selects.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import noisynat
from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.mixture import Mixture
from experiments.peer_methods.stacked import StackedMLP, gaussian_nll
from experiments.protocol import Splits


def predictions(
    splits: Splits,
    budget: Budget,
    *,
    lr: float = 0.02,
    hess_init: float = 10.0,
    beta2: float = 0.999,
    clip_radius: float = 0.1,
    mc_samples: int = 1,
    prior_precision: float = 1.0,
    noise_lr: float = 0.01,
) -> Iterator[Prediction]:
    """Predictions with weights drawn from the posterior of each split's network.

    Args:
        splits: R of them.
        budget: of the training.
        lr: of IVON at the beginning; it falls to zero along a cosine.
        hess_init: the curvature's first value.
        beta2: of the curvature's moving average.
        clip_radius: largest preconditioned gradient of a weight.
        mc_samples: of the weights in every step.
        prior_precision: of every weight.
        noise_lr: of Adam on the log standard deviation of the noise.
    """
    import ivon

    started = time.perf_counter()
    count, num_data = splits.count, splits.num_train
    with torch.random.fork_rng():  # the package draws from the global generator
        torch.manual_seed(budget.seed)
        net = StackedMLP(count, splits.features, budget.hidden, seed=budget.seed)
        log_std = nn.Parameter(torch.zeros(count, 1, 1))
        optimizer = ivon.IVON(
            net.parameters(),
            lr=lr,
            ess=num_data,
            hess_init=hess_init,
            beta2=beta2,
            weight_decay=prior_precision / num_data,
            mc_samples=mc_samples,
            clip_radius=clip_radius,
        )
        noise_optimizer = torch.optim.Adam([log_std], lr=noise_lr)
        batches = noisynat.TensorBatches(
            splits.x_train, splits.y_train, budget.batch_size, replicas=(count,), seed=budget.seed
        )
        steps = budget.epochs * len(batches)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in (optimizer, noise_optimizer)]
        for _ in range(budget.epochs):
            for x, y in batches:
                noise_optimizer.zero_grad()
                for _ in range(mc_samples):
                    with optimizer.sampled_params(train=True):
                        optimizer.zero_grad()
                        gaussian_nll(net(x), y, log_std).mean((1, 2)).sum().backward()
                optimizer.step()
                noise_optimizer.step()
                for schedule in schedules:
                    schedule.step()
        seconds = (time.perf_counter() - started) / count
        samples = _samples(net, optimizer, splits.x_test, budget.test_samples)
    std = log_std.detach().double().exp()[:, 0]
    for r in range(count):
        yield Prediction(Mixture(samples[:, r], std[r]), seconds, {"noise_std": float(std[r])})


@torch.no_grad()
def _samples(net: StackedMLP, optimizer: object, x: Tensor, count: int) -> Tensor:
    """Outputs at weights drawn from the posterior, (count, R, n), float64."""
    drawn = []
    for _ in range(count):
        with optimizer.sampled_params():  # type: ignore[attr-defined]
            drawn.append(net(x)[..., 0].double())
    return torch.stack(drawn)
