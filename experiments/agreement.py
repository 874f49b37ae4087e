"""How close a predictive distribution q is to a reference p, test point by test point.

Everything is of predictions with one output, in the units of the targets they are given in. With q the reference's own
second half, the same figures say how much of them is Monte Carlo noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from scipy import stats
from torch import Tensor

import noisynat

_HALF_WIDTH = 10.0  # of the grid of y, in standard deviations of the reference


@dataclass(frozen=True)
class Agreement:
    """Figures of q against the reference p, over the test points n.

    Args:
        mean_distance: root mean square of (E_q[f_n] - E_p[f_n]) / sd_p[f_n]: the means in units of the reference's
            epistemic standard deviation.
        epistemic_ratio: mean of sd_q[f_n] / sd_p[f_n].
        epistemic_correlation: Spearman's rank correlation of sd_q[f_n] and sd_p[f_n].
        total_ratio: mean of sd_q[y_n] / sd_p[y_n], noise included.
        total_correlation: Spearman's rank correlation of those.
        wasserstein: mean of the 2-Wasserstein distance between q(y_n) and p(y_n), targets' units.
        kl: mean of KL(p(y_n) || q(y_n)), nats.
    """

    mean_distance: float
    epistemic_ratio: float
    epistemic_correlation: float
    total_ratio: float
    total_correlation: float
    wasserstein: float
    kl: float

    def row(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def compare(
    reference: noisynat.Predictive,
    other: noisynat.Predictive,
    *,
    samples: int = 20_000,
    grid: int = 801,
    generator: torch.Generator | None = None,
) -> Agreement:
    """All figures of ``other`` against ``reference``, predictions (S, N, 1) at the same N inputs.

    Args:
        reference: p.
        other: q.
        samples: of y, for the Wasserstein distance.
        grid: points of y for the integral of the KL divergence.
        generator: of the samples of y.

    Raises:
        ValueError: if the predictions are not both (S, N, 1).
    """
    shapes = [tuple(p.samples.shape[1:]) for p in (reference, other)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] != 1:
        raise ValueError(f"predictions must be of one output at the same inputs, (S, N, 1); got {shapes}")
    generator = generator or torch.Generator().manual_seed(0)
    p_std, q_std = (_flat(p.epistemic_variance).sqrt() for p in (reference, other))
    p_total, q_total = (_flat(p.stddev) for p in (reference, other))
    distance = (_flat(other.mean) - _flat(reference.mean)) / p_std
    p_y, q_y = (p.sample(samples, generator).squeeze(-1).double() for p in (reference, other))
    return Agreement(
        mean_distance=float(distance.square().mean().sqrt()),
        epistemic_ratio=float((q_std / p_std).mean()),
        epistemic_correlation=rank_correlation(p_std, q_std),
        total_ratio=float((q_total / p_total).mean()),
        total_correlation=rank_correlation(p_total, q_total),
        wasserstein=float(wasserstein(p_y, q_y).mean()),
        kl=float(kl_divergence(reference, other, grid=grid).mean()),
    )


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors (N,); nan if one is constant."""
    if bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return math.nan
    return float(stats.spearmanr(first.numpy(), second.numpy()).statistic)


def wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """2-Wasserstein distance (N,) between one-dimensional distributions, from as many samples (S, N) of each.

    In one dimension the optimal coupling is that of the sorted samples (Peyre and Cuturi 2019, section 2.6).
    """
    difference = first.sort(0).values - second.sort(0).values
    return difference.square().mean(0).sqrt()


def kl_divergence(p: noisynat.Predictive, q: noisynat.Predictive, *, grid: int = 801) -> Tensor:
    """KL(p(y_n) || q(y_n)) (N,) in nats, by the trapezoidal rule on y within 10 standard deviations of p's mean.

    The rule is exact to machine precision for mixtures of densities much smoother than the grid is fine (Trefethen and
    Weideman 2014). The noise is integrated out of both: p and q are the mixtures.
    """
    centre, width = p.mean.double(), _HALF_WIDTH * p.stddev.double()
    return integrate(lambda y: p.log_prob(y).double(), lambda y: q.log_prob(y).double(), centre, width, grid)


def integrate(
    log_p: Callable[[Tensor], Tensor], log_q: Callable[[Tensor], Tensor], centre: Tensor, width: Tensor, grid: int
) -> Tensor:
    """The integral of p (log p - log q) over [centre - width, centre + width], (N,).

    Args:
        log_p: log density (N,) at y (N, 1).
        log_q: likewise.
        centre: (N, 1).
        width: (N, 1).
        grid: number of points.
    """
    nodes = torch.linspace(-1, 1, grid, dtype=torch.float64)
    values = []
    for node in nodes.tolist():
        y = centre + node * width
        p = log_p(y)
        values.append(p.exp() * (p - log_q(y)))
    return torch.trapezoid(torch.stack(values), nodes, dim=0) * width.squeeze(-1)


def _flat(values: Tensor) -> Tensor:
    return values.squeeze(-1).double()
