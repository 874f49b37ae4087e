"""The noise of a forward pass has the posterior's moments, in every structure and mode.

Replicas with the same posterior are the Monte Carlo draws: one forward pass gives all of them.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisynat import GaussianLikelihood, NoisyNaturalGradient, VariationalNetwork
from noisynat.layers.convert import convert
from noisynat.posteriors.noise import choose_mode
from noisynat.random import RandomStream
from tests.curvature.cases import OUT
from tests.posteriors.builders import NATURAL, STRUCTURES, covariance, linear_network, only_posterior, sandwich

DRAWS = 20_000
JOINT = ("dense", "dense_per_layer")
FACTORED = [name for name in STRUCTURES if name not in JOINT]
SEPARABLE = (
    "kronecker", "matrix_normal", "kronecker, rank 1", "matrix_normal, rank 1", "kronecker, diagonal A",
)  # fmt: skip
POSSIBLE = [
    *((name, mode) for name in FACTORED for mode in ("shared", "local", "flipout", "per_example", "grouped")),
    *((name, "separable") for name in SEPARABLE),
    *((name, mode) for name in JOINT for mode in ("shared", "per_example", "grouped")),
]
INDEPENDENT = ("local", "separable")  # at every location
INPUTS = torch.tensor([[1.0, -2.0], [0.5, 1.5], [-1.0, 0.3]], dtype=torch.float64)


def check_moments(deviations: Tensor, expected: Tensor) -> None:
    """Sample mean and covariance of (draws, n) against 0 and (n, n), to five standard errors.

    Products of two outputs have variance at most 3 C_ii C_jj, also where flipout's signs make them uncorrelated
    and not independent.
    """
    draws, variance = len(deviations), expected.diagonal()
    assert (deviations.mean(0).abs() <= 5 * (variance / draws).sqrt()).all()
    covariance = deviations.T @ deviations / draws
    assert ((covariance - expected).abs() <= 5 * (3 * torch.outer(variance, variance) / draws).sqrt()).all()


def outputs(network: VariationalNetwork, x: Tensor) -> Tensor:
    """Deviations of the outputs from the mean's (draws, all examples, locations and outputs)."""
    x = x.expand(DRAWS, *x.shape)
    with torch.no_grad():
        network.train()
        noisy = network(x)
        return (noisy - network.eval()(x)).reshape(DRAWS, -1)


def by_example(joint: Tensor, size: int) -> Tensor:
    """The joint covariance with independent examples: only the blocks of ``size`` on the diagonal."""
    blocks = [joint[i : i + size, i : i + size] for i in range(0, len(joint), size)]
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(("structure", "mode"), POSSIBLE)
def test_outputs_have_the_posteriors_moments(structure: str, mode: str) -> None:
    """Per example the covariance of W a; between examples that of one W if shared, and none otherwise."""
    network = linear_network(structure, DRAWS, noise=mode)
    joint = sandwich(covariance(structure), list(INPUTS))
    check_moments(outputs(network, INPUTS), joint if mode == "shared" else by_example(joint, OUT))


@pytest.mark.parametrize(("structure", "mode"), [case for case in POSSIBLE if case[1] not in INDEPENDENT])
def test_draws_are_joint_over_locations(structure: str, mode: str) -> None:
    """Two examples of two locations each: the locations of an example see one and the same weight."""
    sequences = torch.stack([INPUTS[:2], INPUTS[1:]])
    network = linear_network(structure, DRAWS, noise=mode)
    joint = sandwich(covariance(structure), list(sequences.flatten(0, 1)))
    check_moments(outputs(network, sequences), joint if mode == "shared" else by_example(joint, 2 * OUT))


@pytest.mark.parametrize(("mode", "independent"), [("local", True), ("per_example", True), ("flipout", False)])
def test_local_noise_is_independent_between_examples(mode: str, independent: bool) -> None:
    """Flipout's signs make examples uncorrelated; their squares still share one draw."""
    squares = outputs(linear_network("kronecker", DRAWS, noise=mode), INPUTS[[0, 0]]).square()
    correlation = torch.corrcoef(squares.T)[:OUT, OUT:].abs().max()
    assert bool(correlation <= 5 / DRAWS**0.5) == independent


