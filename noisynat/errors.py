"""The errors that are this library's own."""

from __future__ import annotations

from torch import Tensor

from noisynat.border import all_finite


class CurvatureError(ArithmeticError):
    """A curvature could not be factorized three times in a row; names the layer and its condition number."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number; parameters are as they were before that step."""


def check_finite(loss: Tensor, where: str, *, taken: bool = False) -> None:
    """Raise NonFiniteLossError if a loss (*replicas,) is not finite.

    Args:
        loss: of a batch.
        where: that was, for the message.
        taken: whether the step has been taken by now.
    """
    if not all_finite(loss.detach()):
        replicas = f", replicas {(~loss.isfinite()).nonzero().flatten().tolist()}" if loss.dim() else ""
        state = "that step has been taken" if taken else "the parameters are as before that step"
        raise NonFiniteLossError(
            f"the loss is not finite in {where}{replicas}; {state}. Standardize inputs and targets, lower lr, or bound "
            "the step with kl_clip"
        )
