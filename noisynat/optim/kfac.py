"""K-FAC without noise, for an ordinary network: the same curvature, statistics, trust region and update rule.

Martens and Grosse (2015); Grosse and Martens (2016) for convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisynat import passes
from noisynat.curvature.fisher import FisherKind, default_kind
from noisynat.curvature.sharing import Sharing
from noisynat.curvature.step import Step
from noisynat.layers.base import Record, VariationalLayer
from noisynat.layers.convert import Convertible, convertible, layer_of
from noisynat.likelihoods.base import Likelihood
from noisynat.likelihoods.gaussian import GaussianLikelihood
from noisynat.optim.natural_gradient import NaturalGradient
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.families import FactorSizes, Rank, is_wide, make_posteriors, rules_by_layer
from noisynat.posteriors.natural import NaturalPosterior
from noisynat.priors import GaussianPrior
from noisynat.random import RandomStream, derived_seed

Structure = Literal["kronecker", "matrix_normal", "eigen_corrected", "diagonal"]
STRUCTURES = ("kronecker", "matrix_normal", "eigen_corrected", "diagonal")


class KFAC(NaturalGradient):
    """Natural gradient for an unmodified ``nn.Module``, with a Kronecker-factored curvature.

    The loop is PyTorch's, with a loss of your own: ``zero_grad``, ``loss_function(net(x), y).backward()``, ``step``. Of
    linear layers, convolutions, embeddings and normalizations, weight and bias move together by natural gradient; other
    trainable parameters (of layers that are tied, subclassed or of another kind) by Adam. A batch is in the curvature
    before its step is taken, so that even the first step does not depend on how inputs, activations and weights are
    scaled and mixed, but for the damping. Hooks on ``net`` note what its
    layers see in a forward pass and, every so many steps, take the statistics; :meth:`detach` removes them.

    Args:
        net: maps (B, ...) to outputs (B, K).
        likelihood: whose negative log is the loss, up to a constant; its curvature in the outputs is K-FAC's. For a
            mean squared error over K outputs that is ``GaussianLikelihood((K / 2) ** 0.5)``.
        lr: step size.
        betas: beta1 of the momentum, beta2 of the curvature's average.
        damping: added to the curvature.
        weight_decay: coefficient of ``|w|^2 / 2`` (``|w - 1|^2 / 2`` for a normalization's scales), of which both the
            gradient and the curvature are added.
        curvature: ``"kronecker"`` (K-FAC with exact damping), ``"matrix_normal"`` (with factored damping),
            ``"eigen_corrected"`` (EK-FAC) or ``"diagonal"``.
        fisher: ``"ggn"`` or ``"mc"``, as for :class:`~noisynat.NoisyNaturalGradient`.
        kl_clip: bound of the trust region; None for none.
        stats_every: steps between statistics, as for :class:`~noisynat.NoisyNaturalGradient`.
        refresh_every: steps between factorizations, likewise.
        stats_examples: of each batch that feed the curvature, likewise.
        point_lr: learning rate of the parameters that Adam moves.
        initial_precision: the curvature's first value, with a weight that decays as beta2^k; 0 to start from the first
            batch alone.
        rank: as for :class:`~noisynat.VariationalNetwork`.
        max_factor_dim: likewise.
        sharing: likewise.
        seed: of the sampled targets.
        param_groups: instead of the default groups, dictionaries with ``params`` of the network and any of ``lr``,
            ``betas``, ``damping``; the parameters of a layer go together.

    Raises:
        TypeError: if ``net`` or ``likelihood`` is something else.
        ValueError: if an argument is out of range or the network has no layer for it, or the likelihood would have to
            learn its noise.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> optimizer = noisynat.KFAC(net, noisynat.CategoricalLikelihood(), lr=0.05)
        >>> x, y = torch.randn(10, 4), torch.randint(3, (10,))
        >>> optimizer.zero_grad()
        >>> torch.nn.functional.cross_entropy(net(x), y).backward()
        >>> optimizer.step()
    """

    network: _Mirror
    curvature_first = True

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.99),
        damping: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        curvature: Structure = "kronecker",
        fisher: FisherKind | None = None,
        kl_clip: float | None = 1e-3,
        stats_every: int | None = None,
        refresh_every: int | None = None,
        stats_examples: int | None = None,
        point_lr: float = 1e-3,
        initial_precision: float = 0.0,
        rank: Rank = "auto",
        max_factor_dim: int = 8192,
        sharing: Sharing | Mapping[str, Sharing] = "expand",
        seed: int | None = None,
        param_groups: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"KFAC takes an nn.Module, got {type(net).__name__}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a noisynat likelihood, got {type(likelihood).__name__}")
        if isinstance(likelihood, GaussianLikelihood) and likelihood.kind != "fixed":
            raise ValueError("KFAC does not see the targets, from which noise is learned; use GaussianLikelihood(std)")
        if curvature not in STRUCTURES:
            raise ValueError(f"curvature is one of {', '.join(STRUCTURES)}; got {curvature!r}")
        if fisher == "empirical":
            raise ValueError("KFAC does not see the targets, which fisher='empirical' wants; use 'ggn' or 'mc'")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        mirror = _Mirror(net, copy.deepcopy(likelihood), derived_seed("kfac") if seed is None else seed)
        mirror.posteriors = make_posteriors(
            mirror.layers,
            curvature,
            [GaussianPrior()] * len(mirror.layers),
            FactorSizes(rank, max_factor_dim),
            rules_by_layer(sharing, [layer.name for layer in mirror.layers]),
            partial(_Damped, weight_decay=weight_decay, step_damping=damping),  # type: ignore[arg-type]
            num_data=1,
            kl_weight=1.0,
            noise_mode="auto",
            initial_precision=initial_precision,
        )
        if param_groups is None:
            param_groups = [{"params": mirror.parameters()}]
            if mirror.point_estimates():
                param_groups.append({"params": mirror.point_estimates(), "lr": point_lr})
        super().__init__(
            mirror, param_groups, lr=lr, betas=betas, damping=damping, fisher=fisher, kl_clip=kl_clip,
            stats_every=stats_every, refresh_every=refresh_every, stats_examples=stats_examples, point_lr=point_lr,
        )  # fmt: skip
        for layer in mirror.layers:
            places = {self._groups.get(id(p)) for p in mirror.module_of(layer).parameters()}
            if len(places) > 1:
                raise ValueError(f"the parameters of layer {layer.name!r} must be in one group, or in none")

    def detach(self) -> None:
        """Remove the hooks from the network; the optimizer is of no use afterwards."""
        self.network.detach()

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer and its curvature, as tensors and plain numbers."""
        state: dict[str, Any] = super().state_dict()
        state["curvature"] = {
            posterior.name: dict(posterior.curvature.state_tensors())
            for posterior in self.network.posteriors
            if isinstance(posterior, NaturalPosterior)
        }
        state["stream"] = self.network.stream.state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that :meth:`state_dict` gave."""
        rest = {key: value for key, value in state_dict.items() if key not in ("curvature", "stream")}
        for posterior in self.network.posteriors:
            assert isinstance(posterior, NaturalPosterior)
            posterior.curvature.load_tensors(state_dict["curvature"][posterior.name])
        self.network.stream.load_state(state_dict["stream"])
        super().load_state_dict(rest)

    def _owner(self, layer: VariationalLayer) -> nn.Parameter:
        weight = self.network.module_of(layer).weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def _known(self) -> list[nn.Parameter]:
        return [*self.network.parameters(), *self.network.point_estimates()]

    def _gather(self) -> None:
        for posterior in self.posteriors:
            (layer,) = posterior.layers
            module = self.network.module_of(layer)
            layer.mean.copy_(layer.mean_of(*_values(module)))
            layer.mean.grad = layer.joined(*_gradients(module))

    def _scatter(self) -> None:
        for posterior in self.posteriors:
            (layer,) = posterior.layers
            module = self.network.module_of(layer)
            for parameter, value in zip(_parameters(module), layer.weights_of(layer.mean), strict=True):
                if parameter is not None and value is not None:
                    parameter.copy_(value.reshape(parameter.shape))
            layer.mean.grad = None


def _parameters(module: nn.Module) -> tuple[Any, Any]:
    """Weight and bias, None where there is none."""
    return module.weight, getattr(module, "bias", None)


def _values(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = _parameters(module)
    return weight.detach(), None if bias is None else bias.detach()


def _gradients(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = (
        None if p is None else torch.zeros_like(p) if p.grad is None else p.grad for p in _parameters(module)
    )
    assert weight is not None
    return weight, bias


class _Damped(NaturalPosterior):
    """What is left of a posterior without its noise: a layer's curvature, damped, and the pull of the weight decay."""

    def __init__(self, *args: Any, weight_decay: float, step_damping: float, **settings: Any) -> None:
        self._weight_decay, self._step_damping = weight_decay, step_damping
        super().__init__(*args, **settings)

    def _gamma(self) -> Tensor:
        return torch.full_like(self.prior_variance, self._weight_decay + self._step_damping)

    def prior_precisions(self) -> Tensor:
        mean = self.layers[0].mean
        return torch.full((1, 1, 1), self._weight_decay, dtype=mean.dtype, device=mean.device)

    def precondition(self, directions: Sequence[Tensor], extra_damping: float) -> Step:
        if extra_damping != self._step_damping:
            self._step_damping = extra_damping
            self.curvature.redamp(self._damping())
        return super().precondition(directions, 0.0)


class _Mirror:
    """A network as an optimizer sees it: its layers' weights and biases as matrices, and what its passes tell.

    Args:
        net: the network.
        likelihood: p(y | f).
        seed: of sampled targets.
    """

    posteriors: Sequence[Posterior] = ()

    def __init__(self, net: nn.Module, likelihood: Likelihood, seed: int) -> None:
        self.stream = RandomStream(seed)
        self.net, self.likelihood = net, likelihood
        self.statistics_examples: int | None = None  # set by the optimizer, as the next
        self.fisher: FisherKind | None = None
        modules = convertible(net)
        if not modules:
            raise ValueError("K-FAC needs a linear layer, convolution, embedding or normalization that is trainable")
        self.layers: list[VariationalLayer] = []
        self._modules: dict[int, Convertible] = {}
        for name, module in modules.items():
            layer = layer_of(module, (), self.stream)
            layer.name = name
            layer.mean.requires_grad_(False)
            self.layers.append(layer)
            self._modules[id(layer)] = module
        mine = {id(p) for p in self.parameters()}
        self._others = [p for p in net.parameters() if id(p) not in mine]
        likelihood.bind(1, torch.Size(), self.layers[0].mean.dtype)
        likelihood.to(self.layers[0].mean.device)
        self._records: list[list[Record]] | None = None
        self._hooks = [net.register_forward_pre_hook(self._begin)]
        for number, layer in enumerate(self.layers):
            self._hooks.append(self.module_of(layer).register_forward_hook(partial(self._record, number)))
        self._hooks.append(net.register_forward_hook(self._end))

    @property
    def is_wide(self) -> bool:
        """Whether some layer's factors are large."""
        return any(is_wide(layer.matrix_shape[1:]) for layer in self.layers)

    @property
    def statistics_due(self) -> bool:
        """Whether the next pass feeds the curvature."""
        return passes.are_due(self.posteriors)

    def module_of(self, layer: VariationalLayer) -> Convertible:
        """The ordinary layer that one of :attr:`layers` stands for."""
        return self._modules[id(layer)]

    def parameters(self) -> list[nn.Parameter]:
        """Of all layers, weights and biases."""
        return [p for layer in self.layers for p in self.module_of(layer).parameters()]

    def point_estimates(self) -> list[nn.Parameter]:
        """Trainable parameters of the rest."""
        return [p for p in self._others if p.requires_grad]

    def detach(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()

    # --- hooks, in the order of a forward pass ----------------------------------------------------

    def _begin(self, _: nn.Module, inputs: Any) -> None:
        wanted = self.statistics_due and torch.is_grad_enabled()
        self._records = [[] for _ in self.layers] if wanted else None

    def _record(self, number: int, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self._records is None:
            return None
        with torch.no_grad():
            seen = self.layers[number].inputs_of(module, inputs[0].detach())
        self._records[number].append(Record(seen, output))
        return output.clone()  # which what follows may change in place

    def _end(self, _: nn.Module, inputs: Any, f: Tensor) -> None:
        records, self._records = self._records, None
        if records is None or not f.requires_grad:
            return
        if f.dim() != 2:
            raise ValueError(f"KFAC wants a network with outputs (B, K), got shape {tuple(f.shape)}")
        kind = self.fisher or default_kind(f.shape[-1], self.likelihood.has_hessian_root, wide=self.is_wide)
        statistics = passes.statistics_of_pass(
            self.likelihood, f, None, self.layers, records, kind, self.stream, slice(self.statistics_examples)
        )
        f.register_hook(partial(self._feed, statistics))  # only a batch that is back-propagated counts

    def _feed(self, statistics: passes.Statistics, _: Tensor) -> None:
        passes.feed(self.posteriors, statistics)
