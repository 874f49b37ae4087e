"""Acquisition functions: where to look next, as scores of candidate points (*replicas, N), the highest first.

For active learning, the spread of the functions, how much of it a target would take away, or what a target tells about
the weights; for optimization, expected improvement. Thompson sampling needs none: take the optimum of one of
:meth:`noisynat.VariationalNetwork.sample_functions`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.predictive import Predictive

__all__ = ["bald", "expected_improvement", "expected_variance_reduction", "predictive_variance"]


def predictive_variance(prediction: Predictive) -> Tensor:
    """Epistemic variance, added up over outputs, (*replicas, N): the criterion of MacKay (1992) for equal noise.

    Args:
        prediction: at the candidates.
    """
    return prediction.epistemic_variance.sum(-1)


def expected_variance_reduction(prediction: Predictive, reference: slice | Tensor = slice(None)) -> Tensor:
    """By how much a target would lower the mean epistemic variance at reference inputs, (*replicas, N).

    Cov[f_m, f_n]^2 / (Var[f_n] + noise_n), averaged over reference inputs m and added up over outputs: exact where the
    functions are normal, and an estimate elsewhere (Cohn et al. 1996). A target far from all that will be asked about
    has a high variance, and tells little.

    Args:
        prediction: at candidates and reference inputs together, for the same functions at both.
        reference: which of its N inputs stand for those that count; all of them by default. Memory is that of N numbers
            for each of them.

    Raises:
        ValueError: if there are no reference inputs.
    """
    deviations = prediction.means - prediction.mean
    n = deviations.mT  # (S, *replicas, K, N)
    m = deviations[..., reference, :].mT
    if m.shape[-1] == 0:
        raise ValueError(f"reference={reference} picks none of the prediction's {n.shape[-1]} inputs")
    if prediction.weights is None:
        m = m / len(m)
    else:
        m = m * prediction.weights[..., None, None]
    covariance = torch.einsum("s...m,s...n->...mn", m, n)
    variance = prediction.variance.mT.clamp(min=torch.finfo(n.dtype).tiny)
    return (covariance.square().mean(-2) / variance).sum(-2)


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
