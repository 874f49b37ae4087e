"""Does the curvature's structure fit? Exact Fisher matrices of small networks beside their approximations.

A Kronecker factor takes activations and gradients to be independent, its convolutional form takes gradients at
different locations to be uncorrelated, and all but a joint dense curvature take layers to be so. Martens and Grosse
(2015, section 3) and Grosse and Martens (2016, section 3) state these assumptions; here they are checked on a network
and its data.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from noisynat import border
from noisynat.curvature import Curvature, Diagonal, EigenCorrected, Kronecker
from noisynat.curvature.fisher import layer_gradients, output_gradients
from noisynat.curvature.sharing import Sharing, example_gradients
from noisynat.layers.base import VariationalLayer, recording
from noisynat.network import VariationalNetwork
from noisynat.random import RandomStream

Approximation = Literal["block_diagonal", "eigen_corrected", "kronecker", "diagonal"]
APPROXIMATIONS: tuple[Approximation, ...] = ("block_diagonal", "eigen_corrected", "kronecker", "diagonal")
MAX_WEIGHTS = 5000


@dataclass(frozen=True)
class FisherComparison:
    """The Fisher matrix of a network's layers, averaged over examples, and approximations of it.

    Weights are in the order of :func:`noisynat.plotting.posterior_matrix`: layer after layer, row-major.

    Args:
        names: of the layers.
        sizes: weights of each.
        exact: (D, D), float64.
        approximations: (D, D) each, by name.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    exact: Tensor
    approximations: dict[str, Tensor]

    def error(self, name: str) -> float:
        """|F - F'| / |F| of an approximation, Frobenius norms."""
        return float((self.approximations[name] - self.exact).norm() / self.exact.norm())

    def block_errors(self, name: str) -> Tensor:
        """The same layer by layer: |F_ij - F'_ij| / sqrt(|F_ii| |F_jj|), (layers, layers).

        Off the diagonal, where most approximations have zeros, it says how strongly two layers depend on each other.
        """
        norms = self._blocks(self.exact).diagonal().sqrt()
        return self._blocks(self.approximations[name] - self.exact) / torch.outer(norms, norms)

    def _blocks(self, matrix: Tensor) -> Tensor:
        rows = matrix.split(self.sizes)
        return torch.stack([torch.stack([part.norm() for part in row.split(self.sizes, dim=1)]) for row in rows])

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.error(name):.3f}" for name in self.approximations)


@torch.no_grad()
def compare_fisher(
    network: VariationalNetwork,
    x: Tensor,
    *,
    sharing: Sharing = "expand",
    approximations: Sequence[str] = APPROXIMATIONS,
) -> FisherComparison:
    """The exact Fisher (Gauss-Newton) matrix at the posterior mean beside its approximations, all from the same data.

    Args:
        network: without replicas, of at most 5000 weights.
        x: inputs (N, ...).
        sharing: of the Kronecker forms, for layers that see an example at several locations.
        approximations: of ``"block_diagonal"`` (layers independent), ``"eigen_corrected"``, ``"kronecker"`` and
            ``"diagonal"``, which all are block diagonal too.

    Raises:
        ValueError: if the network has replicas or too many weights, or an approximation is not known.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=20)
        >>> found = noisynat.diagnostics.compare_fisher(bnn, torch.randn(20, 3))
        >>> found.error("block_diagonal") <= found.error("eigen_corrected") <= found.error("diagonal")
        True
    """
    weights = sum(layer.mean.numel() for layer in network.layers)
    if network.replicas or weights > MAX_WEIGHTS:
        raise ValueError(f"compare_fisher is for a network without replicas and of at most {MAX_WEIGHTS} weights")
    unknown = [name for name in approximations if name not in APPROXIMATIONS]
    if unknown:
        raise ValueError(f"approximations are {', '.join(APPROXIMATIONS)}; got {', '.join(map(repr, unknown))}")
    seen = _statistics(network, x)
    flat = [example_gradients(a, g, layer.groups).flatten(-2) for layer, a, g in seen]
    gradients = torch.cat(flat, dim=-1).flatten(0, 1)  # (K N, D)
    exact = gradients.T @ gradients / len(x)
    sizes = tuple(layer.mean.numel() for layer in network.layers)
    blocks = exact.split(sizes)
    of_layers = {"block_diagonal": [row.split(sizes, dim=1)[i] for i, row in enumerate(blocks)]}
    for name in approximations:
        if name != "block_diagonal":
            of_layers[name] = [_approximated(name, layer, a, g, sharing) for layer, a, g in seen]
    found = {name: torch.block_diag(*of_layers[name]) for name in approximations}
    return FisherComparison(tuple(layer.name for layer in network.layers), sizes, exact, found)


