"""Every state dict of the library goes through torch.save and torch.load(weights_only=True) without any loss."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import noisynat
from noisynat.posteriors.families import STRUCTURES
from tests.examples import NATURAL, data
from tests.states import differences

N = 12


class OwnLikelihood(noisynat.DistributionLikelihood):
    """With state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(0.4))

    def distribution(self, f: Tensor) -> Distribution:
        return Laplace(f, self.scale)

    def natural_step(self) -> None:
        self.scale = 0.9 * self.scale


LIKELIHOODS: dict[str, Callable[[], noisynat.Likelihood]] = {
    "fixed": lambda: noisynat.GaussianLikelihood(0.3),
    "learned": lambda: noisynat.GaussianLikelihood("learned", num_outputs=2),
    "gamma": lambda: noisynat.GaussianLikelihood("gamma"),
    "heteroscedastic": noisynat.HeteroscedasticGaussianLikelihood,
    "student": noisynat.StudentTLikelihood,
    "poisson": noisynat.PoissonLikelihood,
    "bernoulli": noisynat.BernoulliLikelihood,
    "categorical": noisynat.CategoricalLikelihood,
    "own": OwnLikelihood,
}


def through_a_file(state: Any) -> Any:
    """What a reader that runs no code gets back, which must be what was written."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert differences(state, loaded) == []
    return loaded


def network(structure: Any, likelihood: str = "gamma", seed: int = 0, **settings: Any) -> noisynat.VariationalNetwork:
    """Two layers with a posterior and, without replicas, point estimates and buffers."""
    torch.manual_seed(seed)
    norm = nn.Identity() if settings.get("replicas") else nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.PReLU(4))
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2))
    return noisynat.VariationalNetwork(net, LIKELIHOODS[likelihood](), posterior=structure, num_data=N, **settings)


class Training:
    """All that a training loop of one's own saves."""

    def __init__(self, structure: str, likelihood: str = "gamma", seed: int = 0, **settings: Any) -> None:
        self.network = network(structure, likelihood, seed, **settings)
        self.optimizer: Optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.scheduler: LRScheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        if self.network.is_natural:
            self.optimizer = NATURAL[structure](self.network, stats_every=2, refresh_every=3)
            self.scheduler = noisynat.cosine_schedule(self.optimizer, 20, curvature_final=0.1)
        self.batches = noisynat.TensorBatches(*data(likelihood, N, seed=4), batch_size=5, seed=seed)

    def epoch(self) -> None:
        self.network.train()
        for x, y in self.batches:
            self.optimizer.zero_grad()
            (self.network.loss(x, y) if self.network.is_natural else self.network.negative_elbo(x, y)).backward()
            self.optimizer.step()
            self.scheduler.step()

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in vars(self).items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in vars(self).items():
            part.load_state_dict(state[name])


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *[(structure, likelihood, {}) for structure in STRUCTURES for likelihood in LIKELIHOODS],
    *[(structure, "gamma", {"replicas": (2, 2)}) for structure in STRUCTURES],
]


@pytest.mark.parametrize(("structure", "likelihood", "settings"), CASES)
def test_training_goes_on_as_if_it_had_not_stopped(structure: str, likelihood: str, settings: dict[str, Any]) -> None:
    """Four steps of three batches an epoch come before the file, so that averages and refreshed factors differ."""
    first, second = (Training(structure, likelihood, seed, **settings) for seed in (0, 1))
    for training in (first, second):
        training.epoch()
    assert differences(first.state(), second.state())
    second.load(through_a_file(first.state()))
    for training in (first, second):
        training.epoch()
    assert differences(first.state(), second.state()) == []
    x, _ = data(likelihood, N, seed=4)
    assert torch.equal(*(training.network.eval().predict(x, 3).samples for training in (first, second)))


@pytest.mark.parametrize(("structure", "likelihood", "settings"), CASES)
def test_every_part_of_a_network_can_be_saved_alone(structure: str, likelihood: str, settings: dict[str, Any]) -> None:
    """Likelihoods, posteriors and layers have state dicts too."""
    first, second = (Training(structure, likelihood, seed, **settings) for seed in (0, 1))
    first.epoch()
    parts = zip(first.network.named_modules(), second.network.modules(), strict=True)
    for (name, part), other in reversed(list(parts)):
        other.load_state_dict(through_a_file(part.state_dict()), strict=True)
        assert differences(part.state_dict(), other.state_dict()) == [], name


@pytest.mark.parametrize("replicas", [None, (2, 2)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_sampled_functions_stay_the_same(structure: str, replicas: tuple[int, ...] | None) -> None:
    first, second = (Training(structure, seed=seed, replicas=replicas) for seed in (0, 1))
    first.epoch()
    functions = first.network.sample_functions(3)
    loaded = second.network.load_functions(through_a_file(functions.state_dict()))
    x, _ = data("gamma", N, seed=4)
    assert torch.equal(loaded(x), functions(x))
    assert differences(loaded.state_dict(), functions.state_dict()) == []


def test_nothing_that_has_a_state_is_left_out() -> None:
    tested = {noisynat.VariationalNetwork, noisynat.TensorBatches, noisynat.SampledFunctions, *NATURAL.values()}
    tested |= {type(make()) for make in LIKELIHOODS.values()}
    tested.add(noisynat.KFAC)  # by tests/optim/test_kfac.py
    public = [getattr(noisynat, name) for name in noisynat.__all__]
    with_state = [kind for kind in public if isinstance(kind, type) and hasattr(kind, "state_dict")]
    assert len(with_state) >= 10
    assert [kind.__name__ for kind in with_state if not any(issubclass(one, kind) for one in tested)] == []
    assert set(NATURAL) | {"mean_field"} == set(STRUCTURES)
