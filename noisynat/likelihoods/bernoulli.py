"""Bernoulli likelihood: targets that are 0 or 1."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.likelihoods.base import Likelihood, ObservationModel
from noisynat.likelihoods.discrete import Binary, binary_log_prob, sampled_binary
from noisynat.random import RandomStream


class BernoulliLikelihood(Likelihood):
    r"""p(y_k = 1 | f) = sigmoid(f_k), every output by itself: two classes with one output, or K labels at once.

    Its Gauss-Newton matrix in f, which is its Fisher information too, is diag(p (1 - p)).

    Shapes: outputs and targets (*replicas, B, K); targets are 0 or 1, of the outputs' dtype.

    Example:
        >>> import torch, noisynat
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(4, 1), noisynat.BernoulliLikelihood(), num_data=100)
        >>> loss = bnn.loss(torch.randn(8, 4), torch.randint(2, (8, 1)).float())
        >>> bnn.predict(torch.zeros(5, 4), num_samples=10).probs.shape
        torch.Size([5, 1])
    """

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        if y.shape != f.shape:
            hint = "; use y.unsqueeze(-1)" if y.shape == f.shape[:-1] else ""
            raise ValueError(
                f"targets have shape {tuple(y.shape)}, expected that of the outputs {tuple(f.shape)}{hint}"
            )
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError("targets of a Bernoulli likelihood are 0 or 1")
        return y.to(f.dtype)

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return binary_log_prob(f, y).sum(-1)

    def hessian_root(self, f: Tensor) -> Tensor:
        outputs = f.shape[-1]
        root = (f.sigmoid() * (-f).sigmoid()).sqrt()
        eye = torch.eye(outputs, dtype=f.dtype, device=f.device)
        return eye.reshape(outputs, *(1,) * (f.dim() - 1), outputs) * root

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return sampled_binary(f, stream)

    def observation_model(self) -> ObservationModel:
        return Binary()
