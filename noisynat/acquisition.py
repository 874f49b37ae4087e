"""Acquisition functions: where to look next, as scores of candidate points (*replicas, N), the highest first.

For active learning, the spread of the functions or the information that a target gives about the weights; for
optimization, expected improvement. Thompson sampling needs none: take the optimum of one of
:meth:`noisynat.VariationalNetwork.sample_functions`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.predictive import Predictive

__all__ = ["bald", "expected_improvement", "predictive_variance"]


def predictive_variance(prediction: Predictive) -> Tensor:
    """Epistemic variance, added up over outputs, (*replicas, N): the criterion of MacKay (1992) for equal noise.

    Args:
        prediction: at the candidates.
    """
    return prediction.epistemic_variance.sum(-1)


def bald(prediction: Predictive) -> Tensor:
    """Information gain about the weights, nats, (*replicas, N) (Houlsby et al. 2011).

    Targets of several outputs are scored one by one and added up.

    Args:
        prediction: at the candidates.
    """
    information = prediction.mutual_information
    return information if information.dim() < prediction.samples.dim() - 1 else information.sum(-1)


def expected_improvement(prediction: Predictive, best: float | Tensor, *, maximize: bool = False) -> Tensor:
    """E[max(best - f, 0)] of the first output's mean of y given a sampled function, (*replicas, N) (Mockus 1975).

    Args:
        prediction: at the candidates; one output.
        best: value so far, broadcast to (*replicas, N), to be estimated without noise where there is noise; or that of
            every sampled function at the known points, (S, *replicas, 1) (Letham et al. 2019).
        maximize: whether high values are wanted, E[max(f - best, 0)].

    Raises:
        ValueError: if there are several outputs.
    """
    means = prediction.means
    if means.shape[-1] != 1:
        raise ValueError(f"expected improvement is of one output, this prediction has {means.shape[-1]}")
    gain = means.squeeze(-1) - torch.as_tensor(best, dtype=means.dtype, device=means.device)
    return prediction.average((gain if maximize else -gain).clamp(min=0))
