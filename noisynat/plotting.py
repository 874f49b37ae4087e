"""Pictures of predictions, of their calibration, of training and of posteriors, on matplotlib's Axes.

Every function draws on the ``ax`` it is given and returns it; nothing else changes, neither pyplot's current figure nor
its settings. Without ``ax`` it opens a new pyplot figure. Colours are those of Okabe and Ito (2008), which colour-blind
readers can tell apart.

Needs the extra ``noisynat[plot]``; without matplotlib a call raises ImportError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from noisynat import calibration, linalg
from noisynat.layers.convert import POSTERIOR, Coverage
from noisynat.posteriors.base import Posterior
from noisynat.predictive import Predictive
from noisynat.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "calibration_curve",
    "coverage_table",
    "elbo_history",
    "posterior_matrix",
    "predictive_band",
    "reliability_diagram",
    "uncertainty_against_error",
]

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
_GREY = "#7f7f7f"
_MAX_WEIGHTS = 2000  # whose covariance is a picture
_GROUPS = 10  # of predictions with about the same standard deviation


def predictive_band(
    x: Tensor, prediction: Predictive, ax: Axes | None = None, *, output: int = 0, color: str = BLUE, label: str = ""
) -> Axes:
    """The mean with two bands around it: dark, two standard deviations of the function; light, those of y, with noise.

    Args:
        x: the inputs that the prediction is at, (N,) or (N, 1), in any order.
        prediction: of numbers, without replicas.
        ax: Axes to draw on.
        output: whose band it is.
        color: of line and bands.
        label: of the mean, for a legend; the bands' labels follow from it.

    Raises:
        TypeError: if the targets are classes.
        ValueError: if there are replicas, or x is not one number per row of the prediction.
    """
    prediction._ordered("a band")
    _check_single(prediction)
    if x.numel() != prediction.mean.shape[0]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected one number for each of {len(prediction.mean)} rows")
    order = x.flatten().argsort()
    at, mean = _array(x.flatten()[order]), _array(prediction.mean[order, output])
    ax = _axes(ax)
    for of, variance, alpha in (("y", prediction.variance, 0.2), ("function", prediction.epistemic_variance, 0.4)):
        std = _array(variance[order, output].sqrt())
        name = f"{label}, {of} ± 2 std" if label else f"{of} ± 2 std"
        ax.fill_between(at, mean - 2 * std, mean + 2 * std, color=color, alpha=alpha, linewidth=0, label=name)
    ax.plot(at, mean, color=color, label=label or "mean")
    _label(ax, "x", "y")
    return ax


def calibration_curve(
    prediction: Predictive,
    y: Tensor,
    ax: Axes | None = None,
    *,
    levels: Sequence[float] = calibration.LEVELS,
    color: str = BLUE,
    label: str = "",
) -> Axes:
    """Share of targets inside central prediction intervals against the intervals' level; on the diagonal at best.

    The shade is two standard errors of the share, rows taken as independent. Above the diagonal intervals are too wide,
    below it too narrow.

    Args:
        prediction: of numbers, without replicas.
        y: targets, (N, K).
        ax: Axes to draw on.
        levels: of the intervals.
        color: of line and shade.
        label: for a legend.

    Raises:
        TypeError: if the targets are classes.
        ValueError: if there are replicas, or y has another shape.
    """
    _check_single(prediction)
    share = _array(calibration.interval_coverage(prediction, y, levels))
    error = 2 * np.sqrt(share * (1 - share) / len(y))
    ax = _axes(ax)
    _diagonal(ax)
    ax.fill_between(levels, (share - error).clip(0), (share + error).clip(max=1), color=color, alpha=0.2, linewidth=0)
    ax.plot(levels, share, "o-", markersize=3, color=color, label=label or None)
    _label(ax, "level of the central interval", "share of targets inside")
    return ax


def reliability_diagram(
    prediction: Predictive, y: Tensor, ax: Axes | None = None, *, bins: int = 10, color: str = BLUE, label: str = ""
) -> Axes:
    """How often events happened against the probability they were given; on the diagonal at best.

    Of classes, the event is that the most probable one is right; of binary targets, that y is 1. Bars are two standard
    errors of the frequency, the size of a dot shows how many events its bin has.

    Args:
        prediction: of classes, without replicas.
        y: class numbers (N,), or binary targets (N, K).
        ax: Axes to draw on.
        bins: of equal width.
        color: of dots and bars.
        label: for a legend.

    Raises:
        TypeError: if the targets are numbers.
        ValueError: if there are replicas, or y has another shape.
    """
    _check_single(prediction)
    found = calibration.reliability(prediction, y, bins)
    filled = _array(found.count) > 0
    probability, frequency, count = (
        _array(values)[filled] for values in (found.confidence, found.frequency, found.count)
    )
    error = 2 * np.sqrt(frequency * (1 - frequency) / count)
    ax = _axes(ax)
    _diagonal(ax)
    ax.errorbar(probability, frequency, yerr=error, color=color, linewidth=1, capsize=2)
    size = 10 + 90 * count / count.max()
    ax.scatter(probability, frequency, size, color=color, zorder=3, label=label or None)
    if prediction.mode.shape == prediction.probs.shape:
        _label(ax, "predicted probability of y = 1", "frequency of y = 1")
    else:
        _label(ax, "probability of the predicted class", "frequency with which it was right")
    return ax


def uncertainty_against_error(
    prediction: Predictive, y: Tensor, ax: Axes | None = None, *, output: int = 0, unit: str = "", color: str = BLUE
) -> Axes:
    """Absolute errors of the mean against the predicted standard deviation of y, one dot for each row.

    Diamonds are root-mean-square errors of tenths of the rows with about the same standard deviation: on the line where
    error and standard deviation agree, if the spread that is predicted is right.

    Args:
        prediction: of numbers, without replicas.
        y: targets, (N, K).
        ax: Axes to draw on.
        output: whose errors they are.
        unit: of the targets, for the labels.
        color: of the dots.

    Raises:
        TypeError: if the targets are classes.
        ValueError: if there are replicas, or y has another shape.
    """
    prediction._ordered("an error")
    _check_single(prediction)
    std = _array(prediction.stddev[:, output])
    error = np.abs(_array(prediction._checked(y)[:, output]) - _array(prediction.mean[:, output]))
    ax = _axes(ax)
    ax.scatter(std, error, 8, color=color, alpha=0.4, linewidth=0, label="one row")
    groups = [group for group in np.array_split(std.argsort(), _GROUPS) if len(group)]
    ax.plot(
        [float(std[group].mean()) for group in groups],
        [float(np.sqrt(np.square(error[group]).mean())) for group in groups],
        "D",
        markersize=5,
        color=RED,
        label="RMSE of a tenth",
    )
    ends = np.array([std.min(), std.max()])
    ax.plot(ends, ends, color="black", linewidth=0.8, linestyle=":", label="error = std")
    of = f" ({unit})" if unit else ""
    _label(ax, f"predicted standard deviation{of}", f"absolute error{of}")
    return ax


def elbo_history(history: History, ax: Axes | None = None, *, parts: bool = True, skip: int = 0) -> Axes:
    """The ELBO per training example by epoch, and its parts: log-likelihood, and the KL as it is subtracted.

    The KL's part is that of the final kl_weight, as in the history's ``elbo``. With replicas the line is their mean and
    the shade reaches from the lowest to the highest.

    Args:
        history: what :func:`noisynat.fit` returned.
        ax: Axes to draw on.
        parts: whether to draw them.
        skip: epochs to leave out at the start, which would flatten the rest.

    Raises:
        ValueError: if no epochs are left.
    """
    if len(history) <= skip:
        raise ValueError(f"the history has {len(history)} epochs, and skip={skip} leaves none to draw")
    epoch = np.array(history["epoch"])[skip:]
    elbo, loss = (np.array(history[key]).reshape(len(history), -1)[skip:] for key in ("elbo", "loss"))
    lines = [("ELBO", elbo, BLUE)]
    if parts:
        lines += [("expected log-likelihood", -loss, GREEN), ("−KL / N", elbo + loss, ORANGE)]
    ax = _axes(ax)
    for label, values, color in lines:
        if values.shape[1] > 1:
            ax.fill_between(epoch, values.min(1), values.max(1), color=color, alpha=0.2, linewidth=0)
        ax.plot(epoch, values.mean(1), color=color, label=label)
    _label(ax, "epoch", "per training example (nats)")
    if parts:
        ax.legend()
    return ax


def posterior_matrix(
    posterior: Posterior,
    ax: Axes | None = None,
    *,
    kind: Literal["precision", "correlation"] = "correlation",
    replica: int | tuple[int, ...] | None = None,
) -> Axes:
    """Heat map of the correlations of a small posterior's weights, or of the size of its precision matrix's entries.

    Weights are in row-major order: all of the first output, its bias last, then of the second; of a joint posterior,
    layer after layer, with lines between.

    Args:
        posterior: one of :attr:`noisynat.VariationalNetwork.posteriors`, of at most 2000 weights.
        ax: Axes to draw on; its figure gets a colour bar.
        kind: ``"precision"`` shows |Sigma^-1| on a logarithmic scale, over six decades at most.
        replica: which one, a number per replica dimension; needed where there are replicas.

    Raises:
        ValueError: if kind or replica does not fit, or the posterior is too large.
    """
    if kind not in ("precision", "correlation"):
        raise ValueError(f"kind is 'precision' or 'correlation', got {kind!r}")
    if posterior.dim > _MAX_WEIGHTS:
        raise ValueError(f"{posterior.name!r} has {posterior.dim} weights, too many for a picture ({_MAX_WEIGHTS})")
    index = () if replica is None else (replica,) if isinstance(replica, int) else tuple(replica)
    if len(index) != len(posterior.batch_shape):
        raise ValueError(
            f"replica needs {len(posterior.batch_shape)} numbers, one per replica dimension, got {replica}"
        )
    with torch.no_grad():
        covariance = linalg.symmetrize(posterior.covariance()[index].double())
        std = covariance.diagonal().sqrt()
        correlation = covariance / std / std.unsqueeze(-1)
        if kind == "precision":
            factor, _ = linalg.cholesky(correlation)
            root = linalg.inverse_of_triangular(factor) / std
            shown = _array((root.mT @ root).abs())
        else:
            shown = _array(correlation)
    ax = _axes(ax)
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    top = float(shown.max())
    scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1.0, "vmax": 1.0}
    if kind == "precision":
        scale = {"cmap": "viridis", "norm": LogNorm(max(float(shown.min()), top / 1e6), top)}
        shown = shown.clip(top / 1e6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    image = ax.imshow(shown, interpolation="nearest", **scale)
    bar = ax.get_figure(root=True).colorbar(image, ax=ax)  # type: ignore[union-attr]
    bar.set_label("correlation" if kind == "correlation" else "|precision|")
    ends = np.cumsum([layer.out_features * layer.columns for layer in posterior.layers])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", linewidth=0.8)
        ax.axvline(end - 0.5, color="black", linewidth=0.8)
    ax.set_title(f"layer{'s' if len(ends) > 1 else ''} {posterior.name}", fontsize="medium")
    _label(ax, "weight", "weight")
    return ax


def coverage_table(coverage: Coverage, ax: Axes | None = None) -> Axes:
    """:meth:`noisynat.VariationalNetwork.coverage` as a table; point estimates are orange.

    Args:
        coverage: the rows.
        ax: Axes to draw on; its frame and ticks are hidden.
    """
    ax = _axes(ax)
    ax.axis("off")
    header = ["parameter", "shape", "entries", "kind", "detail"]
    rows = [
        [row.name, "x".join(map(str, row.shape)) or "scalar", str(row.count), row.kind, row.detail] for row in coverage
    ]
    colors = [["white" if row.kind == POSTERIOR else f"{ORANGE}66"] * len(header) for row in coverage]
    table = ax.table(rows, cellColours=colors, colLabels=header, cellLoc="left", colLoc="left", loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(list(range(len(header))))
    ax.set_title(f"{coverage.fraction:.1%} of the entries have a posterior", fontsize="medium")
    return ax


def _axes(ax: Axes | None) -> Axes:
    """Those given, or those of a new pyplot figure, which becomes the current one."""
    try:
        import matplotlib.axes
    except ImportError as error:
        raise ImportError('matplotlib is not installed; get it with pip install "noisynat[plot]"') from error
    if ax is not None:
        if not isinstance(ax, matplotlib.axes.Axes):
            raise TypeError(f"ax must be matplotlib Axes, got {type(ax).__name__}")
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _check_single(prediction: Predictive) -> None:
    if prediction.samples.dim() > 3:
        raise ValueError("a picture is of one network: take prediction.replica(i) or prediction.combine()")


def _diagonal(ax: Axes) -> None:
    """From (0, 0) to (1, 1), once on every Axes."""
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":", gid="diagonal")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def _label(ax: Axes, x: str, y: str) -> None:
    """Labels of the axes, where there are none yet."""
    ax.set(xlabel=ax.get_xlabel() or x, ylabel=ax.get_ylabel() or y)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array
