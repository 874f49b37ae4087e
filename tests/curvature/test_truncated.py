"""What truncation adds to the conformance suite: subspaces that improve from refresh to refresh, and whole ranks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat.curvature import Curvature, Kronecker, TruncatedKronecker
from noisynat.random import RandomStream

OUT, IN, RANK = 40, 48, 6  # large enough for subspace iteration


def batch(seed: int, examples: int = 64) -> tuple[Tensor, Tensor]:
    """Activations and gradients whose covariances have eigenvalues that fall by halves."""
    generator = torch.Generator().manual_seed(seed)
    a, g = (
        torch.randn(examples, 1, size, generator=generator, dtype=torch.float64)
        * 0.5 ** torch.arange(size)
        @ basis(size)
        for size in (IN, OUT)
    )
    return a, g.unsqueeze(0)


def basis(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def make(ranks: tuple[int | None, int | None] = (RANK, RANK), **settings: Any) -> TruncatedKronecker:
    return TruncatedKronecker(OUT, IN, ranks=ranks, dtype=torch.float64, **settings)


def kept(factor: Tensor, rank: int) -> Tensor:
    values, vectors = torch.linalg.eigh(factor)
    others = len(factor) - rank
    return vectors @ torch.cat([values[:others].mean().expand(others), values[others:]]).diag() @ vectors.T


def test_the_subspace_comes_to_be_that_of_the_leading_eigenvectors() -> None:
    curvature, distances = make(initial_precision=0.0), []
    curvature.update(*batch(0), 0.0)
    a, s = (curvature.averages[key].value for key in "AS")
    expected = torch.kron(kept(s, RANK), kept(a, RANK))
    for _ in range(20):
        curvature.refresh(1e-3)
        dense = curvature.to_dense() - 1e-3 * torch.eye(OUT * IN, dtype=torch.float64)
        distances.append(float((dense - expected).norm() / expected.norm()))
    assert distances[0] > 1e-3
    assert distances[-1] < 1e-6
    assert all(later <= earlier * 1.01 + 1e-12 for earlier, later in pairwise(distances))


def test_whatever_the_subspace_the_trace_of_each_factor_is_kept() -> None:
    curvature = make()
    for seed in range(3):
        curvature.update(*batch(seed), 0.9)
        curvature.refresh(1.0)
        whole = torch.kron(*(curvature.averages[key].value for key in "SA"))
        torch.testing.assert_close(curvature.to_dense().trace(), whole.trace() + OUT * IN)


@pytest.mark.parametrize("form", ["exact", "factored"])
def test_with_all_eigenvalues_it_is_the_whole_kronecker_curvature(form: Any) -> None:
    whole = Kronecker(OUT, IN, dtype=torch.float64, damping_form=form)
    truncated = make((OUT, IN), damping_form=form)
    for curvature in (whole, truncated):
        for seed in range(2):
            curvature.update(*batch(seed), 0.8)
        curvature.refresh(0.01)
    v = torch.randn(OUT, IN, dtype=torch.float64)
    answers: list[Callable[[Curvature], Tensor]] = [
        lambda c: c.solve(v), lambda c: c.solve(v, 0.1), lambda c: c.step(v, 0.1).inner, lambda c: c.logdet(),
        lambda c: c.trace_inverse(), lambda c: c.inverse.inverse_diagonal(), lambda c: c.latest(),
    ]  # fmt: skip
    for answer in answers:
        torch.testing.assert_close(answer(truncated), answer(whole), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("mode", ["local", "separable", "flipout"])
def test_noise_of_a_wide_layer_has_the_covariance_of_its_weights(mode: str) -> None:
    """Of the outputs for two inputs, to five standard errors, along random directions of the outputs."""
    curvature = make()
    curvature.update(*batch(0), 0.1)
    curvature.refresh(0.05)
    draws, probes = 4000, torch.randn(5, OUT, dtype=torch.float64)
    a = torch.randn(2, IN, dtype=torch.float64)
    inverse, stream = curvature.inverse, RandomStream(0)
    noise = []
    for _ in range(draws // 50):
        rows = a.repeat_interleave(50, 0)
        if mode == "local":
            noise.append(inverse.local_noise(rows, stream.normal((100, OUT), a)))
        elif mode == "separable":
            noise.append(inverse.separable_noise(rows, 4, stream))
        else:
            noise.append(inverse.flipout_noise(rows.unsqueeze(-2), stream).squeeze(-2))
    outputs = torch.stack([n.unflatten(0, (2, 50)) for n in noise]).transpose(0, 1).flatten(1, 2)  # (2, draws, out)
    sigma = torch.linalg.inv(curvature.to_dense()).unflatten(0, (OUT, IN)).unflatten(-1, (OUT, IN))
    for x, of_input in zip(a, outputs, strict=True):
        covariance = torch.einsum("oipj,i,j->op", sigma, x, x)
        expected = torch.einsum("ko,op,kp->k", probes, covariance, probes)
        found = (of_input @ probes.T).square().mean(0)
        groups = draws // 50 if mode != "local" else draws / 3  # draws of one batch share their directions
        assert bool(((found / expected - 1).abs() < 5 * (3 / groups) ** 0.5).all())


def test_ranks_are_positive() -> None:
    with pytest.raises(ValueError, match=r"a rank is a positive number or None, got \(0, 3\)"):
        make((0, 3))


def network(rank: Any, posterior: Any) -> noisynat.VariationalNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    return noisynat.VariationalNetwork(
        net, noisynat.CategoricalLikelihood(), posterior=posterior, num_data=200, rank=rank, seed=0
    )


@pytest.mark.parametrize("posterior", ["kronecker", "matrix_normal"])
def test_training_with_all_eigenvalues_is_that_of_whole_factors(posterior: Any) -> None:
    """The fast path against the plain one, over steps, refreshes and the trust region, without noise: to 1e-5."""
    x, y = torch.randn(32, 30, dtype=torch.float64), torch.randint(3, (32,))
    trained = []
    for rank in (None, 39):  # of 41, 40 and 31: one factor of the first layer is whole
        bnn = network(rank, posterior).eval()
        if rank is not None:  # the path of truncated factors, with nothing left out
            for layer_posterior in bnn.posteriors:
                curvature = layer_posterior.curvature
                if isinstance(curvature, TruncatedKronecker):
                    curvature.ranks = {"S": 41, "A": 41}
                    curvature.prepared = {}
                    curvature._factorize_snapshot()
        optimizer = noisynat.NoisyKFAC(bnn, lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            bnn.loss(x, y).backward()
            optimizer.step()
        kl = sum(layer_posterior.kl_divergence() for layer_posterior in bnn.posteriors)
        trained.append([*(layer.mean.detach() for layer in bnn.layers), kl])
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-5, atol=1e-7)
