"""VariationalNetwork: a network, a likelihood, a prior and a posterior, and what one does with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from noisynat import border, memory, passes
from noisynat.compiling import is_compiling
from noisynat.curvature import fisher
from noisynat.curvature.sharing import Sharing
from noisynat.elbo import ELBO, expected_log_likelihood
from noisynat.functions import SampledFunctions
from noisynat.layers.base import Record, drawn_weights, recording
from noisynat.layers.convert import POINT_ESTIMATE, Coverage, convert, coverage
from noisynat.likelihoods.base import Likelihood
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.families import (
    STRUCTURES,
    FactorSizes,
    Rank,
    Structure,
    is_wide,
    make_posteriors,
    rules_by_layer,
)
from noisynat.posteriors.natural import NaturalPosterior
from noisynat.posteriors.noise import NoiseMode
from noisynat.precision import is_reduced, passes_in
from noisynat.predictive import Predictive
from noisynat.priors import GaussianPrior, Prior, priors_by_layer
from noisynat.progress import Progress
from noisynat.random import RandomStream, derived_seed
from noisynat.sampling import FunctionSampler

PredictiveKind = Literal["sampled", "linearized"]


class Outcome(NamedTuple):
    """What a training pass tells beside its loss."""

    f: Tensor
    y: Tensor
    statistics: passes.Statistics


class VariationalNetwork(nn.Module):
    """A Bayesian neural network: a copy of ``net`` whose layers have a Gaussian posterior over their weights.

    Linear layers, convolutions, embeddings, and batch, layer and group normalizations have one.

    Shapes: inputs are (B, in), or (*replicas, B, in) where each replica has its own; outputs are (*replicas, B, K).
    Inputs of several dimensions, such as images (B, channels, height, width), take the place of (B, in).

    Args:
        net: any ``nn.Module`` that maps (B, in) or (B, channels, height, width) to (B, K). It is copied, not changed.
            Parameters of layers that cannot have a posterior stay point estimates and show in :meth:`coverage`.
        likelihood: p(y | f); it is copied too, and the copy learns.
        prior: p(w); N(0, 1) by default. A mapping gives layers their own, by name or pattern, as ``{"0":
            GaussianPrior(0.1), "head.*": GaussianPrior(4.0)}``; the first entry that fits a layer counts, and layers
            that none fits have N(0, 1).
        posterior: the family. ``"diagonal"`` (noisy Adam), ``"matrix_normal"`` (noisy K-FAC as published, with
            factored damping), ``"kronecker"`` (with exact damping), ``"eigen_corrected"``, ``"dense"`` (one joint
            Gaussian over all weights), ``"dense_per_layer"``, or ``"mean_field"`` (Bayes by Backprop).
        num_data: N, the number of training examples.
        kl_weight: lambda > 0; 1 is Bayesian inference, less a cold posterior.
        noise: how training passes are perturbed, see :mod:`noisynat.posteriors.noise`.
        replicas: train that many networks as one batch, in one or more dimensions, as (20, 5) for 5 networks on each of
            20 data sets. The first starts from ``net``'s weights, the others from fresh ones.
        rank: how many leading eigenvalues of its Kronecker factors a ``"kronecker"`` or ``"matrix_normal"`` posterior
            keeps; the others share their mean. None keeps all; ``"auto"`` all of a layer whose factors have at most 256
            rows, and otherwise 32, which makes steps of wide layers several times cheaper.
        max_factor_dim: rows of a Kronecker factor beyond which only its diagonal is kept, with a warning.
        sharing: how a Kronecker posterior counts what a layer sees of one example at several locations (patches of an
            image, positions of a sequence), see :mod:`noisynat.curvature.sharing`: ``"expand"``, ``"reduce"``, or one
            of both by layers' names or patterns; ``"expand"`` for layers that none fits.
        layers: names or patterns of the layers that get a posterior, as ``"head"`` or ``["blocks.*", "head"]``, where
            ``*`` stands for any characters; all that can by default. The others stay as they are: point estimates,
            trained along unless they are frozen.
        strict: refuse networks in which some trainable parameter would stay a point estimate.
        init: ``"weights"`` starts all replicas from ``net``'s weights.
        initial_precision: the curvature's first value, in units of one example's Fisher; the larger, the narrower the
            posterior at the start, which keeps units from being pruned before they have learned something.
        seed: of all random numbers; by default derived from torch's global generator, which is not advanced.

    Raises:
        TypeError: if ``num_data`` is missing.
        MemoryError: if the posterior would take more memory than there is, see :func:`noisynat.memory_forecast`.
        ValueError: if an argument is out of range, no layer can have a posterior, an entry of ``prior`` or ``layers``
            fits none, or ``strict`` refuses.

    Example:
        >>> import torch, noisynat
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(noise=0.1), num_data=100)
        >>> bnn.predict(torch.zeros(3, 2), num_samples=10).mean.shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        prior: Prior | None = None,
        posterior: Structure = "kronecker",
        *,
        num_data: int | None = None,
        kl_weight: float = 1.0,
        noise: NoiseMode = "auto",
        replicas: int | Sequence[int] | None = None,
        rank: Rank = "auto",
        max_factor_dim: int = 8192,
        sharing: Sharing | Mapping[str, Sharing] = "expand",
        layers: str | Sequence[str] | None = None,
        strict: bool = False,
        init: Literal["weights"] | None = None,
        initial_precision: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._num_data = border.checked_num_data(num_data)
        self._kl_weight = border.checked_kl_weight(kl_weight)
        if posterior not in STRUCTURES:
            raise ValueError(f"posterior is one of {', '.join(STRUCTURES)}; got {posterior!r}")
        if init not in (None, "weights"):
            raise ValueError(f"init is None or 'weights', got {init!r}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a noisynat likelihood, got {type(likelihood).__name__}")
        self.structure: str = posterior
        if rank not in (None, "auto") and posterior not in ("kronecker", "matrix_normal"):
            raise ValueError(f"rank={rank!r} is for 'kronecker' and 'matrix_normal' posteriors, not for {posterior!r}")
        self._factor_sizes, self._sharing = FactorSizes(rank, max_factor_dim), sharing
        self.replicas = border.checked_replicas(replicas)
        seed = derived_seed("network") if seed is None else seed
        initial, self.training_stream, self.evaluation_stream = (RandomStream(seed ^ salt) for salt in range(3))

        only = [layers] if isinstance(layers, str) else layers
        self.net, self.layers = convert(net, self.replicas, initial, same_start=init == "weights", only=only)
        if not self.layers:
            raise ValueError(
                "no layer of this network can have a posterior: it has no linear layer, convolution, "
                "embedding or normalization that is its own and trainable"
            )
        means = {id(layer.mean) for layer in self.layers}
        self._others = [p for p in self.net.parameters() if id(p) not in means]
        self._check_point_estimates(strict)
        mean = self.layers[0].mean
        self.likelihood = copy.deepcopy(likelihood)
        self.likelihood.bind(self.num_data, self.replicas, mean.dtype)
        self.likelihood.to(mean.device)
        self._install_posteriors(posterior, self._priors(prior), noise, initial_precision)
        self.statistics_examples: int | None = None  # set by an optimizer: how many of a batch feed the curvature
        self.fisher: fisher.FisherKind | None = None

    def _install_posteriors(
        self, structure: Structure, priors: Sequence[GaussianPrior], noise: NoiseMode, initial_precision: float
    ) -> None:
        self.structure = structure
        sizes = {
            layer.name: memory.LayerSize(layer.matrix_shape, layer.diagonal_inputs, layer.full_covariance)
            for layer in self.layers
        }
        mean, replicas = self.layers[0].mean, self.replicas.numel()
        forecast = memory.forecast(sizes, structure, replicas, mean.element_size(), self._factor_sizes)
        memory.check(forecast, mean.device)
        posteriors = make_posteriors(
            self.layers,
            structure,
            priors,
            self._factor_sizes,
            rules_by_layer(self._sharing, [layer.name for layer in self.layers]),
            num_data=self.num_data,
            kl_weight=self._kl_weight,
            noise_mode=noise,
            initial_precision=initial_precision,
        )
        for posterior in posteriors:
            for layer in posterior.layers:
                layer.attach(posterior, self.training_stream)
        self._posteriors = nn.ModuleList(posteriors)
        self._sampler = FunctionSampler(self.net, self.layers, posteriors)

    def _priors(self, prior: Prior | None) -> list[GaussianPrior]:
        return priors_by_layer(prior, [layer.name for layer in self.layers])

    def with_posterior(
        self,
        structure: Literal["dense", "dense_per_layer"],
        *,
        prior: Prior | None = None,
        noise: NoiseMode = "auto",
    ) -> VariationalNetwork:
        """A copy of this network, as it is trained so far, with a richer posterior, to be trained on.

        Means, likelihood and point estimates go over, and so does the curvature: the new posterior begins as the same
        Gaussian, and then learns the correlations that the old one could not have. Most of the training is so done at
        the price of the simpler structure.

        Args:
            structure: of the new posterior.
            prior: of the new network; by default this one's, with variances as they were fitted.
            noise: as for the class.

        Raises:
            ValueError: if the new structure does not contain this one's.
        """
        if structure not in ("dense", "dense_per_layer") or not self.is_natural or self.structure == "dense":
            raise ValueError(
                f"with_posterior goes from a natural posterior of each layer to 'dense' or 'dense_per_layer', "
                f"not from {self.structure!r} to {structure!r}"
            )
        new = copy.deepcopy(self)
        old = [posterior for posterior in self.posteriors if isinstance(posterior, NaturalPosterior)]
        before = [prior for posterior in old for prior in posterior.priors]
        new._install_posteriors(
            structure, before if prior is None else self._priors(prior), noise, initial_precision=1.0
        )
        groups = [old] if structure == "dense" else [[posterior] for posterior in old]
        for posterior, parts in zip(new.posteriors, groups, strict=True):
            assert isinstance(posterior, NaturalPosterior)
            posterior.start_from(parts, keep_prior=prior is None)
        return new

    # --- what it is made of -----------------------------------------------------------------------

    @property
    def kl_weight(self) -> float:
        """lambda, the weight of the KL. Setting it changes every posterior's covariance at once."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = border.checked_kl_weight(value)
        for posterior in self.posteriors:
            posterior.kl_weight = value

    @property
    def num_data(self) -> int:
        """N, the number of training examples. Setting it, as data come in, narrows or widens every posterior at once.

        The curvature is an average over examples and stays; what N multiplies or divides follows: the covariance, the
        prior's weight, and the noise's posterior. A ``"mean_field"`` covariance is a parameter, which training adapts.
        """
        return self._num_data

    @num_data.setter
    def num_data(self, value: int) -> None:
        self._num_data = border.checked_num_data(value)
        for posterior in self.posteriors:
            posterior.num_data = self._num_data
        self.likelihood.num_data = self._num_data  # type: ignore[assignment]

    @property
    def posteriors(self) -> tuple[Posterior, ...]:
        """The posteriors over the layers' weights, in the network's order; one for all of them if ``"dense"``."""
        return tuple(self._posteriors)  # type: ignore[arg-type]

    @property
    def is_natural(self) -> bool:
        """Whether the posterior is trained by natural gradient (all but ``"mean_field"``)."""
        return self.structure != "mean_field"

    @property
    def is_wide(self) -> bool:
        """Whether a layer has more than 256 inputs, the bias's constant counted, or outputs: some work is then rare."""
        return any(is_wide(layer.matrix_shape[1:]) for layer in self.layers)

    @property
    def statistics_due(self) -> bool:
        """Whether the next loss feeds a posterior's curvature, as its optimizer asks for."""
        return passes.are_due(self.posteriors)

    def coverage(self) -> Coverage:
        """A row per parameter of the original network: posterior or point estimate."""
        return coverage(self.net, self.structure, self.replicas)

    def point_estimates(self) -> list[nn.Parameter]:
        """Trainable parameters of the network without a posterior."""
        return [p for p in self._others if p.requires_grad]

    # --- forward and losses -----------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Outputs f (*replicas, B, K): of a posterior sample in ``train()``, of the mean in ``eval()``."""
        x = border.with_replicas(x, self.replicas)
        with ExitStack() as stack:
            if self.training and all(layer._drawn is None for layer in self.layers):
                self._fix_training_draws(x, stack)
            return self.net(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean negative log-likelihood of a batch at sampled weights (at the mean in ``eval()``), nats per example.

        With replicas, the sum of theirs, so that each gets its own gradient. Once the result is back-propagated, the
        batch's statistics wait for the optimizer's next step.

        Args:
            x: (B, in) or (*replicas, B, in).
            y: as the likelihood wants it; for regression the shape of the outputs, (*replicas, B, K).

        Raises:
            ValueError, TypeError: if inputs or targets are empty, not finite, or of wrong shape or dtype.
        """
        return self.loss_per_replica(x, y).sum()

    def negative_elbo(self, x: Tensor, y: Tensor) -> Tensor:
        """loss + kl_weight KL / num_data: what any torch optimizer minimizes for a ``"mean_field"`` posterior.

        Per datum, summed over replicas. The noise's natural-gradient step is taken as the result is back-propagated.

        Raises:
            ValueError, TypeError: as for :meth:`loss`.
        """
        loss = self.loss_per_replica(x, y)
        return (loss + self.scaled_kl().to(loss.dtype)).sum()

    def scaled_kl(self) -> Tensor:
        """kl_weight KL(q || p) / num_data of all weights, (*replicas,), float64."""
        kl = torch.stack([posterior.kl_divergence() for posterior in self.posteriors]).sum(0)
        return self.kl_weight * kl / self.num_data

    def loss_per_replica(self, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`loss`, before the sum over replicas: (*replicas,)."""
        x = border.checked_inputs(x, self.layers[0].mean)
        loss, outcome = self.training_pass(x, border.checked_targets(y))
        if torch.is_grad_enabled() and loss.requires_grad:
            loss.register_hook(partial(self.take_in, outcome))
        return loss

    def training_pass(self, x: Tensor, y: Tensor) -> tuple[Tensor, Outcome]:
        """The loss (*replicas,) of finite inputs and targets, and what else the pass tells."""
        feed = torch.is_grad_enabled() and self.statistics_due
        with ExitStack() as stack:
            if torch.is_grad_enabled() and self.training:
                stack.enter_context(self.training_stream.antithetic(x.device))
            records = stack.enter_context(recording(self.layers)) if feed else None
            f = self(x).to(self.layers[0].mean.dtype)
        if is_reduced(f.device):  # passes may be in reduced precision, what follows may not
            with torch.autocast(f.device.type, enabled=False):
                return self._loss_of_outputs(f, y, x.requires_grad, records)
        return self._loss_of_outputs(f, y, x.requires_grad, records)

    def _loss_of_outputs(
        self, f: Tensor, y: Tensor, inputs_have_gradients: bool, records: list[list[Record]] | None
    ) -> tuple[Tensor, Outcome]:
        y = self.checked_targets(f, y)
        if records is None:
            loss = -self.likelihood.log_prob(f, y).mean(-1)
            return loss, Outcome(f.detach(), y, [])
        kind = self.fisher or fisher.default_kind(f.shape[-1], self.likelihood.has_hessian_root, wide=self.is_wide)
        only_means = not (inputs_have_gradients or self.point_estimates())
        loss, statistics = passes.loss_and_statistics(
            self.likelihood,
            f,
            y,
            self.layers,
            records,
            kind,
            self.training_stream,
            only_means=only_means,
            first=slice(self.statistics_examples),
        )
        return loss, Outcome(f.detach(), y, statistics)

    def checked_targets(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets as the likelihood wants them for outputs f, those of one replica given to all."""
        y = border.targets_with_replicas(y, self.likelihood.target_shape(f.shape), self.replicas)
        return y if is_compiling() else self.likelihood.check_targets(f, y)

    def take_in(self, outcome: Outcome, grad: Tensor | None = None) -> None:
        """Runs when a loss is back-propagated: only then does its batch count as training data."""
        self.likelihood.observe(outcome.f, outcome.y)
        if not self.is_natural:
            self.likelihood.natural_step()
        self.accumulate(outcome.statistics)

    def accumulate(self, statistics: passes.Statistics) -> None:
        """Give a batch's statistics, if there are any, to the posteriors."""
        if statistics:
            passes.feed(self.posteriors, statistics)

    # --- evaluation -------------------------------------------------------------------------------

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor | Iterable[tuple[Tensor, Tensor]],
        y: Tensor | None = None,
        *,
        num_samples: int = 100,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> ELBO:
        """The ELBO on the training set: log-likelihood by sampling weights, all KLs exact.

        Args:
            x: all training inputs, or an iterable of batches (x, y), such as a DataLoader.
            y: targets, unless x is an iterable.
            num_samples: S, weight samples, shared by all examples: S/2 antithetic pairs, with a control variate that
                makes the estimate exact where the log-likelihood is quadratic in the weights.
            batch_size: examples per forward pass; by default as many as keep its memory small.
            generator: of the random numbers; by default the network's own evaluation stream.

        Returns:
            An :class:`~noisynat.ELBO`; its tensors are (*replicas,). If the data are not ``num_data`` examples a
            warning says so and the log-likelihood is scaled.
        """
        batches = [(x, y)] if isinstance(x, Tensor) else x
        stream = self._stream(generator)
        estimate = expected_log_likelihood(self._sampler, self.likelihood, batches, num_samples, stream, batch_size)
        if estimate.examples != self.num_data:
            warnings.warn(
                f"the ELBO was asked for on {estimate.examples} examples, but num_data is {self.num_data}: the "
                "log-likelihood is scaled to num_data",
                stacklevel=2,
            )
        scale = self.num_data / estimate.examples
        return ELBO(
            expected_log_likelihood=scale * estimate.value,
            kl_by_layer={posterior.name: posterior.kl_divergence() for posterior in self.posteriors},
            noise_kl=self.likelihood.kl(self.replicas),
            kl_weight=self.kl_weight,
            num_data=self.num_data,
            standard_error=scale * estimate.standard_error,
        )

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        *,
        predictive: PredictiveKind = "sampled",
        combine: Literal["equal"] | ELBO | Tensor | None = None,
        precision: torch.dtype | None = None,
        progress: bool = False,
    ) -> Predictive:
        """The posterior predictive at x, from posterior samples of the whole function.

        Args:
            x: (N, in) or (*replicas, N, in).
            num_samples: S, posterior samples, each shared by all rows of x.
            generator: of the random numbers; by default the network's own evaluation stream.
            batch_size: rows per forward pass, by default as many as keep its memory small; the draws do not
                depend on it.
            predictive: ``"sampled"`` runs the network at every sample; ``"linearized"`` takes its first-order expansion
                in the weights about the posterior mean (Immer et al. 2021), whose mean is the mean's network.
            combine: the replicas of the last replica dimension as one mixture: ``"equal"`` weights, (*replicas)
                weights, or the replicas' ELBO on their training data, see :meth:`noisynat.Predictive.combine`.
            precision: of the products in the forward passes, ``torch.bfloat16`` or ``torch.float16``, by autocast: on
                hardware made for it several times faster, with two to three digits, and draws and results are in the
                network's own; None for that throughout.
            progress: show how many forward passes are done: a bar on a terminal (with the package tqdm), plain lines
                elsewhere.

        Returns:
            A :class:`~noisynat.Predictive` with samples (S, *replicas, N, K), or (S M, *replicas[:-1], N, K) where M
            replicas were combined.

        Raises:
            ValueError, TypeError: if x or an argument is not as above.
        """
        if predictive not in get_args(PredictiveKind):
            raise ValueError(f"predictive is 'sampled' or 'linearized', got {predictive!r}")
        x = border.with_replicas(border.checked_inputs(x, self.layers[0].mean), self.replicas)
        if precision not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"precision is torch.bfloat16, torch.float16 or None, got {precision}")
        stream, rows = self._stream(generator), len(self.replicas)
        draws = list(self._sampler.draw(num_samples, stream))
        size = batch_size or self._sampler.rows_per_pass(draws[0])
        evaluate = self._sampler.evaluate if predictive == "sampled" else self._sampler.evaluate_linearized
        chunks, parts = x.split(size, rows), []
        with Progress(len(chunks), unit="pass", enabled=progress) as bar, passes_in(precision, x.device):
            for chunk in chunks:
                parts.append(evaluate(chunk, draws).to(self.layers[0].mean.dtype))
                bar.update(len(parts))
        result = Predictive(torch.cat(parts, dim=1 + rows), self.likelihood.observation_model(), stream)
        if combine is None:
            return result
        if isinstance(combine, str) and combine != "equal":
            raise ValueError(f"combine is 'equal', an ELBO or weights, got {combine!r}")
        weights = combine.mixture_weights if isinstance(combine, ELBO) else combine
        return result.combine(None if isinstance(weights, str) else weights)

    @contextmanager
    def sampled_weights(self, generator: torch.Generator | None = None) -> Iterator[None]:
        """One shared posterior draw for every forward pass inside the block; parameters are not touched."""
        draws = next(self._sampler.draw(1, self._stream(generator), single=True))
        with drawn_weights(self.layers, draws):
            yield

    def sample_functions(self, num_functions: int, generator: torch.Generator | None = None) -> SampledFunctions:
        """Fixed draws of the function, differentiable in x.

        Args:
            num_functions: S.
            generator: of the random numbers; by default the network's own evaluation stream.

        Returns:
            :class:`~noisynat.SampledFunctions`: callable as x -> f (S, *replicas, N, K), or one by one.

        Raises:
            ValueError: if ``num_functions`` is not positive.
        """
        return SampledFunctions.drawn(self._sampler, num_functions, self._stream(generator))

    def load_functions(self, state: dict[str, Any]) -> SampledFunctions:
        """The functions that :meth:`noisynat.SampledFunctions.state_dict` was taken of, by a network of this shape.

        Raises:
            ValueError: if the layers or the weights' shapes are other ones.
        """
        return SampledFunctions.of_state(self._sampler, state)

    def _stream(self, generator: torch.Generator | None) -> RandomStream:
        return self.evaluation_stream if generator is None else RandomStream.wrap(generator)

    def _fix_training_draws(self, x: Tensor, stack: ExitStack) -> None:
        examples = len(self.replicas)
        for posterior in self.posteriors:
            draws = posterior.draw_for_training(x.shape[examples], self.training_stream)
            if draws is not None:
                stack.enter_context(drawn_weights(posterior.layers, draws))

    def _check_point_estimates(self, strict: bool) -> None:
        left = [row.name for row in self.coverage() if row.kind == POINT_ESTIMATE and "frozen" not in row.detail]
        if left and strict:
            raise ValueError(f"strict=True, but these parameters would stay point estimates: {', '.join(left)}")
        if left and self.replicas:
            raise ValueError(
                f"replicas need a posterior for every trainable parameter, or they would share: {', '.join(left)}; "
                "freeze those parameters or train without replicas"
            )

    # --- state ------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Numbers that belong to the state: lambda, N, and the positions of the random streams."""
        return {
            "kl_weight": self.kl_weight,
            "num_data": self.num_data,
            "structure": self.structure,
            "training_stream": self.training_stream.state(),
            "evaluation_stream": self.evaluation_stream.state(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`get_extra_state` gave."""
        for key in ("num_data", "structure"):
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"the state is of a network with {key}={state[key]!r}, this one has {getattr(self, key)!r}"
                )
        self._kl_weight = state["kl_weight"]
        for posterior in self.posteriors:
            posterior._kl_weight = state["kl_weight"]  # the curvature's state has its damping already
        self.training_stream.load_state(state["training_stream"])
        self.evaluation_stream.load_state(state["evaluation_stream"])
