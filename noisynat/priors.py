"""Gaussian priors over the weights of each layer: fixed, scaled by fan-in, or fitted by empirical Bayes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

PriorScale = Literal["fan_in"]


class GaussianPrior:
    """p(w) = N(0, eta I) per layer.

    Args:
        variance: the VARIANCE eta (not a standard deviation), positive; a number, one per replica
            (a sequence or tensor, to train a grid of priors at once), or ``"empirical_bayes"``, which sets every
            layer's eta to its closed-form optimum (tr Sigma + |M|^2) / D whenever the posterior is refreshed
            (MacKay 1992), from an initial value of 1.
        scale: ``"fan_in"`` divides the variance by the layer's number of inputs, for all of its entries,
            the bias included; None leaves it.

    Raises:
        ValueError: if a variance is not positive and finite, or a name is not known.
    """

    def __init__(
        self,
        variance: float | Sequence[float] | Tensor | Literal["empirical_bayes"] = 1.0,
        scale: PriorScale | None = None,
    ) -> None:
        if scale not in (None, "fan_in"):
            raise ValueError(f"scale is None or 'fan_in', got {scale!r}")
        self.scale = scale
        self.empirical_bayes = isinstance(variance, str)
        if isinstance(variance, str):
            if variance != "empirical_bayes":
                raise ValueError(f"variance is a number or 'empirical_bayes', got {variance!r}")
            variance = 1.0
        self.variance = torch.as_tensor(variance, dtype=torch.float64)
        if not bool((torch.isfinite(self.variance) & (self.variance > 0)).all()):
            raise ValueError(f"the prior variance must be positive and finite, got {variance}")

    def initial_variance(self, fan_in: int, batch_shape: torch.Size) -> Tensor:
        """eta (*batch,) in float64 of a layer with ``fan_in`` inputs (the bias's constant not counted).

        Raises:
            ValueError: if the variances given do not broadcast to the replicas.
        """
        variance = self.variance / fan_in if self.scale == "fan_in" else self.variance
        try:
            return variance.broadcast_to(batch_shape).clone()
        except RuntimeError as error:
            raise ValueError(
                f"prior variances of shape {tuple(variance.shape)} do not fit replicas {tuple(batch_shape)}"
            ) from error

    def __repr__(self) -> str:
        shown = "'empirical_bayes'" if self.empirical_bayes else str(self.variance.tolist())
        return f"GaussianPrior(variance={shown}, scale={self.scale!r})"


Prior = GaussianPrior | Mapping[str, GaussianPrior]


def priors_by_layer(prior: Prior | None, names: Sequence[str]) -> list[GaussianPrior]:
    """The prior of each layer.

    Args:
        prior: of all layers, or by their names in the network, where ``*`` stands for any characters and ``?`` for any
            one; the first entry that fits a layer counts. N(0, 1) for layers that none fits, and for all if None.
        names: of the layers.

    Raises:
        TypeError: if something given is not a :class:`GaussianPrior`.
        ValueError: if an entry fits no layer.
    """
    if prior is None:
        prior = {}
    elif not isinstance(prior, Mapping):
        prior = {"*": prior}
    for pattern, value in prior.items():
        if not isinstance(value, GaussianPrior):
            raise TypeError(f"a prior must be a GaussianPrior, got {type(value).__name__} for {pattern!r}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the prior's entry {pattern!r} fits none of the layers {', '.join(names)}")
    default = GaussianPrior()
    return [next((p for pattern, p in prior.items() if fnmatchcase(name, pattern)), default) for name in names]
