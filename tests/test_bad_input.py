"""Wrong input is refused with a message that helps; input that is merely hard works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noisynat

N = 12
STRUCTURES = [
    "diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer", "mean_field",
]  # fmt: skip


def make(posterior: Any = "kronecker", net: nn.Module | None = None, **settings: Any) -> noisynat.VariationalNetwork:
    net = net or nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    settings = {"likelihood": noisynat.GaussianLikelihood("gamma"), "num_data": N, **settings}
    return noisynat.VariationalNetwork(net, posterior=posterior, **settings)


def optimizer_of(bnn: noisynat.VariationalNetwork) -> torch.optim.Optimizer:
    if bnn.is_natural:
        return noisynat.NoisyNaturalGradient(bnn, lr=0.05)
    return torch.optim.Adam(bnn.parameters(), lr=0.01)


def step(bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = bnn.loss(x, y) if bnn.is_natural else bnn.negative_elbo(x, y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def tensors(bnn: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}


def filled(shape: tuple[int, ...], value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, but for one entry."""
    result = torch.zeros(shape, dtype=dtype)
    result[0, 0] = value
    return result


# --- data -------------------------------------------------------------------------------------

GOOD_X, GOOD_Y = torch.zeros(4, 3), torch.zeros(4, 1)
BAD_DATA: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "NaN in inputs": (filled((4, 3), math.nan), GOOD_Y, ValueError, "inputs contain NaN or infinite"),
    "infinite input": (filled((4, 3), math.inf), GOOD_Y, ValueError, "inputs contain NaN or infinite"),
    "NaN in targets": (GOOD_X, filled((4, 1), math.nan), ValueError, "targets contain NaN or infinite"),
    "infinite target": (GOOD_X, filled((4, 1), -math.inf), ValueError, "targets contain NaN or infinite"),
    "targets (N,)": (GOOD_X, torch.zeros(4), ValueError, r"\(4,\), expected .* \(4, 1\); use y.unsqueeze\(-1\)"),
    "targets (1, N)": (GOOD_X, torch.zeros(1, 4), ValueError, r"expected that of the outputs \(4, 1\)"),
    "two target columns": (GOOD_X, torch.zeros(4, 2), ValueError, r"expected that of the outputs \(4, 1\)"),
    "too few targets": (GOOD_X, torch.zeros(3, 1), ValueError, r"expected that of the outputs \(4, 1\)"),
    "float64 inputs": (GOOD_X.double(), GOOD_Y, TypeError, r"use x.to\(torch.float32\)"),
    "float64 targets": (GOOD_X, GOOD_Y.double(), TypeError, r"use y.to\(torch.float32\)"),
    "integer targets": (GOOD_X, GOOD_Y.long(), TypeError, r"use y.to\(torch.float32\)"),
    "empty batch": (torch.zeros(0, 3), torch.zeros(0, 1), ValueError, "the batch is empty"),
    "wrong width": (torch.zeros(4, 7), GOOD_Y, ValueError, "takes 3 inputs, got 7 features"),
    "one-dimensional inputs": (torch.zeros(3), GOOD_Y, ValueError, r"must be \(B, features\)"),
    "numpy inputs": (np.zeros((4, 3)), GOOD_Y, TypeError, "inputs must be a torch.Tensor, got ndarray"),
    "numpy targets": (GOOD_X, np.zeros((4, 1)), TypeError, "targets must be a torch.Tensor, got ndarray"),
    "no targets": (GOOD_X, None, TypeError, "targets must be a torch.Tensor, got NoneType"),
}


def call_loss(bnn: noisynat.VariationalNetwork, x: Any, y: Any) -> None:
    bnn.loss(x, y)


def call_elbo(bnn: noisynat.VariationalNetwork, x: Any, y: Any) -> None:
    if isinstance(x, Tensor):
        bnn.elbo(x, y, num_samples=2)
    else:
        bnn.elbo([(x, y)], num_samples=2)


def call_fit(bnn: noisynat.VariationalNetwork, x: Any, y: Any) -> None:
    noisynat.fit(bnn, optimizer_of(bnn), [(x, y)], 1, progress=False)


@pytest.mark.parametrize("call", [call_loss, call_elbo, call_fit])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_and_nothing_changes(case: str, call: Callable[..., None]) -> None:
    x, y, error, message = BAD_DATA[case]
    bnn = make()
    step(bnn, optimizer_of(bnn), torch.randn(4, 3), torch.randn(4, 1))
    before = tensors(bnn)
    with pytest.raises(error, match=message):
        call(bnn, x, y)
    assert all(torch.equal(value, before[key]) for key, value in tensors(bnn).items())
    assert bnn.training


@pytest.mark.parametrize("case", [case for case, (_, y, *_) in BAD_DATA.items() if y is GOOD_Y])
def test_bad_inputs_to_predict_are_refused(case: str) -> None:
    x, _, error, message = BAD_DATA[case]
    bnn = make()
    with pytest.raises(error, match=message):
        bnn.predict(x, 2)
    with pytest.raises(error, match=message):
        bnn.sample_functions(1)[0](x)


def test_training_goes_on_after_a_refused_batch() -> None:
    bnn = make()
    optimizer = optimizer_of(bnn)
    with pytest.raises(ValueError, match="targets have shape"):
        step(bnn, optimizer, GOOD_X, torch.zeros(4))
    assert torch.isfinite(step(bnn, optimizer, torch.randn(4, 3), torch.randn(4, 1)))


