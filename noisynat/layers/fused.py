"""A linear layer and its local noise as one operation of the graph, which in small networks takes most of the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noisynat.curvature.inverse import KroneckerBasisInverse, positive_root


class NoisyLinear(torch.autograd.Function):
    """s = a M^T + L (sqrt(v (R^T a)^2) * e), where a is x with the bias's constant appended.

    The derivative in x is that of both terms; R, L and v are constants.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, mean: Tensor, root: KroneckerBasisInverse, normal: Tensor) -> Tensor:
        """Outputs (*batch, B, out).

        Args:
            ctx: of autograd.
            x: inputs (*batch, B, in), whose gradient is wanted.
            a: the same with the constant (*batch, B, columns), without a gradient.
            mean: M (*batch, out, columns).
            root: of the covariance.
            normal: e (*batch, B, out), scaled.
        """
        rows = root.rotate_inputs(a)
        std = positive_root(rows.square() @ root.variance.mT)
        ctx.save_for_backward(a, mean, rows, std, normal)
        ctx.root, ctx.inputs = root, x.shape[-1]
        return root.rotate_outputs(std * normal).add_(a @ mean.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        a, mean, rows, std, normal = ctx.saved_tensors
        of_x = of_mean = None
        if ctx.needs_input_grad[0]:
            root = ctx.root
            of_std = gradient if root.left is None else gradient @ root.left
            of_rows = rows * ((of_std * normal).div_(std) @ root.variance)
            of_a = gradient @ mean
            of_a += of_rows if root.right is None else of_rows @ root.right.mT
            of_x = of_a[..., : ctx.inputs]
        if ctx.needs_input_grad[2]:
            of_mean = gradient.mT @ a
        return of_x, None, of_mean, None, None
