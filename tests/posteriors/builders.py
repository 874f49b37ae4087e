"""Small networks with a known curvature, and their covariance by dense algebra."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noisynat import GaussianLikelihood, GaussianPrior, VariationalNetwork
from noisynat.posteriors import MeanFieldPosterior, Posterior
from tests.curvature.cases import IN, OUT, Batch, damped_matrix, example_gradients, random_batch

NUM_DATA, KL_WEIGHT, ETA, DECAY = 40, 0.3, 0.8, 0.6
CASES = {  # the library's names, and those of tests/curvature/cases.py
    "diagonal": "diagonal",
    "matrix_normal": "factored",
    "kronecker": "kronecker",
    "eigen_corrected": "eigen_corrected",
    "dense": "dense",
    "dense_per_layer": "dense",
    "kronecker, rank 1": "rank_one",
    "matrix_normal, rank 1": "truncated_factored",
    "kronecker, diagonal A": "whole_and_diagonal",
    "mean_field": None,
}
SIZES: dict[str, dict[str, int]] = {"rank 1": {"rank": 1}, "diagonal A": {"max_factor_dim": IN - 1}}
STRUCTURES = list(CASES)
NATURAL = STRUCTURES[:-1]


def linear_network(
    structure: str, replicas: int | None = None, eta: object = ETA, **settings: object
) -> VariationalNetwork:
    """One linear layer whose posterior has seen one batch (the same for every replica) and was refreshed."""
    structure, _, sizes = structure.partition(", ")
    settings = {
        "num_data": NUM_DATA, "kl_weight": KL_WEIGHT, "init": "weights", "seed": 11, **SIZES.get(sizes, {}), **settings,
    }  # fmt: skip
    prior = eta if isinstance(eta, GaussianPrior) else GaussianPrior(eta)
    torch.manual_seed(1)
    module = nn.Linear(IN - 1, OUT).double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "layer '.*' has Kronecker factors")
        network = VariationalNetwork(module, GaussianLikelihood(0.5), prior, structure, replicas=replicas, **settings)
    posterior = only_posterior(network)
    if isinstance(posterior, MeanFieldPosterior):
        posterior.log_std.data.copy_(mean_field_std().log())
    else:
        a, g = history()[0]
        lead = () if replicas is None else (replicas,)
        posterior.accumulate(
            [a.expand(*lead, *a.shape)], [g.unflatten(0, (-1, *[1 for _ in lead])).expand(-1, *lead, *g.shape[1:])]
        )
        posterior.curvature.commit(DECAY)
        posterior.refresh()
    return network


def for_replicas(
    network: VariationalNetwork, activations: list[Tensor], gradients: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The same data for every replica: (B, T, in) and (K, B, T, out) with the replicas' dimensions."""
    lead = network.replicas
    return (
        [a.expand(*lead, *a.shape) for a in activations],
        [torch.stack([column.expand(*lead, *column.shape) for column in g]) for g in gradients],
    )


def only_posterior(network: VariationalNetwork) -> Posterior:
    (posterior,) = network.posteriors
    return posterior


def history() -> list[Batch]:
    """What the posterior has seen; strongly correlated, so that mistakes show."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return [random_batch(examples=8, scale=2.0)]


def mean_field_std() -> Tensor:
    return torch.linspace(0.1, 0.6, OUT * IN, dtype=torch.float64).reshape(OUT, IN)


def covariance(structure: str, eta: float = ETA, kl_weight: float = KL_WEIGHT, num_data: int = NUM_DATA) -> Tensor:
    """Sigma = (lambda / N) (C + lambda / (N eta) I)^-1 of :func:`linear_network`, (D, D)."""
    name = CASES[structure]
    if name is None:
        return mean_field_std().flatten().square().diag()
    damped = damped_matrix(name, history(), DECAY, kl_weight / (num_data * eta))
    return kl_weight / num_data * torch.linalg.inv(damped)


def sandwich(sigma: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Covariance of the outputs (W a_1, W a_2, ...) stacked, for inputs (IN - 1,) of one and the same W."""
    rows = [torch.cat([x, torch.ones(1).double()]) for x in inputs]
    jacobian = torch.cat([torch.kron(torch.eye(OUT).double(), a.unsqueeze(0)) for a in rows])
    return jacobian @ sigma @ jacobian.T


def mean_of(network: VariationalNetwork) -> Tensor:
    """The mean of a network of one layer (*replicas, D)."""
    return network.layers[0].mean.detach().flatten(-2)


# --- a joint posterior of two layers --------------------------------------------------------------


def two_layers(replicas: int | None = None) -> VariationalNetwork:
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    return VariationalNetwork(
        net, GaussianLikelihood(0.5), GaussianPrior(ETA, scale="fan_in"), "dense",
        num_data=NUM_DATA, kl_weight=KL_WEIGHT, replicas=replicas, seed=0,
    )  # fmt: skip


def feed_two_layers(network: VariationalNetwork, locations: int = 1) -> Tensor:
    """Give a joint posterior one batch; returns its covariance by hand, (D, D)."""
    a1, g1 = torch.randn(5, locations, 4).double(), torch.randn(2, 5, locations, 2).double()
    a2, g2 = torch.randn(5, locations, 3).double(), torch.randn(2, 5, locations, 1).double()
    posterior = only_posterior(network)
    posterior.accumulate(*for_replicas(network, [a1, a2], [g1, g2]))
    posterior.curvature.commit(0.3)
    posterior.refresh()
    rows = torch.cat([example_gradients(a1, g1), example_gradients(a2, g2)], dim=-1)
    c = 0.3 * torch.eye(11).double() + 0.7 * rows.T @ rows / 5
    gamma = KL_WEIGHT / (NUM_DATA * prior_of_two_layers())
    return KL_WEIGHT / NUM_DATA * torch.linalg.inv(c + gamma.diag())


def prior_of_two_layers() -> Tensor:
    """ETA / in for every entry of a layer, the bias's included."""
    return torch.tensor([ETA / 3] * 8 + [ETA / 2] * 3, dtype=torch.float64)
