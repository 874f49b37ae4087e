"""Gaussian likelihood with fixed, learned or gamma-distributed noise precision."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from noisynat.compiling import is_compiling
from noisynat.likelihoods.base import Likelihood, ObservationModel
from noisynat.likelihoods.observation import NormalNoise, StudentNoise
from noisynat.random import RandomStream


def _digamma(a: float | Tensor) -> float | Tensor:
    return torch.digamma(a) if isinstance(a, Tensor) else _digamma_of_number(a)


@lru_cache(maxsize=16)
def _digamma_of_number(a: float) -> float:
    return float(torch.digamma(torch.tensor(a, dtype=torch.float64)))


class GaussianLikelihood(Likelihood):
    r"""y = f + noise with precision tau, p(y | f, tau) = N(f, 1 / tau).

    With ``noise="gamma"`` the precision has the prior Gamma(a0, b0) and the posterior Gamma(a, b) with
    a = a0 + N/2, moved by natural-gradient steps b <- (1 - rho) b + rho (b0 + N/2 E[(y - f)^2]); the exact
    expected log-likelihood and KL enter the ELBO, and predictions are mixtures of Student-t's
    (method of Zhang et al. 2018, section 5.1; update: conjugate computation as in Hoffman et al. 2013, section 2).

    Args:
        noise: a number is the fixed STANDARD DEVIATION of the noise, in the targets' units; ``"learned"`` fits it by
            maximum likelihood with the same steps; ``"gamma"`` infers it.
        a0: shape of the prior of the precision (``"gamma"`` only).
        b0: rate of that prior, in squared units of the targets.
        num_outputs: 1 shares one precision among all outputs; K gives each its own.
        initial_std: standard deviation that ``"learned"`` and ``"gamma"`` start from (1 suits standardized targets).
        step_size: rho, 0 < rho <= 1.

    Raises:
        ValueError: if an argument is out of range.
    """

    residual: Tensor
    outputs_per_precision: Tensor

    def __init__(
        self,
        noise: float | Literal["learned", "gamma"] = "gamma",
        *,
        a0: float = 6.0,
        b0: float = 6.0,
        num_outputs: int = 1,
        initial_std: float = 1.0,
        step_size: float = 0.01,
    ) -> None:
        super().__init__()
        if isinstance(noise, str):
            if noise not in ("learned", "gamma"):
                raise ValueError(f"noise is a standard deviation, 'learned' or 'gamma', got {noise!r}")
            self.kind: str = noise
        else:
            self.kind, initial_std = "fixed", float(noise)
        for name, value in {"noise": initial_std, "a0": a0, "b0": b0}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], got {step_size}")
        if num_outputs < 1:
            raise ValueError(f"num_outputs must be at least 1, got {num_outputs}")
        self.a0, self.b0, self.num_outputs = float(a0), float(b0), num_outputs
        self.initial_std, self.step_size = initial_std, step_size
        self._observed: list[tuple[Tensor, int]] = []  # means of (y - f)^2, and of how many examples
        self._known_outputs = torch.empty(()), -1, 0  # see _outputs
        self._known: tuple[Tensor, tuple[Any, ...], Tensor, Tensor] | None = None  # see _expected
        self.bind(1, torch.Size(), torch.float32)

    def bind(self, num_data: int, replicas: torch.Size, dtype: torch.dtype) -> None:
        self.num_data = num_data
        self.dtype = dtype
        shape = (*replicas, self.num_outputs)
        # The running mean of (y - f)^2 per precision; b = b0 + N/2 residual, so its step is b's.
        self.register_buffer("residual", torch.full(shape, self.initial_std**2, dtype=torch.float64))
        self.register_buffer("outputs_per_precision", torch.ones((), dtype=torch.int64))

    def _apply(self, fn: Any, recurse: bool = True) -> GaussianLikelihood:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty((), dtype=self.dtype)).dtype  # of the outputs, which follow the network's
        self.residual = self.residual.double()
        return self

    # --- the noise --------------------------------------------------------------------------------

    @property
    def _pairs(self) -> float | Tensor:
        """Residuals per precision over the whole training set: a number, or a tensor () where code is compiled."""
        return self.num_data * (self.outputs_per_precision.double() if is_compiling() else self._outputs)

    @property
    def _outputs(self) -> int:
        """Outputs per precision; read from the device only when it was written."""
        count = self.outputs_per_precision
        if self._known_outputs[0] is not count or self._known_outputs[1] != count._version:
            self._known_outputs = count, count._version, int(count)
        return self._known_outputs[2]

    @property
    def shape(self) -> Tensor:
        """a of the posterior Gamma(a, b), ()."""
        return self.residual.new_tensor(self.a0 + float(self._pairs) / 2)

    @property
    def posterior_rate(self) -> Tensor:
        """b of the posterior Gamma(a, b), (*replicas, num_outputs)."""
        return self.b0 + self._pairs / 2 * self.residual

    @property
    def precision(self) -> Tensor:
        """(Expected) noise precision, (*replicas, num_outputs), float64."""
        if self.kind == "gamma":
            return (self.a0 + self._pairs / 2) / self.posterior_rate
        return 1 / self.residual

    @property
    def noise_std(self) -> Tensor:
        """precision^-1/2, (*replicas, num_outputs), in the targets' units."""
        return self.precision.rsqrt()

    def _per_example(self, quantity: Tensor) -> Tensor:
        """(*replicas, num_outputs) as (*replicas, 1, num_outputs), to go with outputs."""
        return quantity.to(self.dtype).unsqueeze(-2)

    # --- likelihood -------------------------------------------------------------------------------

    def check_targets(self, f: Tensor, y: Tensor) -> Tensor:
        if y.shape != f.shape:
            hint = "; use y.unsqueeze(-1)" if y.shape == f.shape[:-1] else ""
            raise ValueError(
                f"targets have shape {tuple(y.shape)}, expected that of the outputs {tuple(f.shape)}{hint}"
            )
        if y.dtype != f.dtype:
            raise TypeError(f"targets are {y.dtype}, expected {f.dtype}; use y.to({f.dtype})")
        if self.num_outputs not in (1, f.shape[-1]):
            raise ValueError(f"the likelihood has num_outputs={self.num_outputs}, the network {f.shape[-1]} outputs")
        return y

    def log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        self._set_outputs(f)
        precision, constant = self._expected()
        return (constant - 0.5 * precision * (y - f).square()).sum(-1)

    def _expected(self) -> tuple[Tensor, Tensor]:
        """E tau and E (log tau - log 2 pi) / 2, (*replicas, 1, num_outputs); kept while the noise is the same."""
        if is_compiling():
            return self._expected_now()
        depends_on = (self.residual._version, self.num_data, self.outputs_per_precision._version, self.dtype)
        known = self._known
        if known is None or known[0] is not self.residual or known[1] != depends_on:
            self._known = known = self.residual, depends_on, *self._expected_now()
        return known[2:]

    def _expected_now(self) -> tuple[Tensor, Tensor]:
        constant = math.log(2 * math.pi)
        if self.kind == "gamma":
            a, rate = self.a0 + self._pairs / 2, self.posterior_rate
            precision, minus_log = a / rate, rate.log() - _digamma(a)
        else:
            precision, minus_log = 1 / self.residual, self.residual.log()
        return self._per_example(precision), self._per_example(-0.5 * (minus_log + constant))

    def hessian_root(self, f: Tensor) -> Tensor:
        self._set_outputs(f)
        outputs = f.shape[-1]
        root = self._per_example(self.precision.sqrt()).expand(f.shape)
        eye = torch.eye(outputs, dtype=f.dtype, device=f.device)
        columns = eye.reshape(outputs, *(1,) * (f.dim() - 1), outputs)
        return columns * root

    def sample(self, f: Tensor, stream: RandomStream) -> Tensor:
        return f + self._per_example(self.noise_std) * stream.normal(f.shape, f)

    def observation_model(self) -> ObservationModel:
        if self.kind == "gamma":
            scale = self._per_example((self.posterior_rate / self.shape).sqrt())
            return StudentNoise(2 * float(self.shape), scale, joint=self.num_outputs == 1)
        return NormalNoise(self._per_example(self.noise_std))

    # --- inference of the noise -------------------------------------------------------------------

    def observe(self, f: Tensor, y: Tensor) -> None:
        if self.kind != "fixed":
            self._set_outputs(f)
            squares = (y.detach() - f.detach()).double().square()
            if self.num_outputs == 1:
                self._observed.append((squares.mean((-2, -1)).unsqueeze(-1), f.shape[-2]))
            else:
                self._observed.append((squares.mean(-2), f.shape[-2]))

    def forget(self) -> None:
        self._observed.clear()

    def natural_step(self) -> None:
        if not self._observed:
            return
        examples = sum(count for _, count in self._observed)
        first, *others = (mean * (count / examples) for mean, count in self._observed)
        moved = self.residual.lerp(sum(others, first), self.step_size)
        self.forget()
        self.residual.copy_(torch.where(moved.isfinite(), moved, self.residual))

    def kl(self, replicas: torch.Size) -> Tensor:
        if self.kind != "gamma":
            return super().kl(replicas).to(self.residual.device)
        a, b = self.shape, self.posterior_rate
        b0 = b.new_tensor(self.b0)
        kl = (
            (a - self.a0) * torch.digamma(a)
            - torch.lgamma(a)
            + math.lgamma(self.a0)
            + self.a0 * (b.log() - b0.log())
            + a * (b0 - b) / b
        )
        return kl.sum(-1)

    def _set_outputs(self, f: Tensor) -> None:
        if is_compiling():  # what is compiled was done once before
            return
        if self.num_outputs == 1 and self._outputs != f.shape[-1]:
            self.outputs_per_precision.fill_(f.shape[-1])
