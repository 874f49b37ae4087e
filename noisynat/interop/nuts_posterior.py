"""Draws of a network's exact posterior from several chains, and whether they can be believed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisynat.interop import log_joint
from noisynat.likelihoods.observation import NormalNoise
from noisynat.predictive import Predictive
from noisynat.random import RandomStream

if TYPE_CHECKING:
    from noisynat.network import VariationalNetwork

_POINTS_AT_ONCE = 8  # Pyro's effective sample size takes draws^2 numbers of memory per point
_FORMAT = 1


class UnconvergedError(RuntimeError):
    """The chains disagree, so that what they say on average is not the posterior."""


@dataclass(frozen=True)
class Diagnostics:
    """How a run of NUTS went; lists have an entry per chain.

    Args:
        warmup: draws of each chain that adapted the step size and the mass matrix and were dropped.
        max_tree_depth: a draw takes at most 2^depth - 1 leapfrog steps.
        target_accept: mean acceptance probability that the step size was adapted to.
        seed: of the run.
        divergences: draws kept whose trajectory left its energy.
        step_sizes: after adaptation, in units of the prior's standard deviations.
        evaluations: of the gradient, for the draws kept.
        seconds: wall time, warm-up included.
    """

    warmup: int
    max_tree_depth: int
    target_accept: float
    seed: int
    divergences: list[int]
    step_sizes: list[float]
    evaluations: list[int]
    seconds: list[float]


class NUTSPosterior:
    """Draws from p(w | y) by the No-U-Turn sampler, as :func:`~noisynat.interop.pyro.sample_nuts` returns them.

    Weights are not identifiable (hidden units can be exchanged), so convergence is judged on what the network
    predicts: the split R-hat of f(x) over the chains (Gelman et al. 2013, section 11.4; threshold of Vehtari et al.
    2021).

    Args:
        network: whose weights these are; it is copied, and only its architecture counts.
        weights: (chains, draws, D), row-major, layer after layer.
        precision: of the noise, (chains, draws, precisions).
        check_at: inputs (N, in) at which :attr:`converged` is judged.
        diagnostics: of the run.
        inverse_mass: diagonal of each chain's adapted inverse mass matrix, (chains, D), to go on from.
        threshold: R-hat below which the chains count as converged.
    """

    def __init__(
        self,
        network: VariationalNetwork,
        weights: Tensor,
        precision: Tensor,
        check_at: Tensor,
        diagnostics: Diagnostics,
        inverse_mass: Tensor,
        threshold: float = 1.01,
    ) -> None:
        if threshold <= 1:
            raise ValueError(f"R-hat is at least about 1, so its threshold must be greater, got {threshold}")
        self._network = log_joint.double_copy(network)
        self.weights, self.precision = weights, precision
        self.check_at, self.diagnostics, self.inverse_mass = check_at, diagnostics, inverse_mass
        self.threshold = threshold
        self._checked: tuple[Tensor, Tensor] | None = None

    # --- what the posterior says ------------------------------------------------------------------

    @property
    def chains(self) -> int:
        """Number of chains."""
        return self.weights.shape[0]

    @property
    def draws(self) -> int:
        """Draws kept of each chain."""
        return self.weights.shape[1]

    @torch.no_grad()
    def functions(self, x: Tensor) -> Tensor:
        """Outputs f of every draw at x (N, in): (chains, draws, N, K), float64."""
        weights = log_joint.unpack(self._network, self.weights.flatten(0, 1))
        x = log_joint.inputs_of(self._network, x)
        return log_joint.functions(self._network, weights, x).unflatten(0, self.weights.shape[:2])

    def predict(
        self, x: Tensor, num_samples: int | None = None, *, allow_unconverged: bool = False, seed: int = 0
    ) -> Predictive:
        """The predictive distribution at x (N, in), pooled over the chains; every draw brings its own noise.

        Args:
            x: inputs.
            num_samples: S, so many of the draws, evenly spaced; all by default.
            allow_unconverged: predict even if the chains disagree about f at x.
            seed: of the random numbers of :meth:`noisynat.Predictive.sample`.

        Returns:
            A :class:`~noisynat.Predictive` with samples (S, N, K), in float64.

        Raises:
            UnconvergedError: if the largest R-hat of f at x, or of the noise precision, is not below the threshold.
            ValueError: if there are fewer draws than ``num_samples``.
        """
        f = self.functions(x)
        if not allow_unconverged:
            self._require_converged(f)
        total = self.chains * self.draws
        count = total if num_samples is None else num_samples
        if not 1 <= count <= total:
            raise ValueError(f"num_samples is at least 1 and at most the {total} draws there are, got {num_samples}")
        chosen = torch.arange(count) * total // count
        std = self.precision.flatten(0, 1)[chosen].rsqrt().unsqueeze(-2)  # (S, 1, precisions), every draw's own
        return Predictive(f.flatten(0, 1)[chosen], NormalNoise(std), RandomStream(seed))

    def select(self, chains: Sequence[int]) -> NUTSPosterior:
        """The posterior of some of the chains alone, for instance to compare one half of them with the other."""
        index, of = list(chains), self.diagnostics
        kept: dict[str, Any] = {
            name: [getattr(of, name)[i] for i in index]
            for name in ("divergences", "step_sizes", "evaluations", "seconds")
        }
        return NUTSPosterior(
            self._network,
            self.weights[index],
            self.precision[index],
            self.check_at,
            replace(of, **kept),
            self.inverse_mass[index],
            self.threshold,
        )

    def followed_by(self, later: NUTSPosterior) -> NUTSPosterior:
        """These draws and, of each chain, those of ``later`` after them."""
        of, then = self.diagnostics, later.diagnostics
        together: dict[str, Any] = {
            name: [a + b for a, b in zip(getattr(of, name), getattr(then, name), strict=True)]
            for name in ("divergences", "evaluations", "seconds")
        }
        return NUTSPosterior(
            self._network,
            torch.cat([self.weights, later.weights], 1),
            torch.cat([self.precision, later.precision], 1),
            self.check_at,
            replace(of, **together),
            self.inverse_mass,
            self.threshold,
        )

    # --- whether it can be believed ---------------------------------------------------------------

    def r_hat(self, x: Tensor | None = None, *, folded: bool = False) -> Tensor:
        """Split R-hat of the predictions f at x (N, in), by default at :attr:`check_at`: (N, K).

        Args:
            x: inputs.
            folded: of |f - median| instead, which tells whether the chains agree about the spread.
        """
        f = self._check_functions() if x is None else self.functions(x)
        return _split_r_hat((f - _median(f)).abs() if folded else f)

    def effective_sample_size(self, x: Tensor | None = None) -> Tensor:
        """Independent draws of f at x that would estimate its mean as well, over all chains: (N, K)."""
        from pyro.ops.stats import effective_sample_size

        f = self._check_functions() if x is None else self.functions(x)
        parts = f.flatten(2).split(_POINTS_AT_ONCE, dim=-1)
        return torch.cat([effective_sample_size(part) for part in parts], -1).unflatten(0, f.shape[2:])

    def noise_r_hat(self) -> Tensor:
        """Split R-hat of the log noise precision (precisions,); 1 where the noise is fixed."""
        log_precision = self.precision.log()
        if bool((log_precision == log_precision[:1, :1]).all()):
            return torch.ones(self.precision.shape[-1], dtype=torch.float64)
        return _split_r_hat(log_precision)

    @property
    def converged(self) -> bool:
        """Whether R-hat of every prediction at :attr:`check_at`, and of the noise, is below the threshold."""
        return self._worst_r_hat(self._check_functions()) < self.threshold

    def summary(self) -> dict[str, Any]:
        """Figures of the run: R-hat and effective sample sizes at :attr:`check_at`, and how the sampler fared."""
        size, of = self.effective_sample_size(), self.diagnostics
        return {
            "chains": self.chains,
            "draws": self.draws,
            "warmup": of.warmup,
            "converged": self.converged,
            "threshold": self.threshold,
            "r_hat_max": float(self.r_hat().max()),
            "r_hat_folded_max": float(self.r_hat(folded=True).max()),
            "r_hat_noise": float(self.noise_r_hat().max()),
            "ess_min": float(size.min()),
            "ess_median": float(size.median()),
            "divergences": sum(of.divergences),
            "step_sizes": list(of.step_sizes),
            "leapfrog_per_draw": sum(of.evaluations) / (self.chains * self.draws),
            "seconds": list(of.seconds),
        }

    def _check_functions(self) -> Tensor:
        if self._checked is None or self._checked[0] is not self.check_at:
            self._checked = self.check_at, self.functions(self.check_at)
        return self._checked[1]

    def _worst_r_hat(self, f: Tensor) -> float:
        worst = torch.cat([_split_r_hat(f).flatten(), self.noise_r_hat()]).max()  # NaN if one is NaN
        return float(worst)

    def _require_converged(self, f: Tensor) -> None:
        worst = self._worst_r_hat(f)
        if not worst < self.threshold:
            raise UnconvergedError(
                f"the chains have not converged: the largest R-hat is {worst:.4f}, the threshold {self.threshold:g}; "
                "draw more samples (resume=), or pass allow_unconverged=True to use them as they are"
            )

    # --- files ------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write draws and diagnostics to ``path``, whole or not at all; ``torch.load(weights_only=True)`` reads it."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        state = {
            "format": _FORMAT,
            "weights": self.weights,
            "precision": self.precision,
            "check_at": self.check_at,
            "inverse_mass": self.inverse_mass,
            "threshold": self.threshold,
            "prior_variance": torch.stack(log_joint.prior_variances(self._network)),
            "diagnostics": asdict(self.diagnostics),
        }
        torch.save(state, partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path, network: VariationalNetwork) -> NUTSPosterior:
        """What :meth:`save` wrote, for a network of the same architecture and prior.

        Raises:
            ValueError: if the file is of another network or prior.
        """
        log_joint.check_supported(network)
        state = torch.load(path, weights_only=True)
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} is of format {state.get('format')}, expected {_FORMAT}")
        dim = sum(layer.out_features * layer.columns for layer in network.layers)
        prior = torch.stack(log_joint.prior_variances(network))
        if state["weights"].shape[-1] != dim or not torch.equal(prior, state["prior_variance"]):
            raise ValueError(
                f"{path} holds draws of {state['weights'].shape[-1]} weights with prior variances "
                f"{state['prior_variance'].tolist()}; this network has {dim} and {prior.tolist()}"
            )
        diagnostics = Diagnostics(**state["diagnostics"])
        weights, precision, check_at = (state[key] for key in ("weights", "precision", "check_at"))
        return cls(network, weights, precision, check_at, diagnostics, state["inverse_mass"], state["threshold"])

    def __repr__(self) -> str:
        return f"NUTSPosterior(chains={self.chains}, draws={self.draws}, weights={self.weights.shape[-1]})"


def _median(f: Tensor) -> Tensor:
    return f.flatten(0, 1).median(0).values


def _split_r_hat(values: Tensor) -> Tensor:
    """Split R-hat (*rest,) of values (chains, draws, *rest); needs at least four draws."""
    from pyro.ops.stats import split_gelman_rubin

    if values.shape[1] < 4:
        raise ValueError(f"R-hat needs at least four draws per chain, got {values.shape[1]}")
    r_hat: Tensor = split_gelman_rubin(values)
    return r_hat
