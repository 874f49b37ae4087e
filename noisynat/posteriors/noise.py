"""The five ways of putting a posterior's noise into a forward pass.

With Cov[vec W] = (L kron R) diag(root^2) (L kron R)^T, a structure needs no code of its own here:

* ``shared``: W = M + L (root * E) R^T, one W for all examples;
* ``per_example``: an own E for every example;
* ``grouped``: the same for groups of examples, as many as :data:`MAX_GROUPS`, so that large batches cost no more draws;
* ``local``: the output's exact marginal, s = M a + L (sqrt(root^2 (R^T a)^2) * e)
  (Kingma et al. 2015, in the rotated basis);
* ``flipout``: s = M a + L (u * ((root * E) (r * R^T a))) with random signs u, r per example, one E
  (Wen et al. 2018); exact marginals, and draws that are joint over an example's locations.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from noisynat.curvature.inverse import KroneckerBasisInverse
from noisynat.random import RandomStream

NoiseMode = Literal["auto", "shared", "local", "flipout", "per_example", "grouped"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
MAX_GROUPS = 32


def check_mode(mode: str, structure: str, supports_output_noise: bool) -> None:
    """Raise ValueError for an unknown mode, or one that ``structure`` cannot give exactly."""
    if mode not in NOISE_MODES:
        raise ValueError(f"noise is one of {', '.join(NOISE_MODES)}; got {mode!r}")
    if mode in ("local", "flipout") and not supports_output_noise:
        raise ValueError(
            f"noise={mode!r} cannot be drawn exactly from a {structure!r} posterior, whose covariance does not "
            "factor over inputs and outputs; use noise='shared', 'per_example', 'grouped' or 'auto'"
        )


def choose_mode(mode: str, *, supports_output_noise: bool, locations: int, reused: bool) -> str:
    """The mode that ``"auto"`` stands for in one layer.

    Args:
        mode: what the user asked for.
        supports_output_noise: whether ``local`` and ``flipout`` are exact for the structure.
        locations: locations per example (T), more than one for a shared weight.
        reused: whether the layer serves at several places of the network, which need one and the same draw.

    Raises:
        ValueError: for ``"local"`` in a layer with weight sharing, where it is not a posterior sample.
    """
    if mode == "local" and (locations > 1 or reused):
        raise ValueError(
            "noise='local' draws independent noise at every location, which is not a posterior sample for a shared "
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
    return "local" if locations == 1 else "flipout"


def local_noise(basis: KroneckerBasisInverse, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, 1, out) of the outputs for inputs a (*batch, B, 1, in), independent per example."""
    rows = basis.rotate_inputs(a.squeeze(-2))
    variance = rows.square() @ basis.root.square().mT
    std = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return basis.rotate_outputs(std * stream.normal(std.shape, std)).unsqueeze(-2)


def flipout_noise(basis: KroneckerBasisInverse, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, T, out) of the outputs for inputs a (*batch, B, T, in), one draw for the batch."""
    examples, locations = a.shape[-3:-1]
    rows = basis.rotate_inputs(a.flatten(-3, -2)).unflatten(-2, (examples, locations))
    batch = basis.root.shape[:-2]
    flip_in = stream.signs((*batch, examples, 1, rows.shape[-1]), rows)
    flip_out = stream.signs((*batch, examples, 1, basis.root.shape[-2]), rows)
    draw = basis.root * stream.normal(basis.root.shape, basis.root)
    product = (flip_in * rows).flatten(-3, -2) @ draw.mT
    flipped = flip_out * product.unflatten(-2, (examples, locations))
    return basis.rotate_outputs(flipped.flatten(-3, -2)).unflatten(-2, (examples, locations))
