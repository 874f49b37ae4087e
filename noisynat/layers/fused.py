"""A linear layer and its local noise as one operation of the graph, which in small networks takes most of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisynat.curvature.inverse import KroneckerBasisInverse


class NoisyLinear(torch.autograd.Function):
    """s = a M^T + scale L (sqrt(v (R^T a)^2) * e), where a is x with the bias's constant appended.

    The derivative in x is that of both terms; R, L, v and the scale are constants.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, mean: Tensor, root: KroneckerBasisInverse, scale: float | Tensor, normal: Tensor
    ) -> Tensor:
        """Outputs (*batch, B, out).

        Args:
            ctx: of autograd.
            x: inputs (*batch, B, in), whose gradient is wanted.
            a: the same with the constant (*batch, B, columns), without a gradient.
            mean: M (*batch, out, columns).
            root: of the covariance.
            scale: of the root.
            normal: e (*batch, B, out).
        """
        if mean.shape[-2] == 1:  # the variance is a quadratic form, whose matrix is known
            rows = root.covary(a)
            std = (rows * a).sum(-1, keepdim=True)
        else:
            rows = root.rotate_inputs(a)
            std = rows.square() @ root.variance.mT
        std = std.clamp_(min=torch.finfo(std.dtype).tiny).sqrt_()
        ctx.save_for_backward(a, mean, rows, std, normal)
        ctx.root, ctx.scale, ctx.inputs = root, scale, x.shape[-1]
        s = a @ mean.mT
        if root.left is None:
            return _add_scaled(s, std * normal, scale)
        return _add_scaled(s, root.rotate_outputs(std * normal), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        a, mean, rows, std, normal = ctx.saved_tensors
        of_x = of_mean = None
        if ctx.needs_input_grad[0]:
            root = ctx.root
            of_std = (gradient if root.left is None else gradient @ root.left) * normal
            of_std.div_(std)
            if mean.shape[-2] == 1:  # elementwise: many times faster than products of columns and rows
                of_a = _add_scaled(gradient * mean, of_std * rows, ctx.scale)
            else:
                of_rows = (of_std @ root.variance).mul_(rows)
                of_a = gradient @ mean
                of_a = _add_scaled(of_a, of_rows if root.right is None else of_rows @ root.right.mT, ctx.scale)
            of_x = of_a[..., : ctx.inputs]
        if ctx.needs_input_grad[2]:
            of_mean = gradient.mT @ a
        return of_x, None, of_mean, None, None, None


def _add_scaled(target: Tensor, other: Tensor, scale: float | Tensor) -> Tensor:
    """``target + scale * other``, in place if scale is a number.

    Where code is compiled not by ``alpha``, which PyTorch 2.13's compiler loses next to a product (of the same kind as
    pytorch issue 167313).
    """
    return target + scale * other if isinstance(scale, Tensor) else target.add_(other, alpha=scale)