@pytest.mark.parametrize("num_samples", [0, -1])
def test_samples_are_counted_from_one(num_samples: int) -> None:
    bnn = make()
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        bnn.predict(GOOD_X, num_samples)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        bnn.elbo(GOOD_X, GOOD_Y, num_samples=num_samples)
    with pytest.raises(ValueError, match="num_functions must be at least 1"):
        bnn.sample_functions(num_samples)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        bnn.predict(GOOD_X, 2).sample(num_samples)


# --- replicas ---------------------------------------------------------------------------------


def test_data_of_another_number_of_replicas_are_refused() -> None:
    bnn = make(replicas=3)
    with pytest.raises(ValueError, match=r"expected \(B, features\) or \(3, B, features\) for 3 replicas"):
        bnn.loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match=r"expected that of the outputs \(3, 4, 1\)"):
        bnn.loss(GOOD_X, torch.zeros(2, 4, 1))


def test_priors_of_another_number_of_replicas_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit replicas"):
        make(replicas=3, prior=noisynat.GaussianPrior([1.0, 2.0]))


def test_replicas_do_not_share_point_estimates() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 1))
    with pytest.raises(ValueError, match=r"they would share: 1\.weight"):
        make(net=net, replicas=2)


# --- arguments --------------------------------------------------------------------------------


def test_num_data_is_required() -> None:
    with pytest.raises(TypeError, match="num_data is required"):
        noisynat.VariationalNetwork(nn.Linear(2, 1), noisynat.GaussianLikelihood())


@pytest.mark.parametrize("num_data", [0, -5, True, 2.5])
def test_num_data_is_a_positive_whole_number(num_data: Any) -> None:
    with pytest.raises(ValueError, match="num_data must be a positive whole number"):
        make(num_data=num_data)


@pytest.mark.parametrize("kl_weight", [0.0, -1.0, math.nan, math.inf])
def test_kl_weight_is_positive_and_finite(kl_weight: float) -> None:
    with pytest.raises(ValueError, match="kl_weight must be positive"):
        make(kl_weight=kl_weight)
    bnn = make()
    with pytest.raises(ValueError, match="kl_weight must be positive"):
        bnn.kl_weight = kl_weight
    assert bnn.kl_weight == 1


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, [1.0, -1.0]])
def test_prior_variance_is_positive_and_finite(variance: Any) -> None:
    with pytest.raises(ValueError, match="prior variance must be positive"):
        noisynat.GaussianPrior(variance)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"posterior": "kfac"}, "posterior is one of diagonal, .*got 'kfac'"),
        ({"noise": "white"}, "noise is one of auto, .*got 'white'"),
        ({"posterior": "dense", "noise": "local"}, "cannot be drawn exactly from a 'dense' posterior"),
        ({"replicas": 0}, "replicas must be None or at least 1"),
        ({"init": "zeros"}, "init is None or 'weights'"),
        ({"initial_precision": -1.0}, "initial_precision"),
        ({"net": nn.ReLU()}, "no layer of this network can have a posterior"),
        ({"net": nn.Sequential(nn.Conv3d(1, 2, 3))}, "no layer of this network can have a posterior"),
    ],
)
def test_arguments_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_likelihood_is_an_object() -> None:
    with pytest.raises(TypeError, match="must be a noisynat likelihood, got str"):
        make(likelihood="gaussian")


# --- hard, but right --------------------------------------------------------------------------


def dead_network() -> nn.Module:
    """All ReLUs are off for every input."""
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    nn.init.constant_(net[0].bias, -100.0)
    return net


def hard_data(case: str) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    return {
        "one example": (x[:1], y[:1]),
        "constant features": (torch.ones(N, 3), y),
        "features of zero": (torch.zeros(N, 3), y),
        "huge targets": (x, 1e6 * y),
        "huge inputs": (1e4 * x, y),
        "tiny inputs": (1e-8 * x, y),
        "constant targets": (x, torch.ones(N, 1)),
        "duplicates": (x[:1].expand(N, -1), y[:1].expand(N, -1)),
        "dead units": (x, y),
        "batches of one": (x, y),
    }[case]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "case",
    [
        "one example", "constant features", "features of zero", "huge targets", "huge inputs", "tiny inputs",
        "constant targets", "duplicates", "dead units", "batches of one",
    ],
)  # fmt: skip
def test_hard_data_train_and_stay_finite(case: str, structure: Any) -> None:
    x, y = hard_data(case)
    bnn = make(structure, dead_network() if case == "dead units" else None, num_data=len(x))
    optimizer = optimizer_of(bnn)
    for i in range(30):
        rows = slice(i % N, i % N + 1) if case == "batches of one" else slice(None)
        assert torch.isfinite(step(bnn, optimizer, x[rows], y[rows]))
    assert all(torch.isfinite(value).all() for value in tensors(bnn).values())
    elbo = bnn.elbo(x, y, num_samples=4)
    assert torch.isfinite(elbo.total)
    assert elbo.kl > 0
    pred = bnn.predict(x, 5)
    assert torch.isfinite(pred.log_prob(y)).all()
    assert torch.isfinite(torch.stack([*pred.interval(0.95), pred.mean, pred.stddev])).all()


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("noise", [0.5, "learned", "gamma"])
def test_few_examples_of_every_noise(noise: Any, n: int) -> None:
    bnn = make(likelihood=noisynat.GaussianLikelihood(noise), num_data=n)
    optimizer, x, y = optimizer_of(bnn), torch.randn(n, 3), torch.randn(n, 1)
    for _ in range(30):
        step(bnn, optimizer, x, y)
    assert torch.isfinite(bnn.elbo(x, y).total)
