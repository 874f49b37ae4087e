"""The structures under test, and what each of them should be, computed with loops and dense matrices."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from noisynat.curvature import Curvature, Dense, Diagonal, EigenCorrected, Kronecker, TruncatedKronecker

OUT, IN = 2, 3  # different, so that a transposed factor does not fit or differs
STRUCTURES: dict[str, Callable[..., Curvature]] = {
    "diagonal": Diagonal,
    "kronecker": Kronecker,
    "factored": partial(Kronecker, damping_form="factored"),
    "eigen_corrected": EigenCorrected,
    "dense": Dense,
    "truncated": partial(TruncatedKronecker, ranks=(1, 2)),
    "truncated_factored": partial(TruncatedKronecker, ranks=(1, 1), damping_form="factored"),
    "one_diagonal": partial(TruncatedKronecker, ranks=(1, None)),
    "other_diagonal": partial(TruncatedKronecker, ranks=(None, 2)),
    "diagonal_factors": partial(TruncatedKronecker, ranks=(None, None), damping_form="factored"),
    "rank_one": partial(TruncatedKronecker, ranks=(1, 1)),
    "whole_and_diagonal": partial(TruncatedKronecker, ranks=(OUT, None)),
}
FACTORED = ("factored", "truncated_factored", "diagonal_factors")
KEPT: dict[str, tuple[int | None, int | None]] = {
    "truncated": (1, 2), "truncated_factored": (1, 1), "one_diagonal": (1, None), "other_diagonal": (None, 2),
    "diagonal_factors": (None, None), "rank_one": (1, 1), "whole_and_diagonal": (2, None),
}  # fmt: skip
"""Of S and A: the number of eigenvalues that stay as they are, or None where only the diagonal stays."""
Batch = tuple[Tensor, Tensor]  # activations (*batch, B, T, in) and gradients (K, *batch, B, T, out)


def make(structure: str, /, batch: Sequence[int] = (), initial_precision: float = 1.0, **settings: object) -> Curvature:
    settings = {"dtype": torch.float64, **settings}
    return STRUCTURES[structure](OUT, IN, batch, initial_precision=initial_precision, **settings)


def random_batch(
    batch: Sequence[int] = (), examples: int = 5, locations: int = 1, columns: int = 2, scale: float = 1.0
) -> Batch:
    """Correlated activations and gradients, the last activation being the bias's constant."""
    mix = torch.tensor([[1.0, 0.7, -0.3], [0.0, 0.5, 0.2], [0.1, 0.0, 0.4]], dtype=torch.float64)
    a = torch.randn(*batch, examples, locations, IN, dtype=torch.float64) @ mix + 0.3
    a[..., -1] = 1
    g = torch.randn(columns, *batch, examples, locations, OUT, dtype=torch.float64) @ mix[:OUT, :OUT]
    return a, scale * g


def elements(batch: Sequence[int], data: Batch) -> list[Batch]:
    """The data of every batch element alone."""
    a, g = data
    count = prod(batch)
    flat_g = g.reshape(g.shape[0], count, *g.shape[-3:])
    return [(a.reshape(count, *a.shape[-3:])[i], flat_g[:, i]) for i in range(count)]


# --- statistics of one batch by hand, for data without batch dimensions ---------------------------


def example_gradients(a: Tensor, g: Tensor) -> Tensor:
    """vec(sum_t g_t a_t^T) of every column and example, (K B, D), one outer product at a time."""
    rows = []
    for column in g:
        for gradients, activations in zip(column, a, strict=True):
            total = sum(torch.outer(gt, at) for gt, at in zip(gradients, activations, strict=True))
            rows.append(total.flatten())
    return torch.stack(rows)


def fisher(a: Tensor, g: Tensor) -> Tensor:
    """(1/B) sum of the outer products of example gradients, (D, D)."""
    rows = example_gradients(a, g)
    return sum(torch.outer(row, row) for row in rows) / len(a)


def factor_a(a: Tensor) -> Tensor:
    return sum(torch.outer(at, at) for activations in a for at in activations) / len(a)


def factor_s(g: Tensor) -> Tensor:
    examples, locations = g.shape[1:3]
    return sum(torch.outer(gt, gt) for c in g for gradients in c for gt in gradients) / (examples * locations)


# --- the matrices that a history of batches leads to ----------------------------------------------


def averaged(values: Sequence[Tensor], initial: Tensor, decay: float) -> Tensor:
    for value in values:
        initial = decay * initial + (1 - decay) * value
    return initial


def eigenvectors(s: Tensor, a: Tensor) -> Tensor:
    return torch.kron(torch.linalg.eigh(s)[1], torch.linalg.eigh(a)[1])


def curvature_matrix(name: str, history: Sequence[Batch], decay: float, precision: float = 1.0) -> Tensor:
    """C (D, D) after batches, each committed with ``decay``, and then one refresh."""
    eye = precision * torch.eye(OUT * IN, dtype=torch.float64)
    exact = averaged([fisher(a, g) for a, g in history], eye, decay)
    if name == "dense":
        return exact
    if name == "diagonal":
        return exact.diagonal().diag()
    s, a = kronecker_factors(history, decay, precision)
    if name in KEPT:
        s, a = (kept(factor, rank) for factor, rank in zip((s, a), KEPT[name], strict=True))
    if name in KEPT or name in ("kronecker", "factored"):
        return torch.kron(s, a)
    # The first basis is the identity's; until the refresh, d is the diagonal in it.
    q = eigenvectors(s, a)
    return q @ (q.T @ exact.diagonal().diag() @ q).diagonal().diag() @ q.T


def kept(factor: Tensor, rank: int | None) -> Tensor:
    """A factor by its leading eigenvalues, with the mean of the others in their place; or its diagonal."""
    if rank is None:
        return factor.diagonal().diag()
    values, vectors = torch.linalg.eigh(factor)
    others = len(factor) - rank
    if not others:
        return factor
    return vectors @ torch.cat([values[:others].mean().expand(others), values[others:]]).diag() @ vectors.T


def kronecker_factors(history: Sequence[Batch], decay: float, precision: float = 1.0) -> tuple[Tensor, Tensor]:
    root = precision**0.5
    s = averaged(
        [factor_s(g) for _, g in history], root * torch.eye(history[0][1].shape[-1], dtype=torch.float64), decay
    )
    a = averaged([factor_a(a) for a, _ in history], root * torch.eye(IN, dtype=torch.float64), decay)
    return s, a


def damped_matrix(
    name: str, history: Sequence[Batch], decay: float, damping: Tensor | float, precision: float = 1.0
) -> Tensor:
    """C + gamma I, or the factored form's (S + sqrt(gamma)/pi I) (x) (A + pi sqrt(gamma) I)."""
    damping = torch.as_tensor(damping, dtype=torch.float64)
    if name in FACTORED:
        s, a = kronecker_factors(history, decay, precision)
        if name in KEPT:
            s, a = (kept(factor, rank) for factor, rank in zip((s, a), KEPT[name], strict=True))
        return torch.kron(*factored_damping(s, a, damping))
    return curvature_matrix(name, history, decay, precision) + damping.expand(OUT, IN).flatten().diag()


def factored_damping(s: Tensor, a: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    pi = ((a.trace() / len(a)) / (s.trace() / len(s))).sqrt()
    root = damping.sqrt()
    return s + root / pi * torch.eye(len(s)).double(), a + pi * root * torch.eye(len(a)).double()
