"""The six ways of putting a posterior's noise into a forward pass.

With Cov[vec W] = (L kron R) diag(v) (L kron R)^T, a structure needs no code of its own here:

* ``shared``: W = M + L (sqrt(v) * E) R^T, one W for all examples;
* ``per_example``: an own E for every example;
* ``grouped``: the same for groups of examples, as many as :data:`MAX_GROUPS`, so that large batches cost no more draws;
* ``local``: the output's exact marginal, s = M a + L (sqrt(v (R^T a)^2) * e)
  (Kingma et al. 2015, in the rotated basis);
* ``separable``: the same marginal where v = u w^T is a short sum, from K directions L (sqrt(u_k) * e) that all
  examples share, with weights sqrt(w_k^T (R^T a)^2) and random signs of their own;
* ``flipout``: s = M a + L (u * ((sqrt(v) * E) (r * R^T a))) with random signs u, r per example, one E
  (Wen et al. 2018); exact marginals, and draws that are joint over an example's locations.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from noisynat.curvature.inverse import DampedInverse, KroneckerBasisInverse, OutputNoise, positive_root
from noisynat.random import RandomStream

NoiseMode = Literal["auto", "shared", "local", "separable", "flipout", "per_example", "grouped"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
MAX_GROUPS = 32
_DIRECTIONS = 32  # of separable noise, at least
_ENOUGH = 2**22  # multiplications of local noise, below which the number of operations counts


def check_mode(mode: str, structure: str, root: DampedInverse) -> None:
    """Raise ValueError for an unknown mode, or one that ``structure``, with such an inverse, cannot give exactly."""
    if mode not in NOISE_MODES:
        raise ValueError(f"noise is one of {', '.join(NOISE_MODES)}; got {mode!r}")
    if mode in ("local", "separable", "flipout") and not root.supports_output_noise:
        raise ValueError(
            f"noise={mode!r} cannot be drawn exactly from a {structure!r} posterior, whose covariance does not "
            "factor over inputs and outputs; use noise='shared', 'per_example', 'grouped' or 'auto'"
        )
    if mode == "separable" and not (isinstance(root, KroneckerBasisInverse) and root.make_parts):
        raise ValueError(f"noise='separable' is for Kronecker posteriors, not for a {structure!r} one; use 'local'")


def separable_pays(root: DampedInverse, examples: int) -> bool:
    """Whether ``separable`` noise takes fewer multiplications than ``local``, of which there are enough to matter."""
    if not isinstance(root, KroneckerBasisInverse) or root.make_parts is None:
        return False
    outputs, inputs = root.shape
    local = examples * outputs * (inputs + outputs)
    if local < _ENOUGH:
        return False
    assert root.parts is not None
    directions = max(root.parts[0].shape[-1], _DIRECTIONS)
    return directions * (examples * (inputs + outputs) + outputs * outputs) < local


def choose_mode(
    mode: str, *, supports_output_noise: bool, locations: int, reused: bool, separable: bool = False
) -> str:
    """The mode that ``"auto"`` stands for in one layer.

    Args:
        mode: what the user asked for.
        supports_output_noise: whether ``local`` and ``flipout`` are exact for the structure.
        locations: locations per example (T), more than one for a shared weight.
        reused: whether the layer serves at several places of the network, which need one and the same draw.
        separable: whether that is possible and costs less than ``local``.

    Raises:
        ValueError: for ``"local"`` or ``"separable"`` in a layer with weight sharing, where it is no posterior sample.
    """
    if mode in ("local", "separable") and (locations > 1 or reused):
        raise ValueError(
            f"noise={mode!r} draws independent noise at every location, which is not a posterior sample for a shared "
            "weight; use noise='flipout', 'shared' or 'auto'"
        )
    if mode == "flipout" and reused:
        raise ValueError("noise='flipout' is not exact for a layer used in several places; use 'shared' or 'auto'")
    if mode != "auto":
        return mode
    if reused:
        return "shared"
    if not supports_output_noise:
        return "grouped"
    if locations > 1:
        return "flipout"
    return "separable" if separable else "local"


def local_noise(root: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, 1, out) of the outputs for inputs a (*batch, B, 1, in), independent per example."""
    rows, outputs = a.squeeze(-2), root.shape[-2]
    return root.local_noise(rows, stream.normal((*rows.shape[:-1], outputs), rows)).unsqueeze(-2)


def separable_noise(basis: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, 1, out) of the outputs for inputs a (*batch, B, 1, in), uncorrelated between examples.

    Each example's are normal, as its signs only tell which of equally likely directions it takes.
    """
    assert isinstance(basis, KroneckerBasisInverse)
    assert basis.parts is not None
    u, v = basis.parts
    copies = -(-_DIRECTIONS // u.shape[-1])
    rows = basis.rotate_inputs(a.squeeze(-2))
    variance = (rows.square() @ v).repeat_interleave(copies, -1) / copies
    weights = positive_root(variance) * stream.signs(variance.shape, variance)
    scales = u.sqrt().repeat_interleave(copies, -1).mT
    return (weights @ basis.rotate_outputs(scales * stream.normal(scales.shape, scales))).unsqueeze(-2)


def flipout_noise(root: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, T, out) of the outputs for inputs a (*batch, B, T, in), one draw for the batch."""
    return root.flipout_noise(a, stream)


AT_OUTPUTS = {"local": local_noise, "separable": separable_noise, "flipout": flipout_noise}
"""The modes whose noise a layer adds to its outputs."""
