"""Noisy natural gradient: the update rule for the means of a :class:`~noisynat.VariationalNetwork`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from noisynat.curvature.fisher import FisherKind
from noisynat.network import VariationalNetwork
from noisynat.optim.natural_gradient import NaturalGradient


class NoisyNaturalGradient(NaturalGradient):
    """Natural gradient on the ELBO of a :class:`~noisynat.VariationalNetwork`, for any natural posterior.

    The loop is PyTorch's: ``zero_grad``, ``bnn.loss(x, y).backward()``, ``step``. The KL's part is added here, and the
    curvature takes its statistics from every loss that was back-propagated since the last step, so accumulating
    gradients over micro-batches equals one large batch.

    Args:
        network: whose means are moved. Its point estimates form a second parameter group, moved by Adam.
        lr: step size of the means.
        betas: beta1 of the momentum, beta2 of the curvature's average.
        damping: added to the curvature in the STEP only, never to the posterior.
        fisher: ``"ggn"``, ``"mc"`` or ``"empirical"``; None chooses by the number of outputs and the network's size.
        kl_clip: bound of the trust region, per replica; None for none.
        stats_every: steps between statistics. None for 5, or 10 in a network with a layer of more than 256 inputs (the
            bias's constant counted) or outputs, and more often at first; a batch then counts for all the steps that it
            stands for, with the decay beta2^5 or beta2^10.
        stats_examples: of each batch (each loss) feed the curvature, its first ones. None for all, or at most 32 in a
            network with convolutions, which see an example at many locations. A dense posterior of D weights spends
            B D^2 operations on the statistics of B examples.
        refresh_every: steps between factorizations of the curvature. None for 50, or 20 in a network with such a layer,
            and more often at first.
        point_lr: learning rate of the point estimates.
        param_groups: instead of the default groups, dictionaries with ``params`` (means or point estimates of the
            network) and any of ``lr``, ``betas``, ``damping``.

    Raises:
        TypeError: if ``network`` is no VariationalNetwork.
        ValueError: if an argument is out of range or the posterior is not one this optimizer trains.
    """

    structures: ClassVar[tuple[str, ...]] = (
        "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer",
    )  # fmt: skip

    network: VariationalNetwork

    def __init__(
        self,
        network: VariationalNetwork,
        lr: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.99),
        damping: float = 1e-3,
        fisher: FisherKind | None = None,
        kl_clip: float | None = 1e-3,
        stats_every: int | None = None,
        refresh_every: int | None = None,
        *,
        stats_examples: int | None = None,
        point_lr: float = 1e-3,
        param_groups: Iterable[dict[str, Any]] | None = None,
    ) -> None:
        self._check_network(network)
        if param_groups is None:
            param_groups = [{"params": [layer.mean for layer in network.layers]}]
            if network.point_estimates():
                param_groups.append({"params": network.point_estimates(), "lr": point_lr})
        super().__init__(
            network, param_groups, lr=lr, betas=betas, damping=damping, fisher=fisher, kl_clip=kl_clip,
            stats_every=stats_every, refresh_every=refresh_every, stats_examples=stats_examples, point_lr=point_lr,
        )  # fmt: skip

    @classmethod
    def _check_network(cls, network: VariationalNetwork) -> None:
        if not isinstance(network, VariationalNetwork):
            raise TypeError(
                f"{cls.__name__} takes a VariationalNetwork, got {type(network).__name__}; wrap your module first: "
                "noisynat.VariationalNetwork(net, likelihood, num_data=N)"
            )
        if network.structure not in cls.structures:
            raise ValueError(
                f"{cls.__name__} trains posteriors {', '.join(map(repr, cls.structures))}; this one is "
                f"{network.structure!r}: use {_right_optimizer(network.structure)}"
            )


class NoisyAdam(NoisyNaturalGradient):
    """Noisy Adam (Zhang et al. 2018, algorithm 1, with the natural-gradient preconditioner): ``posterior="diagonal"``.

    Arguments and errors: see :class:`NoisyNaturalGradient`.
    """

    structures = ("diagonal",)


class NoisyKFAC(NoisyNaturalGradient):
    """Noisy K-FAC (Zhang et al. 2018, algorithm 2): ``posterior`` is a Kronecker form.

    ``"matrix_normal"`` is the published factored damping, ``"kronecker"`` the exact one, ``"eigen_corrected"`` noisy
    EK-FAC (Bae et al. 2018). Arguments and errors: see :class:`NoisyNaturalGradient`.
    """

    structures = ("matrix_normal", "kronecker", "eigen_corrected")


def _right_optimizer(structure: str) -> str:
    if structure == "mean_field":
        return "any torch optimizer on network.negative_elbo(x, y), such as torch.optim.Adam(network.parameters())"
    for optimizer in (NoisyAdam, NoisyKFAC):
        if structure in optimizer.structures:
            return optimizer.__name__
    return NoisyNaturalGradient.__name__
