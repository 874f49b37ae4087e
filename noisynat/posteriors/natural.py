"""Posteriors whose covariance is the curvature: Sigma = (lambda / N) (C + gamma I)^-1, gamma = lambda / (N eta).

Zhang et al. (2018), equations 6 to 9. The optimizers move the mean and feed the curvature; this is what it means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisynat.compiling import is_compiling
from noisynat.curvature import Curvature, Dense
from noisynat.curvature.inverse import DampedInverse
from noisynat.curvature.sharing import example_gradients
from noisynat.curvature.step import Step, WholeStep
from noisynat.posteriors import noise
from noisynat.posteriors.base import Posterior
from noisynat.priors import GaussianPrior

if TYPE_CHECKING:
    from noisynat.layers.base import VariationalLayer

CurvatureFactory = Callable[..., Curvature]


class NaturalPosterior(Posterior):
    """A Gaussian posterior over the weights of one layer, or, with a dense curvature, of several jointly.

    Args:
        layers: whose weights it describes.
        priors: p(W) of each layer.
        curvature: makes the curvature from (rows, columns, replica dimensions) and keywords.
        initial_precision: of the curvature, see :class:`~noisynat.curvature.Curvature`.
        settings: as for :class:`~noisynat.posteriors.base.Posterior`.
    """

    def __init__(
        self,
        layers: Sequence[VariationalLayer],
        priors: Sequence[GaussianPrior],
        curvature: CurvatureFactory,
        *,
        initial_precision: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(layers, priors, **settings)
        mean = self.layers[0].mean
        precision: dict[str, Any] = {"dtype": mean.dtype}
        if curvature is Dense:
            precision = {"dtype": torch.float64, "solve_dtype": mean.dtype}
        self.curvature = curvature(
            *self._packed_shape[-2:],
            (*self.batch_shape, *self._packed_shape[:-2]),
            initial_precision=initial_precision,
            device=mean.device,
            name=self.name,
            **precision,
        )
        self._tensor_scale = math.nan, torch.empty(())
        self._ready_for: tuple[DampedInverse | None, int] = None, 0  # inverse and examples of a compiled step
        self._precisions: tuple[Tensor, tuple[Any, ...], Tensor] | None = None  # and what they depend on
        noise.check_mode(self.noise_mode, self.structure, self._root)
        self.curvature.redamp(self._damping())

    @property
    def _is_joint(self) -> bool:
        if len(self.layers) > 1:
            return True
        return self.structure in ("dense", "dense_per_layer") and self.layers[0].groups > 1

    @property
    def _root(self) -> DampedInverse:
        return self.curvature.inverse

    @property
    def _scale(self) -> float | Tensor:
        return self._tensor_scale[1] if is_compiling() else math.sqrt(self.kl_weight / self.num_data)

    def _log_determinant(self) -> Tensor:
        return self.dim * math.log(self.kl_weight / self.num_data) - self._over_groups(self.curvature.logdet())

    def _over_groups(self, values: Tensor) -> Tensor:
        """Sums (*replicas,) of numbers of the curvature's batch elements (*replicas, [groups])."""
        return values.sum(-1) if len(self._packed_shape) > 2 else values

    def _gamma(self) -> Tensor:
        """lambda / (N eta), (layers, *replicas)."""
        return self.kl_weight / (self.num_data * self.prior_variance)

    def _damping(self) -> Tensor:
        """gamma: (*replicas, [1,] 1, 1) for one layer, (*replicas, 1, D) if all weights are one vector."""
        gamma = self._gamma()
        if not self._is_joint:
            return gamma[0].reshape(*self.batch_shape, *(1,) * len(self._packed_shape))
        shapes = [(layer.out_features, layer.columns) for layer in self.layers]
        return self.pack([g[..., None, None].expand(*g.shape, *s) for g, s in zip(gamma, shapes, strict=True)])

    @property
    def kl_weight(self) -> float:
        """lambda; setting it re-damps the covariance at once, with the statistics of the last refresh."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = value
        self.curvature.redamp(self._damping())

    @property
    def num_data(self) -> int:
        """N; setting it moves the covariance as setting kl_weight does."""
        return self._num_data

    @num_data.setter
    def num_data(self, value: int) -> None:
        self._num_data = value
        self.curvature.redamp(self._damping())

    # --- what the optimizer asks ------------------------------------------------------------------

    def accumulate(self, activations: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Give a (micro-)batch to the curvature.

        Args:
            activations: per layer (*replicas, [groups,] B, T, columns).
            gradients: per layer (K, *replicas, [groups,] B, T, out / groups).
        """
        if not self._is_joint:
            self.curvature.accumulate(activations[0], gradients[0])
            return
        assert isinstance(self.curvature, Dense)
        per_layer = [
            example_gradients(a, g, layer.groups)
            for a, g, layer in zip(activations, gradients, self.layers, strict=True)
        ]
        self.curvature.accumulate_gradients(self.pack(per_layer).squeeze(-2))

    def start_from(self, parts: Sequence[NaturalPosterior], *, keep_prior: bool) -> None:
        """Begin with the curvature of posteriors over this one's layers, as independent blocks.

        Args:
            parts: posteriors of the layers, in their order.
            keep_prior: whether to take over their prior variances too.
        """
        assert isinstance(self.curvature, Dense)
        if keep_prior:
            self.prior_variance = torch.cat([part.prior_variance for part in parts])
        self.curvature.start_from_blocks([block for part in parts for block in part._blocks()])
        self.curvature.refresh(self._damping())

    def _blocks(self) -> list[Tensor]:
        """C as independent blocks (*replicas, d, d) along its diagonal."""
        latest = self.curvature.latest()
        return [latest] if len(self._packed_shape) == 2 else list(latest.unbind(-3))

    def refresh(self) -> None:
        """Fit the prior where it is to be fitted, and rebuild Sigma from the current curvature."""
        self.fit_prior()
        self.curvature.refresh(self._damping())

    def prior_precisions(self) -> Tensor:
        """gamma of each layer (layers, *replicas, 1, 1): what pulls its mean towards the prior's."""
        eta, known = self.prior_variance, self._precisions
        depends_on = (eta._version, self._kl_weight, self._num_data, self.layers[0].mean.dtype)
        if known is None or known[0] is not eta or known[1] != depends_on:
            known = eta, depends_on, self._gamma()[..., None, None].to(self.layers[0].mean.dtype)
            self._precisions = known
        return known[2]

    def prepare_step(self, extra_damping: float, examples: int) -> None:
        """Make what a compiled step of a batch of so many examples uses: tensors where numbers may change."""
        self.curvature.damped(extra_damping)
        inverse, scale = self.curvature.inverse, math.sqrt(self._kl_weight / self._num_data)
        if self._ready_for[0] is not inverse or self._ready_for[1] != examples:
            self.noise_mode_in(examples)
            self._fused_root = self.fused_root(examples, any(layer.reused for layer in self.layers))
            self._ready_for = inverse, examples
        if self._tensor_scale[0] != scale:
            mean = self.layers[0].mean
            self._tensor_scale = scale, torch.tensor(scale, dtype=mean.dtype, device=mean.device)

    def precondition(self, directions: Sequence[Tensor], extra_damping: float) -> Step:
        """(C + (gamma + extra_damping) I)^-1 times directions of the layers."""
        return self.curvature.step(self.pack(directions), extra_damping)

    def inner(self, step: Step) -> Tensor:
        """The inner product of a step and its direction, (*replicas,)."""
        return self._over_groups(step.inner)

    def move(self, step: Step, factors: Sequence[Tensor]) -> None:
        """Add factors (*replicas, 1, 1), one per layer, times a step to the means."""
        if not self._is_joint:
            factor = factors[0] if len(self._packed_shape) == 2 else factors[0].unsqueeze(-1)
            step.add_to(self.pack([self.layers[0].mean]), factor)
            return
        assert isinstance(step, WholeStep)
        for layer, direction, factor in zip(self.layers, self.unpack(step.d), factors, strict=True):
            layer.mean.addcmul_(direction, factor)

    # --- state: the curvature's tensors are this module's -----------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> NaturalPosterior:
        super()._apply(fn, recurse)
        state = {key: fn(value) for key, value in self.curvature.state_tensors().items()}
        if isinstance(self.curvature, Dense):  # its average stays in double precision
            state = {k: v.double() if v.is_floating_point() and k != "damping" else v for k, v in state.items()}
            self.curvature.solve_dtype = self.layers[0].mean.dtype
        self.curvature.load_tensors(state)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in self.curvature.state_tensors().items():
            destination[f"{prefix}curvature.{key}"] = value

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = self.curvature.state_tensors()
        loaded = {}
        for key, value in mine.items():
            full = f"{prefix}curvature.{key}"
            if full not in state_dict:
                missing_keys.append(full)
            elif key != "damping" and state_dict[full].shape != value.shape:
                error_msgs.append(f"{full} has shape {tuple(state_dict[full].shape)}, expected {tuple(value.shape)}")
            else:
                loaded[key] = state_dict[full].to(value.device, value.dtype)
        if len(loaded) == len(mine):
            self.curvature.load_tensors(loaded)
        rest = {key: value for key, value in state_dict.items() if not key.startswith(f"{prefix}curvature.")}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
