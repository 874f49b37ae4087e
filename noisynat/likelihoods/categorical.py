"""Categorical likelihood: one of several classes."""

from __future__ import annotations

import torch
from torch import Tensor

from noisynat.likelihoods.base import Likelihood, ObservationModel
from noisynat.likelihoods.discrete import Classes, class_log_prob, sampled_classes
from noisynat.random import RandomStream

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CategoricalLikelihood(Likelihood):
    r"""p(y = k | f) = softmax(f)_k for one of K classes.

    Its Gauss-Newton matrix in f, which is its Fisher information too, is diag(p) - p p^T, with the root
    h_k = sqrt(p_k) (e_k - p) (Martens 2020, section 9).

    Shapes: outputs (*replicas, B, K), K at least 2, targets class numbers (*replicas, B), integers from 0 to K - 1.

    Example:
        >>> import torch, noisynat
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(4, 3), noisynat.CategoricalLikelihood(), num_data=100)
        >>> loss = bnn.loss(torch.randn(8, 4), torch.randint(3, (8,)))
        >>> bnn.predict(torch.zeros(5, 4), num_samples=10).probs.shape
        torch.Size([5, 3])
    """

    def target_shape(self, outputs: torch.Size) -> torch.Size:
        return outputs[:-1]

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        classes, expected = f.shape[-1], self.target_shape(f.shape)
        if classes < 2:
            raise ValueError("a categorical likelihood needs 2 outputs or more; for one, use BernoulliLikelihood")
        if y.shape != expected:
            hint = ""
            if y.shape == (*expected, 1):
                hint = "; use y.squeeze(-1)"
            elif y.shape == f.shape:
                hint = "; one-hot rows become class numbers by y.argmax(-1)"
            raise ValueError(f"targets have shape {tuple(y.shape)}, expected class numbers {tuple(expected)}{hint}")
        if y.dtype not in _INTEGERS:
            raise TypeError(f"targets are {y.dtype}, expected integers, the numbers of classes; use y.long()")
        if y.numel() and not (int(y.min()) >= 0 and int(y.max()) < classes):
            raise ValueError(
                f"targets lie in {int(y.min())} to {int(y.max())}, expected class numbers 0 to {classes - 1}"
            )
        return y.long()

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return class_log_prob(f, y)

    def hessian_root(self, f: Tensor) -> Tensor:
        """Columns sqrt(p_k) (e_k - p), (K, *replicas, B, K)."""
        probs = f.softmax(-1)
        eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
        columns = eye.reshape(-1, *(1,) * (f.dim() - 1), f.shape[-1]) - probs
        return probs.sqrt().movedim(-1, 0).unsqueeze(-1) * columns

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return sampled_classes(f, stream)

    def observation_model(self) -> ObservationModel:
        return Classes()
