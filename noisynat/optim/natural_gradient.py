"""The one update rule: natural gradient, as a ``torch.optim.Optimizer``.

With V the gradient of the batch's loss, at sampled weights where there is a posterior, plus gamma M (Zhang et al. 2018,
algorithm 1 and 2),

    m <- beta1 m + (1 - beta1) V,    m_hat = m / (1 - beta1^k)
    M <- M - lr (C + (gamma + damping) I)^-1 m_hat
    C <- beta2 C + (1 - beta2) C_batch

and C's structure says which method it is. Parameters without a curvature are moved by Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisynat import passes
from noisynat.curvature.fisher import FISHER_KINDS, FisherKind
from noisynat.layers.base import VariationalLayer
from noisynat.likelihoods.base import Likelihood
from noisynat.optim import intervals
from noisynat.optim.moves import MeanMove, Pace, PointMove, move_means, move_point_estimates
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.natural import NaturalPosterior

Loss = TypeVar("Loss")

_STATS_EXAMPLES = 32


class Trained(Protocol):
    """What an optimizer asks of a network."""

    likelihood: Likelihood
    statistics_examples: int | None
    """How many of a batch feed the curvature, at most; set by the optimizer, as the next."""
    fisher: FisherKind | None

    @property
    def layers(self) -> Sequence[VariationalLayer]:
        """Whose means are moved."""

    @property
    def posteriors(self) -> Sequence[Posterior]:
        """Their curvature."""

    @property
    def is_wide(self) -> bool:
        """Whether statistics and factorizations are rare."""

    def point_estimates(self) -> list[nn.Parameter]:
        """What Adam moves."""


class NaturalGradient(Optimizer):
    """Natural gradient for the layers of a network, and Adam for the rest of it.

    Args:
        network: whose layers are moved.
        param_groups: dictionaries with ``params`` and any of ``lr``, ``betas``, ``damping``.
        settings: ``lr``, ``betas``, ``damping``, ``fisher``, ``kl_clip``, ``stats_every``, ``refresh_every``,
            ``stats_examples`` and ``point_lr``, as for :class:`~noisynat.NoisyNaturalGradient`.

    Raises:
        ValueError: if one of them is out of range.
    """

    curvature_first = False
    """Whether the curvature takes in a step's batch before the step, and not after it."""

    def __init__(
        self,
        network: Trained,
        param_groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        damping: float,
        fisher: FisherKind | None,
        kl_clip: float | None,
        stats_every: int | None,
        refresh_every: int | None,
        stats_examples: int | None,
        point_lr: float,
    ) -> None:
        given = {"stats_every": stats_every, "refresh_every": refresh_every, "stats_examples": stats_examples}
        whole = {name: value for name, value in given.items() if value is not None}
        _check_options(lr, betas, damping, kl_clip, point_lr, whole)
        if fisher not in (None, *FISHER_KINDS):
            raise ValueError(f"fisher is one of {', '.join(FISHER_KINDS)} or None, got {fisher!r}")
        if fisher == "ggn" and not network.likelihood.has_hessian_root:
            raise ValueError(f"{type(network.likelihood).__name__} has no hessian_root: use fisher='mc'")
        self.network = network
        self.fisher, self.kl_clip = fisher, kl_clip
        self.statistics_interval, self.refresh_interval = intervals.chosen(network.is_wide, stats_every, refresh_every)
        self._by_step = stats_every is None
        convolves = any(layer.convolves for layer in network.layers)
        self.stats_examples = _STATS_EXAMPLES if stats_examples is None and convolves else stats_examples
        self._seen: list[tuple[int, int]] = []
        self._found: tuple[dict[int, int], list[NaturalPosterior], list[nn.Parameter]] = {}, [], []
        super().__init__(param_groups, {"lr": lr, "betas": tuple(betas), "damping": damping, "steps": 0})
        self._check_groups()
        for posterior in network.posteriors:
            if isinstance(posterior, NaturalPosterior):
                posterior.curvature.statistics_due = False  # an optimizer of before that is still in use asks again
        self._request_statistics()

    # --- the step ---------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of the means, the point estimates, the noise and the curvature.

        Args:
            closure: zeroes gradients, computes and back-propagates the loss, and returns it; called once.

        Raises:
            RuntimeError: if no loss of the network was back-propagated since the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_ready()
        paces = self.next_paces()
        if self.curvature_first:
            self._renew_curvature(self.steps - 1)
        self._gather()
        move_means(self.mean_moves(paces), self.kl_clip)
        self._scatter()
        move_point_estimates(self.point_moves(paces))
        self.network.likelihood.natural_step()
        self.finish_step()
        return loss

    def next_paces(self) -> list[Pace]:
        """Count a step, and say how each parameter group moves in it."""
        paces = []
        for group in self.param_groups:
            group["steps"] += 1
            beta1, beta2 = group["betas"]
            unbiased, unbiased_square = (1 / (1 - beta**self.steps) for beta in (beta1, beta2))
            paces.append(Pace(group["lr"], unbiased, unbiased_square, beta1, beta2, group["damping"]))
        return paces

    def mean_moves(self, paces: Sequence[Pace], decays: Sequence[Tensor] = ()) -> list[MeanMove]:
        """What moves the means, from the groups' paces, and the curvature if there are decays, one per posterior."""
        (number, posteriors, _), moves = self._members(), []
        for posterior, decay in zip_longest(posteriors, decays):
            owners = [self._owner(layer) for layer in posterior.layers]
            momenta = [
                self._state_of(owner, "momentum", like=layer.mean)[0]
                for owner, layer in zip(owners, posterior.layers, strict=True)
            ]
            own = [paces[number[id(owner)]] for owner in owners]
            moves.append(MeanMove(posterior, momenta, posterior.prior_precisions(), own, decay))
        return moves

    def point_moves(self, paces: Sequence[Pace]) -> list[PointMove]:
        """What moves the point estimates, likewise."""
        number, moves = self._groups, []
        for parameter in self.network.point_estimates():
            if id(parameter) in number:
                momentum, square = self._state_of(parameter, "momentum", "square")
                moves.append(PointMove(parameter, momentum, square, paces[number[id(parameter)]]))
        return moves

    def decays(self) -> list[float]:
        """What a step that feeds the curvature leaves of the averages, per posterior: a batch counts for the steps that
        it stands for.
        """
        passed = self.statistics_interval.at(self.steps - 1) if self._by_step else 1
        number, posteriors, _ = self._members()
        return [self._group_of(posterior, number)["betas"][1] ** passed for posterior in posteriors]

    def prepare(self, examples: int) -> None:
        """Make ready what a compiled step of a batch of so many examples uses, also of layers that are not moved."""
        number, moved, _ = self._members()
        for posterior in self.network.posteriors:
            assert isinstance(posterior, NaturalPosterior)
            damping = self._group_of(posterior, number)["damping"] if posterior in moved else 0.0
            posterior.prepare_step(damping, examples)

    def finish_step(self) -> None:
        """Blend in statistics that wait, factorize if it is time to, and ask for statistics if it is."""
        if not self.curvature_first:
            self._renew_curvature(self.steps)
        self._request_statistics()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and statistics of losses that were back-propagated since the last step.

        What the next losses are to feed is said anew, as an optimizer that was made later may have ended it.
        """
        super().zero_grad(set_to_none)
        self.forget()
        self._request_statistics()

    def forget(self) -> None:
        """Forget statistics of losses that were back-propagated since the last step."""
        self.network.likelihood.forget()
        for posterior in self.posteriors:
            posterior.curvature.discard()

    def _renew_curvature(self, step: int) -> None:
        self._update_curvature()
        if self.refresh_interval.is_due(step):
            for posterior in self.posteriors:
                posterior.refresh()

    def _update_curvature(self) -> None:
        if self._statistics_due:
            for posterior, decay in zip(self.posteriors, self.decays(), strict=True):
                posterior.curvature.commit(decay)

    def _state_of(self, parameter: nn.Parameter, *names: str, like: Tensor | None = None) -> list[Tensor]:
        """Averages of a parameter, zero at first."""
        state = self.state[parameter]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(parameter if like is None else like)
        return [state[name] for name in names]

    # --- where means come from --------------------------------------------------------------------

    def _owner(self, layer: VariationalLayer) -> nn.Parameter:
        """The parameter in the groups that stands for a layer's mean."""
        return layer.mean

    def _gather(self) -> None:
        """Give the layers their means and gradients, if they are not there."""

    def _scatter(self) -> None:
        """Hand out the means that have moved."""

    # --- bookkeeping ------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self.param_groups[0]["steps"])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What this optimizer moves."""
        return self._members()[2]

    @property
    def stats_every(self) -> int:
        """Steps between statistics, in the long run."""
        return self.statistics_interval.steps

    @property
    def refresh_every(self) -> int:
        """Steps between factorizations, in the long run."""
        return self.refresh_interval.steps

    @property
    def posteriors(self) -> list[NaturalPosterior]:
        """Those whose means this optimizer moves."""
        return self._members()[1]

    @property
    def _statistics_due(self) -> bool:
        return passes.are_due(self.posteriors)

    @property
    def _groups(self) -> dict[int, int]:
        """The number of each parameter's group, by the parameter's id."""
        return self._members()[0]

    def _members(self) -> tuple[dict[int, int], list[NaturalPosterior], list[nn.Parameter]]:
        """All three, found anew only when the groups are other ones."""
        groups = [(id(group), len(group["params"])) for group in self.param_groups]
        if groups != self._seen:
            mine = {id(p): number for number, group in enumerate(self.param_groups) for p in group["params"]}
            posteriors = [
                posterior
                for posterior in self.network.posteriors
                if isinstance(posterior, NaturalPosterior)
                and all(id(self._owner(layer)) in mine for layer in posterior.layers)
            ]
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            self._seen, self._found = groups, (mine, posteriors, parameters)
        return self._found

    def _group_of(self, posterior: NaturalPosterior, number: dict[int, int]) -> dict[str, Any]:
        """The group of a posterior's means, by the groups' numbers."""
        group: dict[str, Any] = self.param_groups[number[id(self._owner(posterior.layers[0]))]]
        return group

    def _request_statistics(self) -> None:
        """Say whether the next step's losses feed the curvature, and how."""
        network, due = self.network, self.statistics_interval.is_due(self.steps)
        for posterior in self.posteriors:
            posterior.curvature.statistics_due = due
        if network.statistics_examples != self.stats_examples:  # setting a module's attributes is slow
            network.statistics_examples = self.stats_examples
        if network.fisher != self.fisher:
            network.fisher = self.fisher

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self._request_statistics()

    def _check_ready(self) -> None:
        if all(parameter.grad is None for parameter in self.parameters):
            raise RuntimeError("step() found no gradients; call loss = network.loss(x, y) and loss.backward() first")
        if self._statistics_due and not all(p.curvature.has_pending for p in self.posteriors):
            raise RuntimeError(
                "step() found no curvature statistics; back-propagate the result of network.loss(x, y), which records "
                "them, rather than a loss of your own"
            )

    def _known(self) -> list[nn.Parameter]:
        """All that may be moved."""
        return [*(layer.mean for layer in self.network.layers), *self.network.point_estimates()]

    def _check_groups(self) -> None:
        known = {id(p) for p in self._known()}
        if not all(id(p) in known for p in self.parameters):
            raise ValueError("param_groups hold a parameter that is neither a mean nor a point estimate of the network")
        for posterior in self.network.posteriors:
            owners = [id(self._owner(layer)) for layer in posterior.layers]
            groups = [self._groups[owner] for owner in owners if owner in self._groups]
            damping = {self.param_groups[number]["damping"] for number in groups}
            if len(damping) > 1:
                raise ValueError(
                    f"the layers of the joint posterior {posterior.name!r} need one damping, got {damping}"
                )


def _check_options(
    lr: float,
    betas: tuple[float, float],
    damping: float,
    kl_clip: float | None,
    point_lr: float,
    whole: dict[str, int],
) -> None:
    if not lr >= 0 or not point_lr >= 0:
        raise ValueError(f"learning rates must be at least 0, got lr={lr} and point_lr={point_lr}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    if not damping >= 0:
        raise ValueError(f"damping must be at least 0, got {damping}")
    if kl_clip is not None and not kl_clip > 0:
        raise ValueError(f"kl_clip must be positive or None, got {kl_clip}")
    for name, value in whole.items():
        if int(value) != value or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {value}")
