"""Scores of predictions as ``torchmetrics`` metrics that take a :class:`~noisynat.Predictive` and targets.

They add up over batches: the result is that of all rows at once, whatever the batches, but for :class:`CRPS` where it
draws. With replicas the result has a number for each, (*replicas,); the calibration error is of one network. Metrics
that torchmetrics has itself take ``prediction.mean``, ``prediction.probs`` or ``prediction.mode``.

Needs the extra ``noisynat[metrics]``: torchmetrics, and for :class:`CRPS` scoringrules; without the first, importing
this module raises ImportError.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisynat.calibration import central_level, checked_level, confidence, is_of_classes
from noisynat.predictive import Predictive

try:
    from torchmetrics import Metric
    from torchmetrics.functional.classification import binary_calibration_error
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError('torchmetrics is not installed; get it with pip install "noisynat[metrics]"') from error

__all__ = [
    "CRPS",
    "ExpectedCalibrationError",
    "IntervalCoverage",
    "IntervalWidth",
    "MeanOverRows",
    "MixtureNLL",
]

_PAIRS = 4_000_000  # of mixture components that are held at a time


class MeanOverRows(Metric):
    """A mean over rows, float64, (*replicas,): what the metrics of this module are. A subclass needs :meth:`values`."""

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    total: Tensor
    count: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, prediction: Predictive, y: Tensor) -> Tensor:
        """Of every row, (..., *replicas, N)."""

    def update(self, prediction: Predictive, y: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: at N inputs.
            y: their targets, as for :meth:`noisynat.Predictive.log_prob`.

        Raises:
            ValueError: if y has another shape.
            TypeError: if the metric is of numbers and the targets are classes, or the other way round.
        """
        values = self.values(prediction, y).detach().double()
        self.total = self.total + values.sum(-1)
        self.count = self.count + values.shape[-1]

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return self.total / self.count


