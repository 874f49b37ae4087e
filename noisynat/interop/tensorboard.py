"""TensorBoard: what :func:`~noisynat.fit` records of every epoch, as scalars.

The ``SummaryWriter`` of ``torch.utils.tensorboard`` needs the extra ``noisynat[tensorboard]``; importing this module
does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from noisynat.network import VariationalNetwork
    from noisynat.training import History

__all__ = ["TensorBoardCallback"]


class ScalarWriter(Protocol):
    """What is asked of a ``SummaryWriter``."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Write a number under a tag."""


class TensorBoardCallback:
    """An ``on_epoch`` of :func:`~noisynat.fit` that writes the history's new row, at the epoch as global step.

    Tags are ``<prefix>/<column>`` for every column of :class:`~noisynat.History`: loss, kl, elbo, lr, kl_weight and
    seconds. With ``network`` the KL's parts are written too, in nats: ``<prefix>/kl_of/<layer>``, and
    ``<prefix>/kl_of/noise``; they add up to ``<prefix>/kl``. With replicas a tag has their mean, and
    ``<tag>/<replica>`` each one's.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar``; it is not closed.
        network: that is trained.
        prefix: of the tags.

    Example:
        >>> import torch, noisynat
        >>> from noisynat.interop.tensorboard import TensorBoardCallback
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(tag, step)
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(2, 1), noisynat.GaussianLikelihood(), num_data=4)
        >>> data = noisynat.TensorBatches(torch.zeros(4, 2), torch.zeros(4, 1))
        >>> write = TensorBoardCallback(Printer())
        >>> history = noisynat.fit(bnn, noisynat.NoisyKFAC(bnn), data, epochs=1, progress=False, on_epoch=write)
        train/loss 1
        train/kl 1
        train/elbo 1
        train/lr 1
        train/kl_weight 1
        train/seconds 1
    """

    def __init__(
        self, writer: ScalarWriter, network: VariationalNetwork | None = None, *, prefix: str = "train"
    ) -> None:
        self.writer, self.network, self.prefix = writer, network, prefix

    @torch.no_grad()
    def __call__(self, epoch: int, history: History) -> None:
        """Write the last row of ``history``."""
        for column, values in history.items():
            if column != "epoch":
                self._write(column, values[-1], epoch)
        if self.network is not None:
            for posterior in self.network.posteriors:
                self._write(f"kl_of/{posterior.name}", posterior.kl_divergence().tolist(), epoch)
            self._write("kl_of/noise", self.network.likelihood.kl(self.network.replicas).tolist(), epoch)

    def _write(self, name: str, value: float | list[float], epoch: int) -> None:
        """A number, or one for each replica."""
        tag, values = f"{self.prefix}/{name}", np.asarray(value)
        self.writer.add_scalar(tag, values.mean(), epoch)
        if values.ndim:
            for index, number in np.ndenumerate(values):
                self.writer.add_scalar(f"{tag}/{','.join(map(str, index))}", number, epoch)