def _statistics(network: VariationalNetwork, x: Tensor) -> list[tuple[VariationalLayer, Tensor, Tensor]]:
    """Per layer, activations (*[groups], N, T, columns) and gradients (K, *[groups], N, T, out), at the mean."""
    raw = _records(network, x)
    return [(layer, layer.activations(a).double(), layer.by_location(g, 1).double()) for layer, a, g in raw]


def _records(network: VariationalNetwork, x: Tensor) -> list[tuple[VariationalLayer, Tensor, Tensor]]:
    """Per layer, its inputs (N, ...), and gradients (K, N, ...) in its outputs, at the mean and in evaluation mode."""
    x = border.checked_inputs(x, network.layers[0].mean)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.enable_grad(), recording(network.layers) as records:
            f = network(x)
        for layer, uses in zip(network.layers, records, strict=True):
            if len(uses) != 1:
                raise ValueError(f"layer {layer.name!r} is used {len(uses)} times; diagnostics take one use of each")
        likelihood = copy.deepcopy(network.likelihood)  # which counts its outputs
        columns = output_gradients(likelihood, f, None, "ggn", RandomStream(0))
        gradients = layer_gradients(f, [uses[0].outputs for uses in records], columns)
    finally:
        for module, training in modes:
            module.training = training
    return [
        (layer, uses[0].inputs, gradient)
        for layer, uses, gradient in zip(network.layers, records, gradients, strict=True)
    ]


def _approximated(name: str, layer: VariationalLayer, a: Tensor, g: Tensor, sharing: Sharing) -> Tensor:
    """C (D, D) of a layer by one of the structures, from one batch."""
    groups, out, columns = layer.matrix_shape
    kinds: dict[str, type[Curvature]] = {
        "diagonal": Diagonal,
        "kronecker": Kronecker,
        "eigen_corrected": EigenCorrected,
    }
    options: dict[str, Any] = {} if name == "diagonal" else {"rule": sharing}
    batch = () if groups == 1 else (groups,)
    curvature = kinds[name](out, columns, batch, dtype=torch.float64, device=a.device, **options)
    for _ in range(2):  # an eigenvalue correction is of the basis of the time before
        curvature.update(a, g, 0.0)
        curvature.refresh(1.0)
    found = curvature.latest()
    return found if groups == 1 else torch.block_diag(*found)


@dataclass(frozen=True)
class SpatialCorrelation:
    """Correlations between locations of a convolution, by displacement; 1 in the middle.

    Args:
        activations: of a channel of its inputs with itself, averaged over channels, (2 R + 1,) * dimensions.
        derivatives: of the log-likelihood in a channel of its outputs, likewise. That they vanish off the middle is
            what ``sharing="expand"`` takes for granted.
    """

    activations: Tensor
    derivatives: Tensor


@torch.no_grad()
def spatial_correlation(network: VariationalNetwork, x: Tensor, layer: str, radius: int = 3) -> SpatialCorrelation:
    """How activations and back-propagated derivatives of a convolution are correlated over space, at the mean.

    Args:
        network: without replicas.
        x: inputs (N, ...).
        layer: name of a convolution.
        radius: R, of displacements in every dimension.

    Raises:
        ValueError: if there is no such convolution, or its images are not larger than the radius.
    """
    names = [one.name for one in network.layers if one.convolves]
    if network.replicas or layer not in names:
        raise ValueError(f"{layer!r} is no convolution of a network without replicas; there are {', '.join(names)}")
    inputs, gradients = next((a, g) for one, a, g in _records(network, x) if one.name == layer)
    inputs, gradients = inputs.double(), gradients.double().flatten(0, 1)
    space = tuple(range(2, inputs.dim()))
    if radius < 0 or min(*inputs.shape[2:], *gradients.shape[2:]) <= radius:
        raise ValueError(f"radius {radius} does not fit images of {tuple(gradients.shape[2:])}")
    centred = inputs - inputs.mean((0, *space), keepdim=True)
    return SpatialCorrelation(_autocorrelation(centred, radius), _autocorrelation(gradients, radius))


def _autocorrelation(values: Tensor, radius: int) -> Tensor:
    """Of (N, channels, *space) at displacements up to ``radius``, each relative to the variances of what it pairs."""
    dims = values.dim() - 2
    values = values / values.square().mean((0, *range(2, values.dim())), keepdim=True).sqrt().clamp(min=1e-300)
    steps = range(-radius, radius + 1)
    found = torch.zeros((2 * radius + 1,) * dims, dtype=values.dtype)
    for place in torch.cartesian_prod(*[torch.tensor(steps)] * dims).reshape(-1, dims).tolist():
        here, there = values, values
        for dim, step in enumerate(place, start=2):
            size = values.shape[dim] - abs(step)
            here = here.narrow(dim, max(-step, 0), size)
            there = there.narrow(dim, max(step, 0), size)
        both = (here * there).sum() / (here.square().sum() * there.square().sum()).sqrt()
        found[tuple(step + radius for step in place)] = both
    return found