@pytest.mark.parametrize("examples", [32, 33, 70])
def test_a_large_batch_shares_draws_in_groups(examples: int) -> None:
    """Consecutive examples of a group see the same weight, others another; every weight is used that is drawn."""
    network = linear_network("dense", noise="grouped")
    f = network(INPUTS[:1].expand(examples, -1)).detach()
    size = -(-examples // 32)
    expected = [n // size for n in range(examples)]
    same = (f[:, None] == f[None]).all(-1)
    assert torch.equal(same, torch.tensor(expected)[:, None] == torch.tensor(expected)[None])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_drawn_weights_have_the_posteriors_moments(structure: str) -> None:
    network = linear_network(structure)
    (weights,) = only_posterior(network).draw((DRAWS,), RandomStream(0))
    deviations = (weights - network.layers[0].mean).detach().flatten(-2)
    check_moments(deviations, covariance(structure))


def test_check_moments_sees_a_wrong_scale_and_independent_locations() -> None:
    """The test's own test: errors of method.md's list are far outside the tolerance."""
    sigma = covariance("kronecker")
    joint = sandwich(sigma, list(INPUTS[:2]))
    deviations = torch.randn(DRAWS, len(joint), dtype=torch.float64) @ torch.linalg.cholesky(joint).T
    check_moments(deviations, joint)
    for wrong in (0.8 * joint, by_example(joint, OUT)):
        with pytest.raises(AssertionError):
            check_moments(deviations, wrong)


@pytest.mark.parametrize("structure", NATURAL)
def test_an_optimizers_damping_does_not_reach_the_noise(structure: str) -> None:
    results = []
    for damping in (0.0, 1.0):
        network = linear_network(structure)
        optimizer = NoisyNaturalGradient(network, lr=0.0, damping=damping, refresh_every=1)
        x, y = INPUTS, torch.ones(3, OUT, dtype=torch.float64)
        for _ in range(2):
            optimizer.zero_grad()
            network.loss(x, y).backward()
            optimizer.step()
        results.append((network(x), only_posterior(network).covariance(), only_posterior(network).kl_divergence()))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("structure", NATURAL)
def test_a_damped_step_does_not_move_the_covariance(structure: str) -> None:
    posterior = only_posterior(linear_network(structure))
    posterior.precondition([torch.ones(OUT, 3, dtype=torch.float64)], 1.0)
    torch.testing.assert_close(posterior.covariance(), covariance(structure))


@pytest.mark.parametrize("structure", JOINT)
@pytest.mark.parametrize("mode", ["local", "separable", "flipout"])
def test_output_noise_is_refused_for_dense_posteriors(structure: str, mode: str) -> None:
    with pytest.raises(ValueError, match=f"noise='{mode}' cannot be drawn exactly from a '{structure}' posterior"):
        linear_network(structure, noise=mode)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_unknown_mode(structure: str) -> None:
    with pytest.raises(
        ValueError, match="noise is one of auto, shared, local, separable, flipout, per_example, grouped; got 'loud'"
    ):
        linear_network(structure, noise="loud")


@pytest.mark.parametrize("structure", ["diagonal", "eigen_corrected"])
def test_separable_noise_is_refused_where_variances_are_no_short_sum(structure: str) -> None:
    with pytest.raises(ValueError, match="is for Kronecker posteriors"):
        linear_network(structure, noise="separable")


@pytest.mark.parametrize("structure", SEPARABLE)
def test_separable_noise_is_normal(structure: str) -> None:
    """The fourth moment of every output is three times the square of its variance, to five standard errors."""
    deviations = outputs(linear_network(structure, DRAWS, noise="separable"), INPUTS)
    standard = deviations / deviations.square().mean(0).sqrt()
    assert bool(((standard**4).mean(0) - 3).abs().max() < 5 * (96 / DRAWS) ** 0.5)  # Var z^4 = 96


@pytest.mark.parametrize("mode", INDEPENDENT)
def test_local_noise_is_refused_for_several_locations(mode: str) -> None:
    network = linear_network("kronecker", noise=mode)
    with pytest.raises(ValueError, match="not a posterior sample for a shared weight"):
        network(INPUTS.unsqueeze(0))


class Twice(nn.Module):
    """One layer, used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.ModuleList([self.first])

    def forward(self, x: Tensor) -> Tensor:
        return self.second[0](self.first(x).tanh())


@pytest.mark.parametrize("mode", ["local", "separable", "flipout"])
def test_output_noise_is_refused_for_a_layer_in_several_places(mode: str) -> None:
    network = VariationalNetwork(Twice(), GaussianLikelihood(0.5), num_data=5, noise=mode)
    with pytest.raises(ValueError, match=f"noise='{mode}'"):
        network(torch.zeros(3, 2))


def test_a_layer_in_several_places_has_one_draw_for_all() -> None:
    network = VariationalNetwork(Twice(), GaussianLikelihood(0.5), num_data=5, seed=3)
    x = torch.randn(4, 2)
    (layer,) = network.layers
    (weight,) = only_posterior(network).draw((), RandomStream(3 ^ 1))  # the training stream's seed
    hidden = (x @ weight[:, :2].T + weight[:, 2]).tanh()
    torch.testing.assert_close(network(x), hidden @ weight[:, :2].T + weight[:, 2])
    assert layer.reused


@pytest.mark.parametrize(
    ("supports", "locations", "reused", "expected"),
    [
        (True, 1, False, "local"),
        (True, 2, False, "flipout"),
        (True, 1, True, "shared"),
        (True, 2, True, "shared"),
        (False, 1, False, "grouped"),
        (False, 2, False, "grouped"),
        (False, 1, True, "shared"),
    ],
)
def test_auto_picks_the_cheapest_exact_mode(supports: bool, locations: int, reused: bool, expected: str) -> None:
    mode = choose_mode("auto", supports_output_noise=supports, locations=locations, reused=reused)
    assert mode == expected


@pytest.mark.parametrize(("structure", "examples", "width", "expected"), [
    ("kronecker", 64, 512, "separable"),
    ("matrix_normal", 64, 512, "separable"),
    ("kronecker", 8, 512, "local"),  # more directions than examples
    ("kronecker", 64, 16, "local"),  # too little to gain
    ("eigen_corrected", 64, 512, "local"),
])  # fmt: skip
def test_auto_picks_separable_noise_where_it_costs_less(
    structure: Any, examples: int, width: int, expected: str
) -> None:
    network = VariationalNetwork(
        nn.Linear(width, width), GaussianLikelihood(0.5), posterior=structure, num_data=100, rank=None
    )
    assert only_posterior(network).noise_mode_in(examples) == expected


@pytest.mark.parametrize("mode", ["shared", "per_example", "grouped"])
@pytest.mark.parametrize("reused", [True, False])
def test_drawn_modes_are_always_possible(mode: str, reused: bool) -> None:
    for supports, locations in ((True, 1), (False, 3)):
        assert choose_mode(mode, supports_output_noise=supports, locations=locations, reused=reused) == mode


def test_a_layer_alone_cannot_draw_from_a_joint_posterior() -> None:
    network = linear_network("dense")
    with pytest.raises(RuntimeError, match="call the VariationalNetwork"):
        network.layers[0](INPUTS)


def test_replicas_have_independent_noise() -> None:
    for mode in ("shared", "local", "flipout", "per_example"):
        f = linear_network("kronecker", 2, noise=mode)(INPUTS)
        assert not torch.isclose(f[0], f[1]).any()


def test_convert_marks_the_layer_as_reused() -> None:
    _, layers = convert(Twice(), (), RandomStream(0))
    assert [layer.reused for layer in layers] == [True]
