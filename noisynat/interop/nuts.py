"""The No-U-Turn sampler on a network's exact posterior: the reference that approximations are measured against.

Hoffman and Gelman (2014), in Pyro's implementation with multinomial sampling (Betancourt 2017).
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from noisynat.interop.log_joint import LogJoint, with_gradient
from noisynat.interop.nuts_posterior import Diagnostics, NUTSPosterior
from noisynat.random import RandomStream

if TYPE_CHECKING:
    from noisynat.network import VariationalNetwork

_SITE = "weights"
_LINES = 10  # progress lines per chain


def require_pyro() -> Any:
    """The module ``pyro``.

    Raises:
        ImportError: if Pyro is not installed; names the extra that installs it.
    """
    try:
        import pyro
        import pyro.infer
        import pyro.util
    except ImportError as error:
        raise ImportError('Pyro is not installed; get it with pip install "noisynat[pyro]"') from error
    return pyro


def sample_nuts(
    network: VariationalNetwork,
    x: Tensor,
    y: Tensor,
    *,
    num_samples: int = 1000,
    warmup: int = 500,
    chains: int = 4,
    seed: int = 0,
    init: Literal["posterior", "prior"] = "posterior",
    max_tree_depth: int = 10,
    target_accept: float = 0.8,
    check_at: Tensor | None = None,
    threshold: float = 1.01,
    processes: int = 1,
    progress: bool = True,
    resume: NUTSPosterior | None = None,
) -> NUTSPosterior:
    """Draw from the exact posterior p(w | y) of a network's weights by the No-U-Turn sampler.

    Prior and likelihood are the network's; its variational posterior serves to start the chains, if at all. Everything
    runs in float64 and in coordinates scaled by the prior's standard deviations, with a diagonal mass matrix adapted
    in the warm-up. A noise precision with a gamma prior is integrated out while sampling, and then drawn from its
    exact conditional, one value per draw; learned noise is fixed where it stands. Point estimates and buffers of the
    network stay as they are.

    Args:
        network: without replicas, with a fixed prior, a Gaussian likelihood and ``kl_weight`` 1. It is not changed.
        x: all training inputs (N, in).
        y: all training targets (N, K).
        num_samples: draws to keep of each chain.
        warmup: draws of each chain for adaptation, dropped.
        chains: independent chains, at least 2 for R-hat to mean anything.
        seed: of all random numbers; the global generators are left as found.
        init: where the chains start, each at a draw of its own: of the ``"posterior"`` q, close to where they should
            be, or of the ``"prior"``, as far apart as chains should be that are to reveal what they miss.
        max_tree_depth: a draw takes at most 2^depth - 1 leapfrog steps.
        target_accept: mean acceptance probability that the step size is adapted to.
        check_at: inputs at which convergence is judged; by default x.
        threshold: R-hat of predictions below which the chains count as converged.
        processes: chains at the same time, each in a process of its own (started by "spawn", so the caller's module
            must be importable); 1 runs them in turn here.
        progress: whether to print about ten lines per chain on standard error.
        resume: go on with the chains of this result, with the step sizes and mass matrices it has: ``num_samples``
            more draws each. ``warmup``, ``chains``, ``init``, ``max_tree_depth``, ``target_accept``, ``check_at`` and
            ``threshold`` are then its.

    Returns:
        The draws with their diagnostics. They are not checked for convergence here, but when they are used.

    Raises:
        ImportError: if Pyro is not installed.
        ValueError: if the network is not as above, or a number is out of range.

    Example:
        >>> import torch, noisynat
        >>> from noisynat.interop.pyro import sample_nuts
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(-1)
        >>> bnn = noisynat.VariationalNetwork(torch.nn.Linear(1, 1), noisynat.GaussianLikelihood(0.1), num_data=20)
        >>> reference = sample_nuts(bnn, x, 2 * x, num_samples=100, warmup=100, chains=2, progress=False)
        >>> reference.weights.shape, reference.functions(x).shape
        (torch.Size([2, 100, 2]), torch.Size([2, 100, 20, 1]))
        >>> abs(reference.predict(torch.ones(1, 1), allow_unconverged=True).mean.item() - 2) < 0.1
        True
    """
    require_pyro()
    for name, value, least in (("num_samples", num_samples, 4), ("warmup", warmup, 1), ("chains", chains, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if init not in ("posterior", "prior"):
        raise ValueError(f"init is 'posterior' or 'prior', got {init!r}")
    density = LogJoint(network, x, y)
    if resume is None:
        starts = _starting_points(density, chains, init, seed)
        jobs = [
            _Chain(density, i, starts[i], num_samples, warmup, seed, max_tree_depth, target_accept, progress)
            for i in range(chains)
        ]
        check_at = density.x if check_at is None else check_at
    else:
        if resume.weights.shape[-1] != density.dim:
            raise ValueError(f"resume has draws of {resume.weights.shape[-1]} weights, the network has {density.dim}")
        jobs = [_resumed(density, resume, i, num_samples, seed, progress) for i in range(resume.chains)]
        check_at, threshold = resume.check_at, resume.threshold
    with _own_randomness(seed):
        if processes > 1 and len(jobs) > 1:
            pool = ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,))
            with pool:
                results = list(pool.map(_run, jobs))
        else:
            results = [_run(job) for job in jobs]
    before = 0 if resume is None else resume.draws
    precision = torch.stack(
        [
            density.noise_precision(r.weights, torch.Generator().manual_seed(_seed(seed, i, before, "noise")))
            for i, r in enumerate(results)
        ]
    )
    diagnostics = Diagnostics(
        warmup=warmup,
        max_tree_depth=max_tree_depth,
        target_accept=target_accept,
        seed=seed,
        divergences=[r.divergences for r in results],
        step_sizes=[r.step_size for r in results],
        evaluations=[r.evaluations for r in results],
        seconds=[r.seconds for r in results],
    )
    weights, inverse_mass = torch.stack([r.weights for r in results]), torch.stack([r.inverse_mass for r in results])
    drawn = NUTSPosterior(density.network, weights, precision, check_at, diagnostics, inverse_mass, threshold)
    return drawn if resume is None else resume.followed_by(drawn)


# --- one chain ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chain:
    """What one chain is to do; it travels to another process as it is."""

    density: LogJoint
    index: int
    start: Tensor  # weights (D,)
    num_samples: int
    warmup: int
    seed: int
    max_tree_depth: int
    target_accept: float
    progress: bool
    drawn: int = 0  # draws made before, of a chain that goes on
    step_size: float = 1.0
    inverse_mass: Tensor | None = None


@dataclass(frozen=True)
class _Result:
    weights: Tensor  # (draws, D)
    divergences: int
    step_size: float
    inverse_mass: Tensor  # (D,)
    evaluations: int
    seconds: float


def _run(chain: _Chain) -> _Result:
    """Warm up, unless the chain goes on, and draw."""
    pyro = require_pyro()
    density, scale = chain.density, chain.density.prior_variance.sqrt()

    def energy(position: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = density.value_and_gradient(position * scale)
        return -value, -gradient * scale

    evaluations = kept_from = 0

    def potential(parameters: dict[str, Tensor]) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return with_gradient(parameters[_SITE], energy)

    adapt = chain.warmup > 0
    kernel = pyro.infer.NUTS(
        potential_fn=potential,
        step_size=chain.step_size,
        adapt_step_size=adapt,
        adapt_mass_matrix=adapt,
        max_tree_depth=chain.max_tree_depth,
        target_accept_prob=chain.target_accept,
    )
    started, draws = time.perf_counter(), []
    with (
        _own_randomness(_seed(chain.seed, chain.index, chain.drawn, "chain")),
        pyro.validation_enabled(False),
        pyro.poutine.block(),
        torch.enable_grad(),
    ):
        parameters = {_SITE: chain.start / scale}
        kernel.initial_params = parameters
        kernel.setup(chain.warmup)
        if chain.inverse_mass is not None:
            kernel.mass_matrix_adapter.inverse_mass_matrix = {(_SITE,): chain.inverse_mass}
        total = chain.warmup + chain.num_samples
        for step in range(total):
            if step == chain.warmup:
                kept_from = evaluations
            parameters = kernel.sample(parameters)
            if step >= chain.warmup:
                draws.append(parameters[_SITE].detach() * scale)
            if chain.progress and (step + 1) % max(total // _LINES, 1) == 0:
                _report(chain, step + 1, kernel.step_size, evaluations, time.perf_counter() - started)
        inverse_mass = kernel.inverse_mass_matrix[(_SITE,)].clone()
    return _Result(
        torch.stack(draws),
        len(kernel.diagnostics()["divergences"]),
        float(kernel.step_size),
        inverse_mass,
        evaluations - kept_from,
        time.perf_counter() - started,
    )


def _report(chain: _Chain, step: int, step_size: float, evaluations: int, seconds: float) -> None:
    phase = "warm-up" if step <= chain.warmup else "draws"
    print(
        f"chain {chain.index + 1}: {phase} {step}/{chain.warmup + chain.num_samples}, step size {step_size:.3g}, "
        f"{evaluations / step:.0f} leapfrog steps per draw, {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def _resumed(
    density: LogJoint, resume: NUTSPosterior, index: int, num_samples: int, seed: int, progress: bool
) -> _Chain:
    of = resume.diagnostics
    return _Chain(
        density,
        index,
        resume.weights[index, -1],
        num_samples,
        warmup=0,
        seed=seed,
        max_tree_depth=of.max_tree_depth,
        target_accept=of.target_accept,
        progress=progress,
        drawn=resume.draws,
        step_size=of.step_sizes[index],
        inverse_mass=resume.inverse_mass[index],
    )


def _starting_points(density: LogJoint, chains: int, init: str, seed: int) -> Tensor:
    """Where the chains start, (chains, D)."""
    stream = RandomStream(_seed(seed, 0, 0, "start"))
    if init == "prior":
        return density.prior_variance.sqrt() * stream.normal((chains, density.dim), density.prior_variance)
    network, weights = density.network, {}
    with torch.no_grad():
        for posterior in network.posteriors:
            for layer, drawn in zip(posterior.layers, posterior.draw((chains,), stream), strict=True):
                weights[id(layer)] = drawn.flatten(1)
    return torch.cat([weights[id(layer)] for layer in network.layers], -1)


# --- randomness -----------------------------------------------------------------------------------


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators that Pyro draws from (torch's, numpy's and Python's), and restore them."""
    pyro = require_pyro()
    before = pyro.util.get_rng_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            pyro.set_rng_seed(seed % 2**32)
            yield
        finally:
            pyro.util.set_rng_state(before)


def _seed(seed: int, chain: int, drawn: int, purpose: str) -> int:
    """A seed below 2^32 of its own for every chain, part of a chain and purpose."""
    digest = hashlib.sha256(f"{seed}/{chain}/{drawn}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
