"""What a prediction knows: a mixture over posterior samples of p(y | f)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisynat import marginals
from noisynat.likelihoods.base import ClassModel, ObservationModel, OrderedModel
from noisynat.random import RandomStream

_TAIL = 1e-9  # the probability on either side that an entropy leaves out


class Predictive:
    """The posterior predictive p(y | x), a mixture of p(y | f_s(x)) over samples s, of equal weights unless given.

    Targets are numbers, with quantiles and intervals, or classes, with probabilities; asked for what they have not, a
    prediction raises TypeError. Where y is a class, moments are those of y as zeros and ones.

    Args:
        samples: of the network's outputs f, (S, *replicas, N, K).
        observation: p(y | f).
        stream: of the random numbers of :meth:`sample`.
        weights: of the samples, (S, *replicas), positive and summing to one over S; None for equal ones.

    Attributes:
        means: E[y | f] of every sample, (S, *replicas, N, K).
    """

    def __init__(
        self, samples: Tensor, observation: ObservationModel, stream: RandomStream, weights: Tensor | None = None
    ) -> None:
        self.samples = samples
        self.weights = weights
        self._observation = observation
        self.means = observation.mean(samples)
        self._stream = stream

    @property
    def mean(self) -> Tensor:
        """E[y], (*replicas, N, K)."""
        return self.average(self.means)

    @property
    def epistemic_variance(self) -> Tensor:
        """Var[E[y | f]], the spread of the sampled functions, (*replicas, N, K)."""
        return self.average((self.means - self.mean).square())

    @property
    def aleatoric_variance(self) -> Tensor:
        """E[Var[y | f]], the noise that no data would remove, (*replicas, N, K)."""
        return self.average(self._observation.variance(self.samples))

    @property
    def variance(self) -> Tensor:
        """Var[y] of the mixture, the sum of the two, (*replicas, N, K)."""
        return self.epistemic_variance + self.aleatoric_variance

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of y, (*replicas, N, K)."""
        return self.variance.sqrt()

    @property
    def covariance(self) -> Tensor:
        """Cov[y] of every output over all N inputs together, (*replicas, K, N, N); its diagonal is the variance.

        The spread of the sampled functions, of rank S - 1, and the noise, which is uncorrelated between inputs.
        """
        deviations = (self.means - self.mean).mT  # (S, *replicas, K, N)
        weights = self._log_weights().exp().unsqueeze(-1)
        weighted = (weights * deviations).movedim(0, -1)  # (*replicas, K, N, S)
        return weighted @ deviations.movedim(0, -2) + torch.diag_embed(self.aleatoric_variance.mT)

    # --- uncertainty ------------------------------------------------------------------------------

    @property
    def probs(self) -> Tensor:
        """P(y = k), averaged over the samples, (*replicas, N, K); for binary targets P(y_k = 1).

        Raises:
            TypeError: if the targets are not classes.
        """
        return self.average(self._classes("probs").probs(self.samples))

    @property
    def mode(self) -> Tensor:
        """The most probable y.

        Of classes the class's number, (*replicas, N), of binary targets 0 or 1, of numbers the highest point of every
        output's own density: (*replicas, N, K).
        """
        if isinstance(self._observation, ClassModel):
            return self._observation.mode(self.probs)
        low, high = self.means.amin(0), self.means.amax(0)
        if self._ordered("mode").integers:
            return marginals.mode_of_integers(self._log_density, low.floor(), high.ceil())
        return marginals.mode(self._log_density, low, high, self._narrowest())

    @property
    def entropy(self) -> Tensor:
        """Of the predictive, nats: the total uncertainty.

        Of classes (*replicas, N), at most log K. Of numbers the differential entropy of every output alone, by
        quadrature between the 1e-9 and 1 - 1e-9 quantiles: (*replicas, N, K).
        """
        if isinstance(self._observation, ClassModel):
            return self._observation.entropy(self.probs)
        low, high = self.quantile(_TAIL), self.quantile(1 - _TAIL)
        if self._ordered("entropy").integers:
            return marginals.entropy_of_integers(self._log_density, low, high)
        return marginals.entropy(self._log_density, low, high, self._narrowest())

    @property
    def mutual_information(self) -> Tensor:
        """Between y and the weights, nats: what of the entropy is epistemic, and BALD's score (Houlsby et al. 2011).

        The entropy less the mean entropy of p(y | f_s), of :attr:`entropy`'s shape; at most log S.
        """
        if isinstance(self._observation, ClassModel):
            return self.entropy - self.average(self._observation.entropy(self._observation.probs(self.samples)))
        return self.entropy - self.average(self._ordered("mutual_information").entropy(self.samples))

    # --- the distribution -------------------------------------------------------------------------

    @property
    def distribution(self) -> torch.distributions.Distribution:
        """As a ``torch.distributions`` object.

        Numbers: the mixture of every output, batch shape (*replicas, N, K). Classes: Categorical, batch shape
        (*replicas, N), or for binary targets Bernoulli, batch shape (*replicas, N, K).
        """
        if isinstance(self._observation, ClassModel):
            return self._observation.distribution(self.probs)
        logits = self._log_weights().unsqueeze(-1).expand_as(self.means).movedim(0, -1)
        weights = torch.distributions.Categorical(logits=logits)
        return torch.distributions.MixtureSameFamily(weights, self._ordered("a mixture").components(self.samples))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density (of classes, log probability) of the mixture at y, jointly over outputs: (*replicas, N), nats.

        Args:
            y: (N, K) or (*replicas, N, K); class numbers (N,) or (*replicas, N).

        Raises:
            ValueError: if y has another shape.
        """
        y = self._checked(y)
        return torch.logsumexp(self._log_weights() + self._observation.log_prob(self.samples, y), 0)

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y_k <= y_k) of every output alone, (*replicas, N, K).

        Raises:
            TypeError: if the targets are classes.
        """
        return self._cdf(self._checked(y))

    def quantile(self, q: float) -> Tensor:
        """The q-quantile of every output's mixture, (*replicas, N, K).

        Raises:
            ValueError: unless 0 < q < 1.
            TypeError: if the targets are classes.
        """
        if not 0 < q < 1:
            raise ValueError(f"a quantile level lies strictly between 0 and 1, got {q}")
        integers = self._ordered("quantile").integers
        noise = self._observation.variance(self.samples).amax(0)
        width = torch.where(torch.isfinite(noise), noise, self.samples.new_ones(())).sqrt()
        ends = marginals.bracket(self._cdf, q, self.means.amin(0), self.means.amax(0), width)
        found = marginals.quantile(self._cdf, q, *ends)
        return found.round() if integers else found  # the CDF of integers jumps there

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central prediction interval of y with probability ``level``: lower and upper ends, (*replicas, N, K)."""
        if not 0 < level < 1:
            raise ValueError(f"an interval's level lies strictly between 0 and 1, got {level}")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of y, (num_samples, *replicas, N, K).

        Each uses the next of the S sampled functions in turn, or, where their weights differ, one drawn by weight.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        stream = self._stream if generator is None else RandomStream.wrap(generator)
        if self.weights is None:
            chosen = torch.arange(num_samples, device=self.samples.device) % len(self.samples)
            chosen = chosen.reshape(-1, *(1,) * (self.samples.dim() - 3)).expand(-1, *self.samples.shape[1:-2])
        else:
            chosen = self._chosen_by_weight(num_samples, stream)
        f = self.samples.gather(0, chosen[..., None, None].expand(-1, *self.samples.shape[1:]))
        return self._observation.chosen(chosen, self.samples).sample(f, stream)

    # --- replicas ---------------------------------------------------------------------------------

    def replica(self, index: int | tuple[int, ...]) -> Predictive:
        """The prediction of one replica, with samples (S, N, K).

        Args:
            index: one number per replica dimension.

        Raises:
            ValueError: if there are not as many replica dimensions.
        """
        index = (index,) if isinstance(index, int) else tuple(index)
        if len(index) != self.samples.dim() - 3:
            raise ValueError(f"this prediction has {self.samples.dim() - 3} replica dimensions, the index {len(index)}")
        at: tuple[slice | int, ...] = (slice(None), *index)
        weights = None if self.weights is None else self.weights[at]
        return Predictive(self.samples[at], self._observation.replica(at, self.samples), self._stream, weights)

    def combine(self, weights: Tensor | None = None) -> Predictive:
        """Replicas of the last replica dimension as one mixture: M posteriors of the same data become one.

        Args:
            weights: of the replicas, (*replicas), not negative, normalized here over the last dimension; None for equal
                ones. If the replicas' ELBOs (in nats, not per datum) differ, exp(ELBO) is what maximizes the mixture's
                own ELBO as long as the components lie apart: it is sum_m w_m (ELBO_m - log w_m).

        Returns:
            A prediction with samples (S M, *replicas[:-1], N, K).

        Raises:
            ValueError: if there are no replicas, or the weights have another shape or are no weights.
        """
        if self.samples.dim() < 4:
            raise ValueError("there are no replicas to combine")
        mixture = None
        if weights is not None or self.weights is not None:
            samples, replicas = self.samples.shape[0], self.samples.shape[-3]
            of_samples = self.samples.new_full((), 1 / samples) if self.weights is None else self.weights
            of_replicas = self.samples.new_full((), 1 / replicas) if weights is None else self._checked_weights(weights)
            mixture = (of_samples * of_replicas).expand(self.samples.shape[:-2]).movedim(-1, 1).flatten(0, 1)
        return Predictive(
            self.samples.movedim(-3, 1).flatten(0, 1),
            self._observation.combined(self.samples),
            self._stream,
            mixture,
        )

    def _checked_weights(self, weights: Tensor) -> Tensor:
        """Weights (*replicas) that sum to one over the last dimension."""
        replicas = self.samples.shape[1:-2]
        if weights.shape != replicas:
            raise ValueError(f"weights have shape {tuple(weights.shape)}, expected {tuple(replicas)}, one per replica")
        total = weights.sum(-1, keepdim=True)
        if bool((weights < 0).any()) or not bool((torch.isfinite(total) & (total > 0)).all()):
            raise ValueError("weights must not be negative and have a positive, finite sum")
        return (weights / total).to(self.samples)

    # --- the mixture ------------------------------------------------------------------------------

    def _log_weights(self) -> Tensor:
        """Log weights of the samples, (S, *replicas, 1), or () where all are equal."""
        if self.weights is None:
            return self.samples.new_full((), -math.log(len(self.samples)))
        return self.weights.log().unsqueeze(-1)

    def _chosen_by_weight(self, count: int, stream: RandomStream) -> Tensor:
        """Numbers of samples, drawn independently by weight, (count, *replicas)."""
        assert self.weights is not None
        levels = self.weights.cumsum(0).movedim(0, -1).contiguous()
        uniform = stream.uniform((*levels.shape[:-1], count), levels) * levels[..., -1:]
        return torch.searchsorted(levels, uniform, right=True).clamp(max=len(self.samples) - 1).movedim(-1, 0)

    def average(self, values: Tensor) -> Tensor:
        """Mean over the samples, by their weights, of values (S, *replicas, N) or (S, *replicas, N, K)."""
        if self.weights is None:
            return values.mean(0)
        return (self.weights.reshape(*self.weights.shape, *(1,) * (values.dim() - self.weights.dim())) * values).sum(0)

    def _cdf(self, y: Tensor) -> Tensor:
        return self.average(self._ordered("cdf").cdf(self.samples, y))

    def _log_density(self, y: Tensor) -> Tensor:
        """Of every output alone, (*replicas, N, K)."""
        return self.distribution.log_prob(y)

    def _narrowest(self) -> Tensor:
        """The smallest standard deviation of y given f, (*replicas, N, K)."""
        noise = self._observation.variance(self.samples).amin(0)
        return torch.where(torch.isfinite(noise), noise, self.samples.new_ones(())).sqrt()

    # --- what the targets are ---------------------------------------------------------------------

    def _ordered(self, asked: str) -> OrderedModel:
        if not isinstance(self._observation, OrderedModel):
            raise TypeError(f"{asked} is of numbers, and these targets are classes: see probs, entropy and mode")
        return self._observation

    def _classes(self, asked: str) -> ClassModel:
        if not isinstance(self._observation, ClassModel):
            raise TypeError(f"{asked} is of classes, and these targets are numbers: see mean, quantile and log_prob")
        return self._observation

    def _checked(self, y: Tensor) -> Tensor:
        return self._observation.checked_targets(y, self.means)

    def __repr__(self) -> str:
        return f"Predictive(samples={tuple(self.samples.shape)})"
