"""The evidence lower bound and its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from noisynat import border
from noisynat.likelihoods.base import Likelihood
from noisynat.random import RandomStream
from noisynat.sampling import FunctionSampler


@dataclass(frozen=True)
class ELBO:
    """ELBO(q) = E_q[sum_n log p(y_n | f(x_n, w))] - kl_weight KL(q(w) || p(w)) - KL(q(noise) || p(noise)).

    All in nats over the whole training set; tensors are (*replicas,), float64.

    Args:
        expected_log_likelihood: by sampling weights, exact over the noise precision.
        kl_by_layer: exact KL of each posterior's weights, by layer name (joint posteriors: names joined by "+").
        noise_kl: exact KL of the likelihood's nuisance parameters.
        kl_weight: lambda; where it is not 1 this is a cold posterior's objective, not a bound on the evidence.
        num_data: N.
        standard_error: Monte Carlo standard error of the expected log-likelihood (zero for one pair of samples).
    """

    expected_log_likelihood: Tensor
    kl_by_layer: dict[str, Tensor]
    noise_kl: Tensor
    kl_weight: float
    num_data: int
    standard_error: Tensor

    @property
    def kl(self) -> Tensor:
        """KL(q || p) of all weights and of the noise precision, unweighted."""
        return sum(self.kl_by_layer.values(), self.noise_kl)

    @property
    def total(self) -> Tensor:
        """The ELBO."""
        weights = sum(self.kl_by_layer.values(), self.noise_kl * 0)
        return self.expected_log_likelihood - self.kl_weight * weights - self.noise_kl

    @property
    def per_datum(self) -> Tensor:
        """total / num_data."""
        return self.total / self.num_data

    @property
    def mixture_weights(self) -> Tensor:
        """softmax(total) over the last replica dimension, (*replicas): weights of a mixture of the replicas.

        They maximize sum_m w_m (ELBO_m - log w_m), the ELBO of a mixture whose components lie apart.
        """
        return self.total.softmax(-1)

    def __str__(self) -> str:
        cold = "" if self.kl_weight == 1 else f" (cold posterior, kl_weight={self.kl_weight:g})"
        return (
            f"ELBO {_shown(self.total)} nats{cold}, {_shown(self.per_datum)} per datum; "
            f"log-likelihood {_shown(self.expected_log_likelihood)}, KL {_shown(self.kl)}"
        )


class ExpectedLogLikelihood(NamedTuple):
    """E_q[sum_n log p(y_n | f(x_n, w))] by sampling weights; tensors are (*replicas,), float64."""

    value: Tensor
    standard_error: Tensor
    examples: int


def expected_log_likelihood(
    sampler: FunctionSampler,
    likelihood: Likelihood,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    num_samples: int,
    stream: RandomStream,
    batch_size: int | None = None,
) -> ExpectedLogLikelihood:
    """The ELBO's first part on ``batches``, at draws that all examples share.

    Args:
        sampler: of the network.
        likelihood: of the targets.
        batches: inputs and targets.
        num_samples: S, of which half are mirror images of the others.
        stream: of random numbers.
        batch_size: examples per forward pass; by default as many as keep its memory small.

    Raises:
        ValueError, TypeError: if there are no examples, or inputs or targets are not as they should be.
    """
    log_likelihood, examples, rows = torch.zeros(()), 0, len(sampler.replicas)
    controls: list[Tensor] = []
    draws = list(sampler.draw(-(-num_samples // 2), stream, controls=controls))
    draws += [sampler.mirror(draw) for draw in draws]
    size = batch_size or sampler.rows_per_pass(draws[0])
    for x, y in batches:
        inputs = border.with_replicas(border.checked_inputs(x, sampler.layers[0].mean), sampler.replicas)
        first = sampler.evaluate(inputs.narrow(rows, 0, 1), draws[:1])[0]  # to learn the outputs' shape
        outputs = first.expand(*first.shape[:rows], inputs.shape[rows], *first.shape[rows + 1 :])
        shape = likelihood.target_shape(outputs.shape)
        targets = border.targets_with_replicas(border.checked_targets(y), shape, sampler.replicas)
        targets = likelihood.check_targets(outputs, targets)
        for part, target in zip(inputs.split(size, rows), targets.split(size, rows), strict=True):
            f = sampler.evaluate(part, draws)
            log_prob = torch.stack([likelihood.log_prob(sample, target) for sample in f])
            log_likelihood = log_likelihood.to(f.device) + log_prob.double().sum(-1)
        examples += inputs.shape[rows]
    if not examples:
        raise ValueError("there are no examples to take the ELBO on")
    plain, mirrored = log_likelihood.chunk(2)
    return ExpectedLogLikelihood(*expectation_of_pairs(plain, mirrored, torch.cat(controls)), examples)


def expectation_of_pairs(first: Tensor, second: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error of a quantity sampled in antithetic pairs, adjusted by regression on a control variate.

    Args:
        first: values (S, *replicas).
        second: values at the mirrored draws.
        control: of expectation zero, the same for both draws of a pair.

    Returns:
        Two tensors (*replicas,). The adjustment's bias is of order 1/S (Owen 2013, section 8.9).
    """
    pairs = (first + second) / 2
    count = len(pairs)
    if count < 3:
        return pairs.mean(0), pairs.std(0, correction=min(count - 1, 1)) / count**0.5
    centred = control - control.mean(0)
    variance = centred.square().sum(0)
    slope = (centred * pairs).sum(0) / variance.clamp(min=1e-300)
    adjusted = pairs - slope * control
    return adjusted.mean(0), adjusted.std(0) / count**0.5


def _shown(value: Tensor) -> str:
    if value.dim() == 0:
        return f"{value.item():.4g}"
    return f"{value.mean().item():.4g} +- {value.std().item():.2g} over {value.numel()} replicas"
