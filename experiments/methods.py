"""The methods that the experiments compare, all on the same network and prior.

``METHODS`` are the posterior families, each trained in one go; ``RECIPES`` are mixtures trained in phases; ``FOR_FEW``
are for a few dozen examples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer

import noisynat
from noisynat.posteriors.families import Structure


@dataclass(frozen=True)
class Method:
    """A posterior family and how it is trained.

    Args:
        name: on the command line and in tables.
        title: in figures.
        structure: ``posterior=`` of :class:`noisynat.VariationalNetwork`.
        options: of the optimizer, where they are not its defaults.
        kl_warmup: fraction of the epochs in which the KL's weight rises to its value. The fewer correlations a family
            has, the more it needs one: from full weight on, it prunes hidden units before they have learned anything.
        kl_start: the weight's first value, for a geometric rise; None for a linear one.
        curvature_final: how far 1 - beta2 falls with the learning rate, see :func:`noisynat.cosine_schedule`.
        noise_warmup: fractions of the epochs between which varying noise is set free; None for noise
            that is the same everywhere.
        start: trained before this method, with as many outputs and members; the method goes on from its posterior.
        share: of the epochs that this method has; ``start`` has the rest.
        members: networks per split, which predict as a mixture.
        configuration: fields of :class:`experiments.runs.Configuration` in which this method departs from the others.
    """

    name: str
    title: str
    structure: Structure
    options: dict[str, Any] = field(default_factory=dict)
    kl_warmup: float = 0.0
    kl_start: float | None = None
    curvature_final: float = 0.1
    noise_warmup: tuple[float, float] | None = None
    start: Method | None = None
    share: float = 1.0
    members: int = 1
    configuration: dict[str, Any] = field(default_factory=dict)

    @property
    def heteroscedastic(self) -> bool:
        """Whether the network gives the noise's variance too."""
        return self.noise_warmup is not None

    def optimizer(self, network: noisynat.VariationalNetwork) -> Optimizer:
        """The method's optimizer for ``network``."""
        if self.structure == "mean_field":
            return torch.optim.Adam(network.parameters(), **self.options)
        if self.structure == "diagonal":
            return noisynat.NoisyAdam(network, **self.options)
        if self.structure == "dense":
            return noisynat.NoisyNaturalGradient(network, **self.options)
        return noisynat.NoisyKFAC(network, **self.options)

    def phases(self, epochs: int) -> list[tuple[Method, int]]:
        """What is trained one after the other, and for how many epochs, at least one: one phase, or two."""
        if self.start is None:
            return [(self, epochs)]
        own = max(round(self.share * epochs), 1)
        start = replace(self.start, noise_warmup=self.noise_warmup, members=self.members, configuration={})
        return [*start.phases(max(epochs - own, 1)), (self, own)]


_EVERY_STEP = {"stats_every": 1, "refresh_every": 10}
_KRON = Method("nng-kron", "noisy K-FAC, exact damping", "kronecker", _EVERY_STEP, kl_warmup=0.05)
_METHODS = (
    Method("bbb", "Bayes by Backprop", "mean_field", {"lr": 0.015}, kl_warmup=0.1, curvature_final=1.0),
    Method("nng-ffg", "noisy Adam", "diagonal", {"lr": 0.05, "stats_every": 1, "refresh_every": 5}, kl_warmup=0.1),
    Method("nng-mvg", "noisy K-FAC, factored damping", "matrix_normal", _EVERY_STEP, kl_warmup=0.05),
    _KRON,
    Method("nng-ekfac", "noisy EK-FAC", "eigen_corrected", {"stats_every": 1, "refresh_every": 20}, kl_warmup=0.05),
    # One D x D matrix for the whole network is dear: a Kronecker posterior paves the way, statistics and factorizations
    # are seldom, and none is made a second time for damping.
    Method(
        "nng-full", "full covariance", "dense",
        {
            "damping": 0.0, "refresh_every": 24, "stats_every": 2, "stats_examples": 128, "betas": (0.9, 0.98),
            "kl_clip": 1e-4,
        },
        start=_KRON, share=0.5,
    ),
)  # fmt: skip
METHODS = {method.name: method for method in _METHODS}

# A long warm-up keeps hidden units that the KL would prune; the dense posterior that follows has a tenth of the epochs
# and half the learning rate, enough for the covariance and little for the mean. The bold one learns at twice the rate
# from a third of the KL: ahead where there is much to learn, behind where there are few examples.
_MIXED = replace(
    _KRON, name="mix-kron", title="mixture, noisy K-FAC", options={"stats_every": 1, "refresh_every": 20},
    members=3, kl_warmup=0.5, kl_start=0.1,
)  # fmt: skip
_PATIENT = replace(_MIXED, kl_warmup=1.0)
_FULL = Method(
    "mix-full", "mixture, full covariance", "dense",
    {
        "lr": 0.01, "damping": 0.0, "refresh_every": 40, "stats_every": 8, "stats_examples": 64, "betas": (0.9, 0.96),
        "kl_clip": 1e-4,
    },
    start=_PATIENT, share=0.1, members=3,
)  # fmt: skip
_FULL_HET = replace(
    _FULL, name="mix-full-het", title="mixture, full covariance, varying noise", noise_warmup=(0.4, 0.8)
)
_RECIPES = (
    _MIXED,
    replace(_MIXED, name="mix-kron-het", title="mixture, noisy K-FAC, varying noise", noise_warmup=(0.3, 0.6)),
    _FULL,
    _FULL_HET,
    replace(
        _FULL_HET,
        name="mix-full-bold",
        title="mixture, full covariance, varying noise, bold",
        start=replace(_PATIENT, options={"lr": 0.04, "stats_every": 1, "refresh_every": 20}, kl_start=0.03),
    ),
)
RECIPES = {method.name: method for method in _RECIPES}

DEFAULT = "mix-full-het"
"""What we recommend without tuning."""
CANDIDATES = ("mix-full-het", "mix-full-bold")
"""What the in-split selection weights: a cautious and a bold course through the KL warm-up."""

# Twenty to thirty examples, all of them in every step, are learned in 200 large steps: with a wide trust region, and a
# curvature that soon forgets its first value, which would keep the posterior narrow far from the data. The KL rises all
# the way.
_FEW: dict[str, Any] = {"kl_warmup": 1.0, "kl_start": 0.1, "curvature_final": 1.0}
_LARGE_STEPS: dict[str, Any] = {"lr": 0.3, "kl_clip": 1.0, "betas": (0.9, 0.95), **_EVERY_STEP}
_FEW_KRON = replace(_KRON, options=_LARGE_STEPS, **_FEW)
_FOR_FEW = (
    replace(METHODS["bbb"], configuration={"epochs": 2000}, **_FEW),
    replace(METHODS["nng-ffg"], options={**_LARGE_STEPS, "refresh_every": 5}, **_FEW),
    _FEW_KRON,
    replace(
        METHODS["nng-full"],
        options={"lr": 0.1, "kl_clip": 1.0, "betas": (0.9, 0.96), "damping": 0.0, **_EVERY_STEP},
        start=_FEW_KRON,
        share=0.2,
    ),
    replace(_MIXED, options=_LARGE_STEPS, **_FEW),
)
FOR_FEW = {method.name: method for method in _FOR_FEW}
"""The families, and a mixture, trained on a few dozen examples."""
