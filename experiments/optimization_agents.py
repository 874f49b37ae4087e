"""Who chooses the next point in Bayesian optimization: our posteriors, and chance to compare them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import noisynat
from noisynat import acquisition
from noisynat.random import RandomStream

_STEPS_PER_EPOCH = 10

Agent = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From points (R, n, d), standardized values (R, n), candidates (R, C, d) and a seed to the next points (R, d)."""


def lowest(
    score: Callable[[Tensor], Tensor], candidates: Tensor, kept: int = 5, steps: int = 30, lr: float = 0.05
) -> Tensor:
    """A point of the unit cube where a score is low: the best candidates moved downhill, and the best of them, (R, d).

    Args:
        score: of points (R, N, d), (R, N), differentiable.
        candidates: (R, C, d).
        kept: candidates that are moved.
        steps: of Adam.
        lr: its learning rate at first, which falls to zero.
    """
    rows = torch.arange(len(candidates)).unsqueeze(1)
    with torch.no_grad():
        points = candidates[rows, score(candidates).topk(kept, largest=False).indices]
    points.requires_grad_()
    optimizer = torch.optim.Adam([points], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        (points.grad,) = torch.autograd.grad(score(points).sum(), points)
        optimizer.step()
        with torch.no_grad():
            points.clamp_(0, 1)
    with torch.no_grad():
        return points[rows, score(points).argmin(1, keepdim=True)].squeeze(1)


def at_random(x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
    """The first candidate."""
    return candidates[:, 0]


@dataclass(frozen=True)
class Networks:
    """Mixtures of networks with one hidden layer and a dense posterior, trained on values without noise.

    A few dozen values without noise want other settings than large noisy sets do. The noise is fixed and small:
    inferred, it grows to the values' own size before the network has learned them. The trust region is wide, or
    training ends before they are learned. The curvature forgets fast, as its first value would keep the posterior
    narrow far from all points.

    Args:
        members: M, networks in a mixture.
        samples: S, functions of each network, for expected improvement.
        hidden: units.
        steps: of training, on all values at once; the last fifth with the dense posterior.
        noise: standard deviation, in that of the values.
    """

    members: int = 1
    samples: int = 16
    hidden: int = 50
    steps: int = 200
    noise: float = 0.01

    def trained(self, x: Tensor, y: Tensor, seed: int) -> noisynat.VariationalNetwork:
        """Posteriors given points (R, n, d) and standardized values (R, n); replicas are (R, M)."""
        repeats, count, dim = x.shape
        torch.manual_seed(seed)
        network = noisynat.VariationalNetwork(
            nn.Sequential(nn.Linear(dim, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1)),
            noisynat.GaussianLikelihood(self.noise),
            num_data=count,
            replicas=(repeats, self.members),
            initial_precision=10.0,
            seed=seed,
        )
        batch = self._inputs(x), y.float()[:, None, :, None].expand(-1, self.members, -1, -1)
        data = [batch] * _STEPS_PER_EPOCH
        epochs, last = self.steps // _STEPS_PER_EPOCH, self.steps // (5 * _STEPS_PER_EPOCH)
        first = noisynat.NoisyKFAC(network, lr=0.3, kl_clip=1.0, betas=(0.9, 0.95), stats_every=1, refresh_every=10)
        schedule = noisynat.cosine_schedule(first, (epochs - last) * _STEPS_PER_EPOCH)
        noisynat.fit(
            network, first, data, epochs - last, scheduler=schedule, kl_warmup=1.0, kl_start=0.1, progress=False
        )
        network = network.with_posterior("dense")
        second = noisynat.NoisyNaturalGradient(
            network, lr=0.1, kl_clip=1.0, betas=(0.9, 0.96), damping=0.0, stats_every=1, refresh_every=10
        )
        noisynat.fit(network, second, data, last, progress=False)
        return network

    def thompson(self, x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
        """The lowest point of a function drawn from the posterior (Thompson 1933)."""
        function = self.trained(x, y, seed).sample_functions(1)[0]
        return lowest(lambda points: function(self._inputs(points))[:, 0, :, 0], candidates)

    def improvement(self, x: Tensor, y: Tensor, candidates: Tensor, seed: int) -> Tensor:
        """The point of highest expected improvement on the best point so far, by functions that are drawn once.

        Improvement is on what each function itself is at the known points (Letham et al. 2019): the functions pass them
        within the noise only, and improvement on a number would be had there again and again.
        """
        network = self.trained(x, y, seed)
        functions, noise = network.sample_functions(self.samples), network.likelihood.observation_model()
        best = functions(self._inputs(x)).amin(-2, keepdim=True)  # (S, R, M, 1, 1)

        def score(points: Tensor) -> Tensor:
            beyond = noisynat.Predictive(functions(self._inputs(points)) - best, noise, RandomStream(seed)).combine()
            return -acquisition.expected_improvement(beyond, 0.0)

        return lowest(score, candidates)

    def _inputs(self, points: Tensor) -> Tensor:
        """Points (R, N, d) of the unit cube as inputs between -2 and 2 for all members, (R, M, N, d)."""
        return (4 * points.float() - 2).unsqueeze(1).expand(-1, self.members, -1, -1)
