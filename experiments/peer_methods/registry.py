"""The peers by name, with the settings that they run with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

from experiments.peer_methods import ensemble, gaussian_process, ivon_optimizer, laplace_torch, pyro_mean_field
from experiments.peer_methods.base import Budget, Prediction
from experiments.peer_methods.selection import Run, select
from experiments.protocol import Splits

EXTRA = "peers"
_SELECT_BELOW = 4000  # training examples; larger sets overfit less, and every candidate costs a training


class PeerNotInstalledError(ImportError):
    """The package that a peer runs on is missing."""


@dataclass(frozen=True)
class Peer:
    """A method that is not ours, run under our protocol.

    Args:
        name: on the command line and in tables.
        title: for readers.
        run: ``run(splits, budget, **settings)`` yields a prediction per split.
        options: settings that are the same everywhere.
        candidates: settings of which each split of a small set selects one; on large sets the first is taken.
        rehearsal: settings for the selection only.
        distribution: that the module comes with, None where torch is enough.
        module: that must be importable.
        max_train: the largest N for which it is run, None without a limit.
    """

    name: str
    title: str
    run: Run
    options: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Mapping[str, Any], ...] = ({},)
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    distribution: str | None = None
    module: str = "torch"
    max_train: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of ``run``, defaults included, apart from those that are selected."""
        defaults = {
            name: parameter.default
            for name, parameter in signature(self.run).parameters.items()
            if parameter.default is not Parameter.empty
        }
        return {**defaults, **self.options}

    def require(self) -> None:
        """Raise unless its package is there.

        Raises:
            PeerNotInstalledError: that names the package and the extra.
        """
        if find_spec(self.module) is None:
            raise PeerNotInstalledError(
                f"{self.name} needs the package {self.distribution}: pip install 'noisynat[{EXTRA}]'"
            )

    def predictions(self, splits: Splits, budget: Budget) -> Iterator[Prediction]:
        """A prediction per split.

        Raises:
            PeerNotInstalledError: if its package is missing.
        """
        self.require()
        run = partial(self.run, **self.options)
        if len(self.candidates) == 1 or splits.num_train >= _SELECT_BELOW:
            return run(splits, budget, **self.candidates[0])
        return select(run, splits, budget, self.candidates, self.rehearsal)


def _prior_precisions(*values: float) -> tuple[Mapping[str, Any], ...]:
    return tuple({"prior_precision": value} for value in values)


_PEERS = (
    Peer(
        "peer-laplace-full",
        "Laplace, full Gauss-Newton, linearized",
        laplace_torch.predictions,
        {"structure": "full"},
        _prior_precisions(1.0, 3.0, 10.0, 30.0),
        {"tuning_steps": 30},
        distribution="laplace-torch",
        module="laplace",
    ),
    Peer(
        "peer-laplace-kron",
        "Laplace, Kronecker, linearized",
        laplace_torch.predictions,
        {"structure": "kron"},
        _prior_precisions(1.0, 10.0, 30.0, 100.0),
        {"tuning_steps": 30},
        distribution="laplace-torch",
        module="laplace",
    ),
    Peer(
        "peer-ivon",
        "IVON",
        ivon_optimizer.predictions,
        candidates=(
            {"lr": 0.02, "hess_init": 10.0, "beta2": 0.999},
            {"lr": 0.02, "hess_init": 10.0, "beta2": 0.9995},
            {"lr": 0.01, "hess_init": 100.0, "beta2": 0.9995},
        ),
        distribution="ivon-opt",
        module="ivon",
    ),
    Peer("peer-bbb-pyro", "Bayes by Backprop", pyro_mean_field.predictions, distribution="pyro-ppl", module="pyro"),
    Peer(
        "peer-ensemble",
        "deep ensemble of 5, learned noise",
        ensemble.predictions,
        {"noise": "learned"},
        _prior_precisions(1.0, 10.0, 30.0, 100.0, 300.0),
        {"members": 3},
    ),
    Peer(
        "peer-ensemble-mv",
        "deep ensemble of 5, mean and variance",
        ensemble.predictions,
        {"noise": "per_input"},
        _prior_precisions(1.0, 10.0, 30.0, 100.0, 300.0),
        {"members": 3},
    ),
    Peer(
        "peer-gp",
        "exact Gaussian process",
        gaussian_process.predictions,
        distribution="gpytorch",
        module="gpytorch",
        max_train=2000,
    ),
)
PEERS = {peer.name: peer for peer in _PEERS}
