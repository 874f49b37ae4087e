"""VariationalNetwork: a network, a likelihood, a prior and a posterior, and what one does with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisynat.curvature import Curvature, Dense, Diagonal, EigenCorrected, Kronecker, fisher
from noisynat.elbo import ELBO, expectation_of_pairs
from noisynat.layers.base import Record, VariationalLayer, drawn_weights, recording
from noisynat.layers.convert import POINT_ESTIMATE, Coverage, convert, coverage
from noisynat.likelihoods.base import Likelihood
from noisynat.posteriors.base import Posterior
from noisynat.posteriors.draws import Draw
from noisynat.posteriors.mean_field import MeanFieldPosterior
from noisynat.posteriors.natural import NaturalPosterior
from noisynat.posteriors.noise import NoiseMode
from noisynat.predictive import Predictive
from noisynat.priors import GaussianPrior
from noisynat.random import RandomStream, derived_seed

Structure = Literal[
    "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer", "mean_field"
]

CURVATURES: dict[str, Callable[..., Curvature]] = {
    "diagonal": Diagonal,
    "matrix_normal": partial(Kronecker, damping_form="factored"),
    "kronecker": Kronecker,
    "eigen_corrected": EigenCorrected,
    "dense": Dense,
    "dense_per_layer": Dense,
}

_WEIGHTS_AT_ONCE = 2**20  # entries of the draws that one vectorized forward pass carries
_ACTIVATIONS_AT_ONCE = 2**22  # entries of the widest activation of such a pass


class VariationalNetwork(nn.Module):
    """A Bayesian neural network: a copy of ``net`` whose linear layers have a Gaussian posterior over their weights.

    Shapes: inputs are (B, in), or (*replicas, B, in) where each replica has its own; outputs are (*replicas, B, K).

    Args:
        net: any ``nn.Module`` that maps (B, in) to (B, K). It is copied, not changed. Parameters of layers that
            cannot have a posterior stay point estimates and show in :meth:`coverage`.
        likelihood: p(y | f); it becomes part of this network.
        prior: p(w); N(0, 1) by default.
        posterior: the family. ``"diagonal"`` (noisy Adam), ``"matrix_normal"`` (noisy K-FAC as published, with
            factored damping), ``"kronecker"`` (with exact damping), ``"eigen_corrected"``, ``"dense"`` (one joint
            Gaussian over all weights), ``"dense_per_layer"``, or ``"mean_field"`` (Bayes by Backprop).
        num_data: N, the number of training examples.
        kl_weight: lambda > 0; 1 is Bayesian inference, less a cold posterior.
        noise: how training passes are perturbed, see :mod:`noisynat.posteriors.noise`.
        replicas: train that many networks as one batch. The first starts from ``net``'s weights, the others from
            fresh ones.
        strict: refuse networks in which some trainable parameter would stay a point estimate.
        init: ``"weights"`` starts all replicas from ``net``'s weights.
        initial_precision: the curvature's first value, in units of one example's Fisher; the larger, the narrower the
            posterior at the start, which keeps units from being pruned before they have learned something.
        seed: of all random numbers; by default derived from torch's global generator, which is not advanced.

    Raises:
        TypeError: if ``num_data`` is missing.
        ValueError: if an argument is out of range, no layer can have a posterior, or ``strict`` refuses.

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
        prior: GaussianPrior | None = None,
        posterior: Structure = "kronecker",
        *,
        num_data: int | None = None,
        kl_weight: float = 1.0,
        noise: NoiseMode = "auto",
        replicas: int | None = None,
        strict: bool = False,
        init: Literal["weights"] | None = None,
        initial_precision: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.num_data = _checked_num_data(num_data)
        self._kl_weight = _checked_kl_weight(kl_weight)
        if posterior not in (*CURVATURES, "mean_field"):
            raise ValueError(f"posterior is one of {', '.join((*CURVATURES, 'mean_field'))}; got {posterior!r}")
        if replicas is not None and replicas < 1:
            raise ValueError(f"replicas must be None or at least 1, got {replicas}")
        if init not in (None, "weights"):
            raise ValueError(f"init is None or 'weights', got {init!r}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood must be a noisynat likelihood, got {type(likelihood).__name__}")
        self.structure: str = posterior
        self.replicas = torch.Size(() if replicas is None else (replicas,))
        seed = derived_seed("network") if seed is None else seed
        initial, self.training_stream, self.evaluation_stream = (RandomStream(seed ^ salt) for salt in range(3))

        self.net, self.layers = convert(net, self.replicas, initial, same_start=init == "weights")
        if not self.layers:
            raise ValueError("no layer of this network can have a posterior: it has no trainable nn.Linear of its own")
        self._check_point_estimates(strict)
        self.likelihood = likelihood
        mean = self.layers[0].mean
        likelihood.bind(self.num_data, self.replicas, mean.dtype)
        likelihood.to(mean.device)
        posteriors = self._make_posteriors(prior or GaussianPrior(), noise, initial_precision)
        self._posteriors = nn.ModuleList(posteriors)
        self.statistics_due = False  # set by an optimizer: whether the next loss feeds the curvature
        self.fisher: fisher.FisherKind | None = None

    def _make_posteriors(self, prior: GaussianPrior, noise: str, initial_precision: float) -> list[Posterior]:
        settings: dict[str, Any] = {
            "num_data": self.num_data,
            "kl_weight": self._kl_weight,
            "noise_mode": noise,
            "structure": self.structure,
            "initial_precision": initial_precision,
        }
        groups = [self.layers] if self.structure == "dense" else [[layer] for layer in self.layers]
        posteriors: list[Posterior] = []
        for group in groups:
            if self.structure == "mean_field":
                posteriors.append(MeanFieldPosterior(group[0], prior, **settings))
            else:
                curvature = CURVATURES[self.structure]
                posteriors.append(NaturalPosterior(group, prior, curvature, **settings))
            for layer in group:
                layer.attach(posteriors[-1], self.training_stream)
        return posteriors

    # --- what it is made of -----------------------------------------------------------------------

    @property
    def kl_weight(self) -> float:
        """lambda, the weight of the KL. Setting it changes every posterior's covariance at once."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = _checked_kl_weight(value)
        for posterior in self.posteriors:
            posterior.kl_weight = value

    @property
    def posteriors(self) -> tuple[Posterior, ...]:
        """The posteriors over the layers' weights, in the network's order; one for all of them if ``"dense"``."""
        return tuple(self._posteriors)  # type: ignore[arg-type]

    @property
    def is_natural(self) -> bool:
        """Whether the posterior is trained by natural gradient (all but ``"mean_field"``)."""
        return self.structure != "mean_field"

    def coverage(self) -> Coverage:
        """A row per parameter of the original network: posterior or point estimate."""
        return coverage(self.net, self.structure, self.replicas)

    def point_estimates(self) -> list[nn.Parameter]:
        """Trainable parameters of the network without a posterior."""
        own = {id(layer.mean) for layer in self.layers}
        return [p for p in self.net.parameters() if p.requires_grad and id(p) not in own]

    # --- forward and losses -----------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Outputs f (*replicas, B, K): of a posterior sample in ``train()``, of the mean in ``eval()``."""
        x = self._with_replicas(x)
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
        x = self._checked_inputs(x)
        y = self._checked_targets(y)
        feed = torch.is_grad_enabled() and self.is_natural and self.statistics_due
        with ExitStack() as stack:
            if torch.is_grad_enabled() and self.training:
                stack.enter_context(self.training_stream.antithetic(x.device))
            records = stack.enter_context(recording(self.layers)) if feed else []
            f = self(x)
        y = self.likelihood.check_targets(f, self._targets_with_replicas(y, f))
        loss = -self.likelihood.log_prob(f, y).mean(-1)
        if torch.is_grad_enabled() and loss.requires_grad:
            statistics = self._statistics(f, y, records) if feed else []
            loss.register_hook(partial(self._take_in, f.detach(), y, statistics))
        return loss

    def _statistics(self, f: Tensor, y: Tensor, records: list[list[Record]]) -> list[tuple[Tensor, Tensor]]:
        """Per layer, activations and example gradients of this pass, joined over the layer's uses."""
        columns = fisher.output_gradients(self.likelihood, f, y, self.fisher, self.training_stream)
        uses = [record for of_layer in records for record in of_layer]
        gradients = iter(fisher.layer_gradients(f, [record.outputs for record in uses], columns))
        statistics = []
        for layer, of_layer in zip(self.layers, records, strict=True):
            if not of_layer:
                raise RuntimeError(f"layer {layer.name!r} took no part in the forward pass, so it has no curvature")
            activations = torch.cat([record.activations for record in of_layer], dim=-2)
            statistics.append((activations, torch.cat([next(gradients) for _ in of_layer], dim=-2)))
        return statistics

    def _take_in(
        self, f: Tensor, y: Tensor, statistics: list[tuple[Tensor, Tensor]], grad: Tensor | None = None
    ) -> None:
        """Runs when a loss is back-propagated: only then does its batch count as training data."""
        self.likelihood.observe(f, y)
        if not self.is_natural:
            self.likelihood.natural_step()
        if statistics:
            position = {id(layer): i for i, layer in enumerate(self.layers)}
            for posterior in self.posteriors:
                assert isinstance(posterior, NaturalPosterior)
                chosen = [statistics[position[id(layer)]] for layer in posterior.layers]
                posterior.accumulate([a for a, _ in chosen], [g for _, g in chosen])

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
        log_likelihood, examples = torch.zeros(()), 0
        controls: list[Tensor] = []
        draws = list(self._draws(-(-num_samples // 2), self._stream(generator), controls=controls))
        draws = [self._mirrored(draw, sign) for sign in (1, -1) for draw in draws]
        for inputs, targets in batches:
            inputs = self._with_replicas(self._checked_inputs(inputs))
            targets = self._checked_targets(targets)
            if targets.shape[-2:-1] != inputs.shape[-2:-1]:  # nothing to split: the likelihood says what it wants
                self.likelihood.check_targets(self._evaluate(inputs, draws[:1])[0], targets)
            size = batch_size or self._rows_per_pass(draws[0])
            for part, target in zip(inputs.split(size, -2), targets.split(size, -2), strict=True):
                f = self._evaluate(part, draws)
                target = self.likelihood.check_targets(f[0], self._targets_with_replicas(target, f[0]))
                log_prob = torch.stack([self.likelihood.log_prob(sample, target) for sample in f])
                log_likelihood = log_likelihood.to(f.device) + log_prob.double().sum(-1)
            examples += inputs.shape[-2]
        if examples != self.num_data:
            warnings.warn(
                f"the ELBO was asked for on {examples} examples, but num_data is {self.num_data}: the log-likelihood "
                "is scaled to num_data",
                stacklevel=2,
            )
            log_likelihood = log_likelihood * (self.num_data / examples)
        first, second = log_likelihood.chunk(2)
        estimate, error = expectation_of_pairs(first, second, torch.cat(controls))
        return ELBO(
            expected_log_likelihood=estimate,
            kl_by_layer={posterior.name: posterior.kl_divergence() for posterior in self.posteriors},
            noise_kl=self.likelihood.kl(self.replicas),
            kl_weight=self.kl_weight,
            num_data=self.num_data,
            standard_error=error,
        )

    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        num_samples: int = 100,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> Predictive:
        """The posterior predictive at x, from posterior samples of the whole function.

        Args:
            x: (N, in) or (*replicas, N, in).
            num_samples: S, posterior samples, each shared by all rows of x.
            generator: of the random numbers; by default the network's own evaluation stream.
            batch_size: rows per forward pass, by default as many as keep its memory small; the draws do not
                depend on it.

        Returns:
            A :class:`~noisynat.Predictive` with samples (S, *replicas, N, K).
        """
        x = self._with_replicas(self._checked_inputs(x))
        stream = self._stream(generator)
        draws = list(self._draws(num_samples, stream))
        rows = batch_size or self._rows_per_pass(draws[0])
        parts = [self._evaluate(part, draws) for part in x.split(rows, -2)]
        return Predictive(torch.cat(parts, dim=-2), self.likelihood.observation_model(), stream)

    @contextmanager
    def sampled_weights(self, generator: torch.Generator | None = None) -> Iterator[None]:
        """One shared posterior draw for every forward pass inside the block; parameters are not touched."""
        draws = next(self._draws(1, self._stream(generator), vectorized=False))
        with drawn_weights(self.layers, draws):
            yield

    def sample_functions(self, num_functions: int, generator: torch.Generator | None = None) -> list[SampledFunction]:
        """Fixed draws of the function: callables x -> f (*replicas, N, K), differentiable in x."""
        if num_functions < 1:
            raise ValueError(f"num_functions must be at least 1, got {num_functions}")
        with torch.no_grad():
            draws = self._draws(num_functions, self._stream(generator), vectorized=False)
            return [SampledFunction(self, draw) for draw in draws]

    def _draws(
        self,
        count: int,
        stream: RandomStream,
        *,
        vectorized: bool | None = None,
        controls: list[Tensor] | None = None,
    ) -> Iterator[list[Draw]]:
        """Draws of all weights, in the order of the layers, several at once where the network can carry them.

        Args:
            count: how many.
            stream: of the random numbers.
            vectorized: whether a draw may have a sample dimension; by default where the network can carry one.
            controls: gets the value of the ELBO's control variate of every draw, (S, *replicas).
        """
        if count < 1:
            raise ValueError(f"num_samples must be at least 1, got {count}")
        if vectorized is None:
            vectorized = _carries_samples(self.net)
        weights = sum(layer.mean.numel() for layer in self.layers)
        most = max(_WEIGHTS_AT_ONCE // weights, 1) if vectorized else 1
        for start in range(0, count, most):
            sample = (min(most, count - start),)
            fixed: dict[int, Draw] = {}
            control = torch.zeros(())
            for posterior in self.posteriors:
                deviations, norm = posterior.draw_deviations(sample, stream)
                if controls is not None:
                    control = control.to(norm.device) + posterior.quadratic_loss(deviations, norm)
                for layer, deviation in zip(posterior.layers, deviations, strict=True):
                    weight = (layer.mean + deviation).detach()
                    fixed[id(layer)] = Draw(weight if vectorized else weight.squeeze(0))
            if controls is not None:
                controls.append(control)
            yield [fixed[id(layer)] for layer in self.layers]

    def _evaluate(self, x: Tensor, draws: Sequence[list[Draw]]) -> Tensor:
        """Outputs (S, *replicas, N, K) in evaluation mode, whatever mode the network is in."""
        modes = [(module, module.training) for module in self.net.modules()]
        self.net.eval()
        try:
            outputs = []
            for draw in draws:
                sample = draw[0].weight.shape[: draw[0].weight.dim() - 2 - len(self.replicas)]
                with drawn_weights(self.layers, draw):
                    f = self.net(x.expand(*sample, *x.shape))
                outputs.append(f if sample else f.unsqueeze(0))
            return torch.cat(outputs)
        finally:
            for module, training in modes:
                module.training = training

    def _rows_per_pass(self, draws: list[Draw]) -> int:
        """Rows of the data that one forward pass with ``draws`` takes without much memory."""
        widest = max(max(layer.columns, layer.out_features) for layer in self.layers)
        networks = draws[0].weight.shape[:-2].numel()
        return max(_ACTIVATIONS_AT_ONCE // (widest * networks), 1)

    def _mirrored(self, draws: list[Draw], sign: int) -> list[Draw]:
        """The draws themselves, or their mirror images about the posterior mean."""
        if sign > 0:
            return draws
        return [Draw(2 * layer.mean.detach() - draw.weight) for layer, draw in zip(self.layers, draws, strict=True)]

    def _stream(self, generator: torch.Generator | None) -> RandomStream:
        return self.evaluation_stream if generator is None else RandomStream.wrap(generator)

    # --- the border -------------------------------------------------------------------------------

    def _checked_inputs(self, x: Tensor) -> Tensor:
        expected = self.layers[0].mean
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs must be a torch.Tensor, got {type(x).__name__}")
        if x.dim() < 2:
            raise ValueError(f"inputs must be (B, features), got shape {tuple(x.shape)}")
        if x.numel() == 0:
            raise ValueError(f"the batch is empty: inputs have shape {tuple(x.shape)}")
        if x.dtype != expected.dtype and x.is_floating_point():
            raise TypeError(f"inputs are {x.dtype}, the network's weights {expected.dtype}; use x.to({expected.dtype})")
        if x.is_floating_point() and not _all_finite(x):
            raise ValueError("inputs contain NaN or infinite values")
        return x

    def _checked_targets(self, y: Tensor | None) -> Tensor:
        if not isinstance(y, Tensor):
            raise TypeError(f"targets must be a torch.Tensor, got {type(y).__name__}")
        if y.is_floating_point() and not _all_finite(y):
            raise ValueError("targets contain NaN or infinite values")
        return y

    def _with_replicas(self, x: Tensor) -> Tensor:
        count = len(self.replicas)
        if not count:
            return x
        if x.dim() == 2:
            return x.expand(*self.replicas, *x.shape)
        if x.shape[:count] != self.replicas:
            raise ValueError(
                f"inputs have shape {tuple(x.shape)}, expected (B, features) or ({self.replicas[0]}, B, features) for "
                f"{self.replicas[0]} replicas"
            )
        return x

    def _targets_with_replicas(self, y: Tensor, f: Tensor) -> Tensor:
        return y.expand(f.shape) if self.replicas and y.shape == f.shape[len(self.replicas) :] else y

    def _fix_training_draws(self, x: Tensor, stack: ExitStack) -> None:
        examples = len(self.replicas)
        for posterior in self.posteriors:
            draws = posterior.draw_for_training(x.shape[examples], 1, self.training_stream)
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


class SampledFunction:
    """One posterior draw of the network's function, fixed: the same x gives the same f, always.

    Args:
        network: whose function it is.
        draws: weights, one per layer.
    """

    def __init__(self, network: VariationalNetwork, draws: list[Draw]) -> None:
        self._network = network
        self._draws = draws

    def __call__(self, x: Tensor) -> Tensor:
        """f (*replicas, N, K) at x (N, in) or (*replicas, N, in)."""
        x = self._network._with_replicas(self._network._checked_inputs(x))
        return self._network._evaluate(x, [self._draws])[0]


def _checked_num_data(num_data: int | None) -> int:
    if num_data is None:
        raise TypeError("num_data is required: the number N of training examples, which scales the KL and the noise")
    if isinstance(num_data, bool) or int(num_data) != num_data or num_data < 1:
        raise ValueError(f"num_data must be a positive whole number of training examples, got {num_data}")
    return int(num_data)


def _checked_kl_weight(kl_weight: float) -> float:
    if not (kl_weight > 0 and kl_weight < float("inf")):
        raise ValueError(f"kl_weight must be positive and finite, got {kl_weight}")
    return float(kl_weight)


def _all_finite(values: Tensor) -> bool:
    # A finite sum has finite terms, and one pass tells; only an overflowing sum needs the longer look.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


_ELEMENTWISE = (nn.Identity, nn.Dropout, nn.LayerNorm, nn.Linear, nn.Softplus)


def _carries_samples(net: nn.Module) -> bool:
    """Whether a forward pass of ``net`` works with any leading dimensions: plain stacks of layers do."""
    if isinstance(net, (VariationalLayer, *_ELEMENTWISE)):
        return True
    if isinstance(net, nn.Sequential):
        return type(net) is nn.Sequential and all(_carries_samples(child) for child in net)
    return type(net).__module__ == "torch.nn.modules.activation" and not isinstance(
        net, (nn.MultiheadAttention, nn.PReLU)
    )
