"""Batch normalization's averages under sampled weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from tests.states import differences


def network(**settings: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))
    return noisynat.VariationalNetwork(net.double(), noisynat.GaussianLikelihood(), num_data=20, seed=0, **settings)


BATCHES = [torch.randn(6, 3, generator=torch.Generator().manual_seed(n)).double() for n in range(5)]


def averages(bnn: Any) -> tuple[Tensor, Tensor]:
    norm = bnn.net[1].normalize
    return norm.running_mean.clone(), norm.running_var.clone()


@pytest.mark.parametrize("pairs", [False, True])
def test_they_are_those_of_the_data_and_the_posterior(pairs: bool) -> None:
    """By hand: each batch's mean and variance after the first layer, with that batch's draw of its weight."""
    bnn, generator = network(), torch.Generator().manual_seed(1)
    drawn: list[Tensor] = []
    for x in BATCHES:
        with bnn.sampled_weights(generator):
            weight = bnn.layers[0]._drawn.weight
        drawn.append(x @ weight[:, :3].T + weight[:, 3])
    data = [(x, torch.zeros(6, 2)) for x in BATCHES] if pairs else BATCHES
    noisynat.update_bn(bnn, data, generator=torch.Generator().manual_seed(1))
    mean, variance = averages(bnn)
    torch.testing.assert_close(mean, torch.stack([s.mean(0) for s in drawn]).mean(0))
    torch.testing.assert_close(variance, torch.stack([s.var(0) for s in drawn]).mean(0))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(training: bool) -> None:
    bnn = network().train(training)
    bnn.net[2].eval()
    modes = [module.training for module in bnn.modules()]
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    noisynat.update_bn(bnn, BATCHES)
    assert [module.training for module in bnn.modules()] == modes
    assert bnn.net[1].normalize.momentum == 0.3
    changed = differences(before, {key: bnn.state_dict()[key] for key in before})
    assert {name.rsplit(".", 1)[-1] for name in changed} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_a_loader_that_fails_or_is_empty_leaves_no_mode_behind() -> None:
    bnn = network().train()
    before = averages(bnn)
    with pytest.raises(ValueError, match="data gave no batches"):
        noisynat.update_bn(bnn, [])
    assert all(torch.equal(one, other) for one, other in zip(averages(bnn), before, strict=True))

    def failing() -> Any:
        yield BATCHES[0]
        raise OSError

    with pytest.raises(OSError):
        noisynat.update_bn(bnn, failing())
    assert all(module.training for module in bnn.modules())
    assert bnn.net[1].normalize.momentum == 0.3


def test_training_makes_averages_of_its_own() -> None:
    """Of batches with training noise, by the layer's momentum."""
    bnn = network(noise="shared").train()
    before = averages(bnn)
    seen: list[Tensor] = []
    bnn.net[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    bnn.loss(BATCHES[0], torch.zeros(6, 2).double())
    torch.testing.assert_close(averages(bnn)[0], 0.7 * before[0] + 0.3 * seen[0].mean(0))
