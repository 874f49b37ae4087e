"""The least that a training step must do: floating-point operations and bytes of the necessary work, stage by stage.

A floor is the larger of operations over the machine's rate of matrix products and bytes over its rate of copies. Counts
are of the algorithm, not of its code: products of triangular matrices and symmetric products count half, what can be
done in one pass over memory is one pass, and gradients go the cheaper of two ways to be preconditioned.

Per layer, the weight is o x c (bias included) and the batch has B examples, which a convolution sees at T locations
each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from benchmarks.networks import Shape
from noisynat.posteriors.families import FactorSizes, Rank

FLOAT_BYTES = 4
_EIGH = 9.0  # n^3 operations for all eigenvectors of a symmetric matrix (Golub and Van Loan 2013, section 8.3)
_CHOLESKY_INVERSE = 2 / 3  # n^3 operations for a Cholesky factor and its inverse
_DIRECTIONS = 32  # that examples share, at least, where noise is separable
_DRAWS = 4  # of a convolution's weight, each for a part of the batch

_GRADIENT_METHODS = ("sgd", "adam", "mean_field")

STAGES = ("forward", "noise", "backward", "statistics", "refresh", "precondition", "trust region", "mean step")


THIN = 100
"""Below it, libraries do not reach the rate of a large product."""


@dataclass(frozen=True)
class Rates:
    """What the machine does per second.

    Args:
        flops: operations of a large matrix product.
        bytes: read and written by a copy.
        thin: operations of a product with 32 columns.
        normals: random numbers.
    """

    flops: float
    bytes: float
    thin: float
    normals: float


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Args:
        flops: floating-point operations.
        bytes: that move.
        thin: those of the operations that are in products of which a side is below :data:`THIN`.
        normals: random numbers.
    """

    flops: float = 0.0
    bytes: float = 0.0
    thin: float = 0.0
    normals: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(factor * mine for mine in astuple(self)))

    __rmul__ = __mul__

    def seconds(self, rates: Rates) -> float:
        """The floor."""
        computing = (self.flops - self.thin) / rates.flops + self.thin / rates.thin + self.normals / rates.normals
        return max(computing, self.bytes / rates.bytes)


@dataclass(frozen=True)
class Plan:
    """What a step consists of.

    Args:
        structure: of the posterior; ``"adam"`` or ``"sgd"`` without one.
        noise: ``"auto"``, ``"local"``, ``"flipout"``, ``"shared"``, or ``"none"``.
        columns: K of the statistics.
        stats_every: steps between statistics.
        refresh_every: steps between factorizations.
        replicas: networks trained at once.
        rank: of the network.
        stats_examples: of a batch feed the curvature, None for all.
    """

    structure: str
    noise: str = "none"
    columns: int = 1
    stats_every: int = 1
    refresh_every: int = 1
    replicas: int = 1
    rank: Rank = "auto"
    stats_examples: int | None = None

    def ranks(self, o: int, c: int) -> tuple[int, int] | None:
        """Eigenvalues that are kept of S and A, where not all are."""
        kept = FactorSizes(self.rank, max_dim=max(o, c)).kept(self.structure, (o, c))
        return None if kept is None else (kept[0] or o, kept[1] or c)


def step_floor(layers: Sequence[tuple[int, ...]], batch: int, plan: Plan, rates: Rates) -> dict[str, float]:
    """Seconds per step at least, by stage."""
    return {stage: work.seconds(rates) for stage, work in step_work(layers, batch, plan).items()}


def step_work(layers: Sequence[tuple[int, ...]], batch: int, plan: Plan) -> dict[str, Work]:
    """The necessary work of an average step, by stage.

    Args:
        layers: their :class:`~benchmarks.networks.Shape`, the first one first.
        batch: examples.
        plan: of the step.
    """
    total = dict.fromkeys(STAGES, Work())
    scalar = layers[-1][0] == 1
    for position, layer in enumerate(layers):
        for stage, work in _layer_work(Shape(*layer), batch, plan, first=position == 0, scalar=scalar).items():
            total[stage] = total[stage] + plan.replicas * work
    return total


def product(m: int, k: int, n: int) -> Work:
    """An (m, k) times a (k, n) matrix."""
    flops = 2.0 * m * k * n
    return Work(flops, FLOAT_BYTES * (m * k + k * n + m * n), flops if min(m, k, n) < THIN else 0.0)


def normals(count: int) -> Work:
    """Random numbers."""
    return Work(normals=float(count))


def passes(count: int, entries: int) -> Work:
    """Reading or writing ``entries`` numbers ``count`` times."""
    return Work(0.0, FLOAT_BYTES * count * entries)


