"""The six ways of putting a posterior's noise into a forward pass.

With Cov[vec W] = (L kron R) diag(v) (L kron R)^T, a structure needs no code of its own here:

* ``shared``: W = M + L (sqrt(v) * E) R^T, one W for all examples;
* ``per_example``: an own E for every example;
* ``grouped``: the same for groups of examples, so that large batches cost no more draws than :data:`MAX_GROUPS`, or 4
  in convolutions;
* ``local``: the output's exact marginal, s = M a + L (sqrt(v (R^T a)^2) * e)
  (Kingma et al. 2015, in the rotated basis);
* ``separable``: the same marginal from directions that all examples share, with weights and random signs of each
  example's own: where v = u w^T is a short sum, L (sqrt(u_k) * e), with the weights sqrt(w_k^T (R^T a)^2);
* ``flipout``: s = M a + L (u * ((sqrt(v) * E) (r * R^T a))) with random signs u, r per example, one E
  (Wen et al. 2018); exact marginals, and draws that are joint over an example's locations.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

from torch import Tensor

from noisynat.curvature.inverse import DampedInverse, OutputNoise
from noisynat.random import RandomStream

NoiseMode = Literal["auto", "shared", "local", "separable", "flipout", "per_example", "grouped"]
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
MAX_GROUPS = 32
_MAX_GROUPS_CONVOLVED = 4  # with more, convolutions take noticeably longer than with one weight
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
    if mode == "separable" and not cast(OutputNoise, root).is_separable:
        raise ValueError(f"noise='separable' is for Kronecker posteriors, not for a {structure!r} one; use 'local'")


def separable_pays(root: DampedInverse, examples: int, same_shapes: bool = False) -> bool:
    """Whether ``separable`` noise costs less than ``local``, and there is enough of it to matter.

    With ``same_shapes`` only if it takes as many random numbers in every step.
    """
    if not root.supports_output_noise:
        return False
    output = cast(OutputNoise, root)
    outputs, inputs = output.shape
    if same_shapes and output.parts_vary:
        return False
    if not output.is_separable or examples * outputs * (inputs + outputs) < _ENOUGH:
        return False
    return output.separable_pays(examples, _DIRECTIONS)


def choose_mode(
    mode: str,
    *,
    supports_output_noise: bool,
    reused: bool,
    locations: int = 1,
    is_product: bool = True,
    separable: bool = False,
) -> str:
    """The mode that ``"auto"`` stands for in one layer.

    Args:
        mode: what the user asked for.
        supports_output_noise: whether ``local`` and ``flipout`` are exact for the structure.
        reused: whether the layer serves at several places of the network, which need one and the same draw.
        locations: locations per example (T), more than one for a shared weight.
        is_product: whether the layer is a product with its weight; to others, noise at the outputs costs more than
            drawn weights.
        separable: whether that is possible and costs less than ``local``.

    Raises:
        ValueError: for ``"local"`` or ``"separable"`` in a layer with weight sharing, where it is no posterior sample.
    """
    if mode in ("local", "separable") and (locations > 1 or not is_product or reused):
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
    if not (is_product and supports_output_noise):
        return "grouped"
    if locations > 1:
        return "flipout"
    return "separable" if separable else "local"


def group_size(mode: str, examples: int, convolves: bool) -> int:
    """How many examples share a draw where weights are drawn before the pass (all of them: ``shared``)."""
    if mode == "shared":
        return examples
    if mode == "per_example":
        return 1
    return -(-examples // (_MAX_GROUPS_CONVOLVED if convolves else MAX_GROUPS))


def local_noise(root: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, 1, out) of the outputs for inputs a (*batch, B, 1, in), independent per example."""
    rows, outputs = a.squeeze(-2), root.shape[-2]
    return root.local_noise(rows, stream.normal((*rows.shape[:-1], outputs), rows)).unsqueeze(-2)


def separable_noise(root: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, 1, out) of the outputs for inputs a (*batch, B, 1, in), uncorrelated between examples."""
    return root.separable_noise(a.squeeze(-2), _DIRECTIONS, stream).unsqueeze(-2)


def flipout_noise(root: OutputNoise, a: Tensor, stream: RandomStream) -> Tensor:
    """Deviations (*batch, B, T, out) of the outputs for inputs a (*batch, B, T, in), one draw for the batch."""
    return root.flipout_noise(a, stream)


AT_OUTPUTS = {"local": local_noise, "separable": separable_noise, "flipout": flipout_noise}
"""The modes whose noise a layer adds to its outputs."""
