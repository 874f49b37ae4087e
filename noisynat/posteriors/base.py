"""What every posterior answers, whatever its family and however it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from noisynat.compiling import is_compiling
from noisynat.curvature.inverse import DampedInverse, KroneckerBasisInverse, OutputNoise
from noisynat.posteriors import noise
from noisynat.posteriors.draws import Draw
from noisynat.priors import GaussianPrior
from noisynat.random import RandomStream

if TYPE_CHECKING:
    from noisynat.layers.base import VariationalLayer


class Posterior(nn.Module, ABC):
    """q(W) = N(M, Sigma) over the weights of one layer, or of several jointly. The layers hold the means M.

    Args:
        layers: the layers whose weights this is the posterior of, in the network's order.
        priors: p(W) of each layer.
        num_data: N, the number of training examples.
        kl_weight: lambda, the weight of the KL.
        noise_mode: how a training forward pass is perturbed, see :mod:`noisynat.posteriors.noise`.
        structure: name of the posterior family, for messages.
    """

    prior_variance: Tensor

    def __init__(
        self,
        layers: Sequence[VariationalLayer],
        priors: Sequence[GaussianPrior],
        *,
        num_data: int,
        kl_weight: float,
        noise_mode: str,
        structure: str,
    ) -> None:
        super().__init__()
        self._layers = tuple(layers)  # a plain tuple: the network owns the layers
        self.structure = structure
        self.priors = tuple(priors)
        self._num_data = num_data
        self._kl_weight = kl_weight
        self.noise_mode = noise_mode
        self.same_shapes = False  # whether random numbers must have the same shapes in every step
        self._fused_root: KroneckerBasisInverse | None = None  # of compiled steps
        self.batch_shape = self._layers[0].batch_shape
        variances = [
            prior.initial_variance(layer.fan_in, self.batch_shape)
            for layer, prior in zip(self._layers, self.priors, strict=True)
        ]
        self.register_buffer("prior_variance", torch.stack(variances).to(self._layers[0].mean.device))

    def _apply(self, fn: Any, recurse: bool = True) -> Posterior:
        super()._apply(fn, recurse)
        self.prior_variance = self.prior_variance.double()
        return self

    # --- what a family supplies -------------------------------------------------------------------

    @property
    @abstractmethod
    def _root(self) -> DampedInverse:
        """A root of Sigma up to :attr:`_scale`."""

    @property
    @abstractmethod
    def _scale(self) -> float | Tensor:
        """Sigma = scale^2 times the square of the root; a tensor () in compiled code."""

    @abstractmethod
    def _log_determinant(self) -> Tensor:
        """log |Sigma| (*replicas,)."""

    # --- the family's common face -----------------------------------------------------------------

    @property
    def layers(self) -> tuple[VariationalLayer, ...]:
        """The layers whose weights this is the posterior of."""
        return self._layers

    @property
    def name(self) -> str:
        """Names of the layers, joined by a plus sign."""
        return "+".join(layer.name for layer in self._layers)

    @property
    def kl_weight(self) -> float:
        """lambda; 1 is Bayesian inference."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = value

    @property
    def num_data(self) -> int:
        """N, the number of training examples."""
        return self._num_data

    @num_data.setter
    def num_data(self, value: int) -> None:
        self._num_data = value

    @property
    def dim(self) -> int:
        """D, the number of weights per replica."""
        return sum(layer.out_features * layer.columns for layer in self._layers)

    def variances(self) -> list[Tensor]:
        """Marginal variances of the weights, per layer (*replicas, out, columns)."""
        return self.unpack(self._scale**2 * self._root.inverse_diagonal())

    def covariance(self) -> Tensor:
        """Sigma (*replicas, D, D) in row-major order of the weights, layer after layer; for small networks."""
        eye = torch.eye(self.dim, dtype=self._layers[0].mean.dtype, device=self._layers[0].mean.device)
        shape = self._packed_shape
        columns = eye.reshape(self.dim, *(1,) * len(self.batch_shape), *shape).expand(-1, *self.batch_shape, *shape)
        return self._scale**2 * self._root.solve(columns).flatten(-len(shape)).movedim(0, -1)

    def draw(self, sample: tuple[int, ...], stream: RandomStream) -> list[Tensor]:
        """Draws of the weights, per layer (*sample, *replicas, out, columns); gradients reach the means."""
        deviations, _ = self.draw_deviations(sample, stream)
        return [layer.mean + deviation for layer, deviation in zip(self._layers, deviations, strict=True)]

    def draw_deviations(self, sample: tuple[int, ...], stream: RandomStream) -> tuple[list[Tensor], Tensor]:
        """Deviations W - M per layer (*sample, *replicas, out, columns), and the squared norms of their noise."""
        shape = (*sample, *self.batch_shape, *self._packed_shape)
        standard = stream.normal(shape, self._layers[0].mean)
        deviation = self._scale * self._root.sqrt_solve(standard)
        return self.unpack(deviation), standard.square().sum(self._packed_dims)

    def draw_for_training(self, examples: int, stream: RandomStream) -> list[Draw] | None:
        """The draws to fix before a training pass, one per layer, or None where layers add their noise themselves."""
        mode = noise.choose_mode(
            self.noise_mode,
            supports_output_noise=self._root.supports_output_noise,
            is_product=all(layer.is_product for layer in self._layers),
            reused=any(layer.reused for layer in self._layers),
        )
        if mode in noise.AT_OUTPUTS:
            return None
        convolves = any(layer.convolves for layer in self._layers)
        draws = -(-examples // noise.group_size(mode, examples, convolves))
        if draws == 1:
            return [Draw(weight) for weight in self.draw((), stream)]
        count = len(self.batch_shape)
        return [Draw(weight.movedim(0, count), grouped=True) for weight in self.draw((draws,), stream)]

    def output_noise(self, a: Tensor, reused: bool, stream: RandomStream) -> Tensor:
        """Deviations (*replicas, [groups,] B, T, out / groups) of a layer's outputs.

        Args:
            a: what the weight is multiplied with, (*replicas, [groups,] B, T, columns).
            reused: whether the layer serves at several places of the network.
            stream: of random numbers.
        """
        mode = self.noise_mode_in(a.shape[-3], a.shape[-2], reused)
        if mode not in noise.AT_OUTPUTS:
            raise RuntimeError(
                f"noise={mode!r} of {self.name!r} needs the weights drawn before the pass; call the "
                "VariationalNetwork, not one of its layers"
            )
        return self._scale * noise.AT_OUTPUTS[mode](cast(OutputNoise, self._root), a, stream)

    def fused_root(self, examples: int, reused: bool) -> KroneckerBasisInverse | None:
        """A root of Sigma up to :attr:`noise_scale`, if a layer without locations has local noise of constants only."""
        if is_compiling():
            return self._fused_root  # as found before: looking again in every step takes time
        root = self._root
        if not isinstance(root, KroneckerBasisInverse) or root.variance.requires_grad:
            return None
        return root if self.noise_mode_in(examples, reused=reused) == "local" else None

    def keep_shapes(self) -> None:
        """Draw random numbers of the same shapes in every step from now on.

        Raises:
            ValueError: if that cannot be, as the user asked for noise whose size varies.
        """
        if self.noise_mode == "separable" and cast(OutputNoise, self._root).parts_vary:
            raise ValueError(
                f"noise='separable' of {self.name!r} takes another number of random numbers after every "
                "factorization; use noise='auto'"
            )
        self.same_shapes = True

    @property
    def noise_scale(self) -> float | Tensor:
        """What turns the root's noise into the posterior's."""
        return self._scale

    def noise_mode_in(self, examples: int, locations: int = 1, reused: bool = False) -> str:
        """How the noise of a layer's outputs comes about.

        Args:
            examples: B, of the batch.
            locations: T, per example.
            reused: whether the layer serves at several places of the network.
        """
        root = self._root
        return noise.choose_mode(
            self.noise_mode,
            supports_output_noise=root.supports_output_noise,
            locations=locations,
            is_product=all(layer.is_product for layer in self._layers),
            reused=reused,
            separable=self.noise_mode == "auto" and noise.separable_pays(root, examples, self.same_shapes),
        )

    def kl_divergence(self) -> Tensor:
        """KL(q || p) summed over the layers' weights, (*replicas,), float64, nats.

        1/2 [sum_l (tr Sigma_l + |M_l|^2) / eta_l - D + sum_l D_l log eta_l - log |Sigma|].
        """
        total = -self._log_determinant().double() - self.dim
        for layer, trace, eta in zip(self._layers, self._traces(), self.prior_variance, strict=True):
            moment = trace + layer.mean.double().square().sum((-2, -1))
            total = total + moment / eta + layer.out_features * layer.columns * eta.log()
        return total / 2

    def _traces(self) -> list[Tensor]:
        """Sums of each layer's marginal variances (*replicas,), float64."""
        if len(self._packed_shape) == 2 and not self._is_joint:
            return [self._scale**2 * self._root.trace_inverse().double()]
        return [variance.double().sum((-2, -1)) for variance in self.variances()]

    def quadratic_loss(self, deviations: Sequence[Tensor], noise_norm: Tensor) -> Tensor:
        """What the log-likelihood of all data loses, to second order and less the average, when weights deviate.

        At a stationary point of the ELBO the log-likelihood's expected Hessian is -lambda (Sigma^-1 - I / eta), so this
        is lambda/2 [d^T Sigma^-1 d - D - sum_l (|d_l|^2 - tr Sigma_l) / eta_l]: zero on average over q, always.

        Args:
            deviations: d = W - M per layer, (S, *replicas, out, columns).
            noise_norm: d^T Sigma^-1 d, the squared norm of the standard normal numbers of each draw, (S, *replicas).

        Returns:
            (S, *replicas), float64, nats.
        """
        quadratic = noise_norm.double() - self.dim
        for deviation, trace, eta in zip(deviations, self._traces(), self.prior_variance, strict=True):
            excess = deviation.double().square().sum((-2, -1)) - trace
            quadratic = quadratic - excess / eta
        return self.kl_weight / 2 * quadratic

    @torch.no_grad()
    def fit_prior(self) -> None:
        """Empirical Bayes: eta <- (tr Sigma + |M|^2) / D, the maximum of the ELBO, of the layers that want it."""
        if not any(prior.empirical_bayes for prior in self.priors):
            return
        self.prior_variance = torch.stack(
            [
                (variance.double() + layer.mean.double().square()).mean((-2, -1)) if prior.empirical_bayes else eta
                for layer, prior, variance, eta in zip(
                    self._layers, self.priors, self.variances(), self.prior_variance, strict=True
                )
            ]
        )

    # --- packing: a joint posterior sees its layers as one weight of shape (1, D) -----------------

    @property
    def _is_joint(self) -> bool:
        """Whether all weights are one vector, as those of several layers are."""
        return len(self._layers) > 1

    @property
    def _packed_shape(self) -> tuple[int, ...]:
        """(out, columns), (groups, out / groups, columns) or (1, D)."""
        if self._is_joint:
            return 1, self.dim
        layer = self._layers[0]
        if layer.groups == 1:
            return layer.out_features, layer.columns
        return layer.groups, layer.out_features // layer.groups, layer.columns

    @property
    def _packed_dims(self) -> tuple[int, ...]:
        """The dimensions of a packed weight, from the end."""
        return tuple(range(-len(self._packed_shape), 0))

    def pack(self, weights: Sequence[Tensor]) -> Tensor:
        """Matrices of the layers (*, out, columns) as the posterior sees them.

        A single layer's as it is, or as (*, groups, out / groups, columns), both without a copy; otherwise (*, 1, D).
        """
        if self._is_joint:
            return torch.cat([weight.flatten(-2) for weight in weights], dim=-1).unsqueeze(-2)
        return weights[0] if self._layers[0].groups == 1 else weights[0].unflatten(-2, self._packed_shape[:2])

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """The inverse of :meth:`pack`."""
        if not self._is_joint:
            return [packed if self._layers[0].groups == 1 else packed.flatten(-3, -2)]
        sizes = [layer.out_features * layer.columns for layer in self._layers]
        parts = packed.squeeze(-2).split(sizes, dim=-1)
        return [
            part.unflatten(-1, (layer.out_features, layer.columns))
            for part, layer in zip(parts, self._layers, strict=True)
        ]