def _layer_work(layer: Shape, examples: int, plan: Plan, *, first: bool, scalar: bool) -> Mapping[str, Work]:
    o, c, t = layer
    b = examples * t  # rows of all products
    drawn = t > 1 and plan.noise == "auto"
    noise = min(_DRAWS, examples) * _noise(o, c, b, replace(plan, noise="shared")) if drawn else _noise(o, c, b, plan)
    backward = product(o, b, c)
    if not first:
        backward = backward + product(b, o, c)
        if plan.noise in ("auto", "local", "flipout") and not drawn:
            again = replace(noise, normals=0.0)  # the same products, transposed: noise depends on a layer's inputs
            backward = backward + again
    if plan.structure == "mean_field":
        backward = backward + product(o, b, c) + passes(4, o * c)  # log standard deviations; the KL and its gradients
    return {
        "forward": product(b, c, o),
        "noise": noise,
        "backward": backward,
        "statistics": _statistics(o, c, b, t * (plan.stats_examples or examples), plan, passed=first or scalar)
        * (1 / plan.stats_every),
        "refresh": _refresh(o, c, plan) * (1 / plan.refresh_every),
        "precondition": _precondition(o, c, b, plan),
        "trust region": Work() if plan.structure in _GRADIENT_METHODS else passes(2, o * c),
        "mean step": passes({"sgd": 3, "adam": 7, "mean_field": 14}.get(plan.structure, 6), o * c),
    }


def _noise(o: int, c: int, b: int, plan: Plan) -> Work:
    if plan.noise == "none":
        return Work()
    bases = {"matrix_normal": 0.5, "kronecker": 1.0, "eigen_corrected": 1.0}.get(plan.structure, 0.0)
    ranks = plan.ranks(o, c)
    if ranks is not None:
        p, q = ranks
        if plan.noise == "shared":
            return _thin(o, c, ranks) + passes(3, o * c) + normals(o * c)
        ends = product(b, c, q) + product(b, q, p) + product(b, p, o)
        if plan.noise == "flipout":
            return ends + product(b, c, o) + passes(2, o * c) + normals(o * c)
        if plan.noise == "auto" and b > _DIRECTIONS:
            shared = product(b, _DIRECTIONS, o) + 2 * product(_DIRECTIONS, p, o) + normals(_DIRECTIONS * o)
            return ends + shared + passes(2, b * o) + normals(b * p)
        return ends + passes(2, b * o) + normals(b * o)
    if plan.noise == "shared":
        return bases * (product(o, o, c) + product(o, c, c)) + passes(3, o * c) + normals(o * c)
    rotated = bases * (product(b, c, c) + product(b, o, o))
    if plan.noise == "flipout":
        return rotated + product(b, c, o) + passes(2, o * c) + normals(o * c)
    local = rotated + (passes(2, b * o) if plan.structure == "matrix_normal" else product(b, c, o)) + normals(b * o)
    if plan.noise != "auto" or plan.structure not in ("matrix_normal", "kronecker"):
        return local
    shared = product(b, c, c) + product(b, c, _DIRECTIONS) + product(_DIRECTIONS, o, o) + product(b, _DIRECTIONS, o)
    return min(local, shared + normals(_DIRECTIONS * o), key=lambda work: work.flops)


def _thin(o: int, c: int, ranks: tuple[int, int]) -> Work:
    """Into the leading directions of both sides and back."""
    p, q = ranks
    return 2 * (product(p, o, c) + product(o, c, q))


def _statistics(o: int, c: int, b: int, fed: int, plan: Plan, *, passed: bool) -> Work:
    """Of a step that takes them, of ``fed`` rows; ``passed``: whether the loss's backward pass gives what is needed."""
    if plan.structure in _GRADIENT_METHODS:
        return Work()
    k = plan.columns
    back = Work() if passed else k * product(b, o, c)
    if plan.structure == "diagonal":
        return back + product(o, fed, c) + passes(1, o * c)
    factors = 0.5 * (product(c, fed, c) + product(o, k * fed, o)) + passes(1, c * c + o * o)
    if plan.structure == "eigen_corrected":
        factors = factors + product(fed, c, c) + product(k * fed, o, o) + product(o, fed, c) + passes(1, o * c)
    return back + factors


def _refresh(o: int, c: int, plan: Plan) -> Work:
    """Of a step that factorizes."""
    if plan.structure == "diagonal":
        return passes(2, o * c)
    ranks = plan.ranks(o, c)
    if ranks is not None:  # two products and an orthogonalization
        (p, q), sides = ranks, Work()
        for size, rank in ((o, p), (c, q)):
            sides = sides + 2 * product(size, size, rank) + 2 * product(rank, size, rank)
        return sides
    if plan.structure == "matrix_normal":
        return Work(_CHOLESKY_INVERSE * (o**3 + c**3), FLOAT_BYTES * 2.0 * (o * o + c * c))
    if plan.structure in ("kronecker", "eigen_corrected"):
        bases = Work(_EIGH * (o**3 + c**3), FLOAT_BYTES * 2.0 * (o * o + c * c)) + passes(1, o * c)
        return bases if plan.structure == "kronecker" else bases + product(o, o, c) + product(o, c, c)
    return Work()


def _precondition(o: int, c: int, b: int, plan: Plan) -> Work:
    """The cheaper of applying the inverse to the gradient and to the b columns that it is the product of."""
    if plan.structure == "diagonal":
        return passes(3, o * c)
    if plan.structure not in ("matrix_normal", "kronecker", "eigen_corrected"):
        return Work()
    ranks = plan.ranks(o, c)
    if ranks is not None:
        return _thin(o, c, ranks)
    there = product(o, o, c) + product(o, c, c)
    by_columns = product(b, o, o) + product(b, c, c) + product(o, b, c)
    cheaper = min(there, by_columns, key=lambda work: work.flops)
    return cheaper if plan.structure == "matrix_normal" else cheaper + there  # out of the eigenbasis again