class MixtureNLL(MeanOverRows):
    """Mean negative log-likelihood of the mixture, nats per row: of numbers its density, of classes its probability.

    Args:
        scale: standard deviation that the targets were divided by, a number or (K,): the result is then that of
            targets in raw units.
        settings: of ``torchmetrics.Metric``.

    Raises:
        ValueError: if the scale is not positive and finite.
        TypeError: in ``update``, if a scale is given for classes.

    Example:
        >>> import torch, noisynat
        >>> from noisynat.metrics import MixtureNLL
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(2, 1), noisynat.GaussianLikelihood(0.5), num_data=100)
        >>> x, y, nll = torch.randn(8, 2), torch.randn(8, 1), MixtureNLL()
        >>> for rows in (slice(0, 5), slice(5, 8)):
        ...     nll.update(bnn.predict(x[rows], generator=torch.Generator().manual_seed(0)), y[rows])
        >>> whole = bnn.predict(x, generator=torch.Generator().manual_seed(0)).log_prob(y)
        >>> torch.allclose(nll.compute(), -whole.mean().double())
        True
    """

    def __init__(self, scale: float | Tensor | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.scale = None if scale is None else _checked_scale(scale)

    def values(self, prediction: Predictive, y: Tensor) -> Tensor:
        nats = -prediction.log_prob(y).double()
        if self.scale is None:
            return nats
        if is_of_classes(prediction):
            raise TypeError("a scale is of numbers, and these targets are classes")
        return nats + self.scale.to(nats.device).log().expand(prediction.means.shape[-1]).sum()


class CRPS(MeanOverRows):
    """Mean continuous ranked probability score, in the targets' units (Gneiting and Raftery 2007, section 4.2).

    Exact for mixtures of normal distributions. Others are scored on draws, with a standard error for every row of about
    half a standard deviation of y over the root of their number, twice that for outliers. Several outputs are scored
    one by one and averaged.

    Args:
        scale: standard deviation that the targets were divided by, a number or (K,).
        num_samples: draws of y for what is not a mixture of normal distributions, at least 2.
        generator: of these draws; by default the prediction's own.
        settings: of ``torchmetrics.Metric``.

    Raises:
        ImportError: if scoringrules is not installed.
        ValueError: if num_samples is less than 2, or the scale is not positive and finite.
        TypeError: in ``update``, if the targets are classes.
    """

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        *,
        num_samples: int = 1000,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        _scoringrules()
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {num_samples}")
        self.scale, self.num_samples, self.generator = _checked_scale(scale), num_samples, generator

    def values(self, prediction: Predictive, y: Tensor) -> Tensor:
        prediction._ordered("the CRPS")
        y = prediction._checked(y).expand(prediction.means.shape[1:])
        mixture = prediction.distribution
        assert isinstance(mixture, torch.distributions.MixtureSameFamily)
        components = mixture.component_distribution
        if isinstance(components, torch.distributions.Normal):
            score = _crps_of_normals(y, components.loc, components.scale, mixture.mixture_distribution.probs)
        else:
            draws = _array(prediction.sample(self.num_samples, self.generator))
            score = _scoringrules().crps_ensemble(_array(y), draws, m_axis=0, estimator="pwm", backend="numpy")
        result = torch.as_tensor(score, dtype=torch.float64, device=y.device)
        return (result * self.scale.to(result.device)).mean(-1)


class IntervalCoverage(MeanOverRows):
    """Share of targets, over rows and outputs, inside the central prediction interval; ``level`` at best.

    Args:
        level: of the interval, as in :meth:`noisynat.Predictive.interval`.
        settings: of ``torchmetrics.Metric``.

    Raises:
        ValueError: unless 0 < level < 1.
        TypeError: in ``update``, if the targets are classes.
    """

    higher_is_better = None

    def __init__(self, level: float = 0.95, **settings: Any) -> None:
        super().__init__(**settings)
        self.level = checked_level(level)

    def values(self, prediction: Predictive, y: Tensor) -> Tensor:
        return (central_level(prediction, y) <= self.level).double().mean(-1)


class IntervalWidth(MeanOverRows):
    """Mean width, over rows and outputs, of the central prediction interval, in the targets' units.

    Of two predictions with the right coverage, the one with the narrower intervals knows more.

    Args:
        level: of the interval, as in :meth:`noisynat.Predictive.interval`.
        scale: standard deviation that the targets were divided by, a number or (K,).
        settings: of ``torchmetrics.Metric``.

    Raises:
        ValueError: unless 0 < level < 1 and the scale is positive and finite.
        TypeError: in ``update``, if the targets are classes.
    """

    def __init__(self, level: float = 0.95, scale: float | Tensor = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.level, self.scale = checked_level(level), _checked_scale(scale)

    def values(self, prediction: Predictive, y: Tensor) -> Tensor:
        lower, upper = prediction.interval(self.level)
        prediction._checked(y)
        return ((upper - lower).double() * self.scale.to(upper.device)).mean(-1)


class ExpectedCalibrationError(Metric):
    """Mean distance of probability and frequency over bins: torchmetrics' calibration error, from a prediction.

    The events are those of :func:`noisynat.calibration.confidence`: that the most probable class is right, or that a
    binary target is 1.

    Args:
        bins: number of bins of equal width.
        norm: "l1" for the mean distance, "l2" for the root of the mean square, "max" for the largest.
        settings: of ``torchmetrics.Metric``.

    Raises:
        ValueError: in ``update``, if there are replicas, or y has another shape.
        TypeError: in ``update``, if the targets are numbers.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    confidences: list[Tensor]
    happened: list[Tensor]

    def __init__(self, bins: int = 15, norm: Literal["l1", "l2", "max"] = "l1", **settings: Any) -> None:
        super().__init__(**settings)
        self.bins, self.norm = bins, norm
        self.add_state("confidences", default=[], dist_reduce_fx="cat")
        self.add_state("happened", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Predictive, y: Tensor) -> None:
        """Add a batch; arguments as for :meth:`MeanOverRows.update`."""
        if prediction.samples.dim() > 3:
            raise ValueError("a calibration error is of one network: take prediction.replica(i) or .combine()")
        confidences, happened = confidence(prediction, y)
        self.confidences.append(confidences.detach().flatten())
        self.happened.append(happened.flatten().long())

    def compute(self) -> Tensor:
        """The calibration error of all events so far, ()."""
        confidences, happened = dim_zero_cat(self.confidences), dim_zero_cat(self.happened)
        result: Tensor = binary_calibration_error(confidences, happened, n_bins=self.bins, norm=self.norm)
        return result


def _checked_scale(scale: float | Tensor) -> Tensor:
    """() or (K,), float64."""
    result = torch.as_tensor(scale, dtype=torch.float64)
    if not bool((torch.isfinite(result) & (result > 0)).all()):
        raise ValueError(f"a scale is a positive, finite standard deviation, got {scale}")
    return result


def _scoringrules() -> Any:
    try:
        import scoringrules
    except ImportError as error:
        raise ImportError('scoringrules is not installed; get it with pip install "noisynat[metrics]"') from error
    return scoringrules


def _crps_of_normals(y: Tensor, mean: Tensor, std: Tensor, weight: Tensor) -> np.ndarray:
    """For y (*batch) and S components (*batch, S), some rows at a time: all pairs of components count."""
    samples = mean.shape[-1]
    rows = max(1, _PAIRS // samples**2)
    parts = [
        _scoringrules().crps_mixnorm(*(_array(part) for part in chunk), backend="numpy")
        for chunk in zip(
            y.flatten().split(rows),
            *(values.expand(mean.shape).reshape(-1, samples).split(rows) for values in (mean, std, weight)),
            strict=True,
        )
    ]
    return np.concatenate(parts).reshape(y.shape)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array
