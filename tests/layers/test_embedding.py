"""The variational embedding against PyTorch's, and against a linear layer of indicators."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noisynat
from noisynat.curvature import TruncatedKronecker
from noisynat.layers import VariationalEmbedding
from noisynat.layers.base import drawn_weights, recording
from noisynat.posteriors.draws import Draw
from noisynat.random import RandomStream
from tests.layers.test_conv_posterior import variational

STREAM = RandomStream(0)
ENTRIES, DIM = 6, 3


def words(*shape: int) -> Tensor:
    return torch.randint(ENTRIES, shape, generator=torch.Generator().manual_seed(0))


def layer_of(replicas: tuple[int, ...] = ()) -> tuple[nn.Embedding, VariationalEmbedding]:
    embedding = nn.Embedding(ENTRIES, DIM).double()
    return embedding, VariationalEmbedding.from_embedding(embedding, replicas, STREAM)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 2, 4)])
def test_equals_the_embedding_at_the_mean(shape: tuple[int, ...]) -> None:
    embedding, layer = layer_of()
    x = words(*shape)
    torch.testing.assert_close(layer.eval()(x), embedding(x))
    embedding(x).square().sum().backward()
    layer.eval()(x).square().sum().backward()
    torch.testing.assert_close(layer.mean.grad.T, embedding.weight.grad)


def test_replicas_samples_and_groups_use_their_own_tables() -> None:
    _, layer = layer_of((2,))
    x, weights = words(4, 2, 5, 7), torch.randn(4, 2, DIM, ENTRIES, dtype=torch.float64)
    with drawn_weights([layer], [Draw(weights)]):
        s = layer(x)
    torch.testing.assert_close(s[3, 1], functional.embedding(x[3, 1], weights[3, 1].T))
    with drawn_weights([layer], [Draw(weights.transpose(0, 1)[:, :3], grouped=True)]):
        s = layer(x[0])
    for n in range(5):
        torch.testing.assert_close(s[1, n], functional.embedding(x[0, 1, n], weights[n // 2, 1].T))


def test_initial_tables_are_those_of_pytorch() -> None:
    layer = VariationalEmbedding.from_embedding(nn.Embedding(500, 40), (2,), STREAM)
    assert layer.mean[1].detach().std() == pytest.approx(1, rel=0.03)


def test_activations_are_indicators() -> None:
    _, layer = layer_of()
    x = words(5, 4)
    with recording([layer]) as records:
        layer.eval()(x)
    ((record,),) = records
    a, s = layer.activations(record.inputs), layer.by_location(record.outputs)
    assert torch.equal(a.argmax(-1), x)
    torch.testing.assert_close(s, a @ layer.mean.T)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes whole numbers, got torch\.float64"):
        layer_of()[1](torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}])
def test_tables_with_special_entries_stay(settings: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Embedding(ENTRIES, DIM, **settings), nn.Flatten(), nn.Linear(2 * DIM, 2))
    bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=9)
    assert [layer.name for layer in bnn.layers] == ["2"]


def test_coverage_and_memory_know_it() -> None:
    net = nn.Sequential(nn.Embedding(5000, DIM), nn.Flatten(), nn.Linear(2 * DIM, 2))
    bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=9)
    assert next(iter(bnn.coverage())).shape == (5000, DIM)
    curvature = bnn.posteriors[0].curvature
    assert isinstance(curvature, TruncatedKronecker)
    kept = sum(value.numel() for value in curvature.state_tensors().values())
    assert kept < 5 * 5000
    assert noisynat.memory_forecast(net).rows[0].bytes < 4 * 8 * (5000 * DIM + 5000)


class Words(nn.Module):
    """A table, or a linear layer of indicators, and a head over two words."""

    def __init__(self, table: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.table, self.head = table, head

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.table, (nn.Linear, noisynat.layers.VariationalLinear)):
            x = functional.one_hot(x, ENTRIES).double()
        return self.head(torch.tanh(self.table(x)).flatten(1))


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "matrix_normal", "dense", "dense_per_layer"])
@pytest.mark.parametrize("locations", [1, 2])
def test_it_is_a_linear_layer_of_indicators(structure: Any, locations: int) -> None:
    """Trained at the mean; with noise, where the same random numbers make the same draw."""
    embedding, head = nn.Embedding(ENTRIES, DIM).double(), nn.Linear(locations * DIM, 2).double()
    linear = nn.Linear(ENTRIES, DIM, bias=False).double()
    linear.weight.data.copy_(embedding.weight.T)
    x, y = words(30, locations), torch.randn(30, 2).double()
    noisy = structure not in ("kronecker", "matrix_normal")
    found = []
    for net in (Words(embedding, head), Words(linear, head)):
        bnn = variational(net, structure, noise="shared").train(noisy)
        optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.05, stats_examples=30)
        for _ in range(6):
            optimizer.zero_grad()
            bnn.loss(x, y).backward()
            optimizer.step()
        kl = [posterior.kl_divergence() for posterior in bnn.posteriors]
        found.append((bnn.layers[0].mean.detach(), bnn.posteriors[0].covariance(), torch.stack(kl)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_prior_of_a_fan_in_counts_one_input() -> None:
    bnn = variational(Words(*[nn.Embedding(ENTRIES, DIM).double(), nn.Linear(DIM, 2).double()]),
                      prior=noisynat.GaussianPrior(0.5, "fan_in"))  # fmt: skip
    assert [posterior.prior_variance.item() for posterior in bnn.posteriors] == [0.5, 0.5 / DIM]


def test_entries_that_do_not_occur_keep_their_prior() -> None:
    net = Words(nn.Embedding(ENTRIES, DIM).double(), nn.Linear(DIM, 2).double())
    bnn = variational(net, num_data=50)
    x = words(40, 1).clamp(max=ENTRIES - 2)
    optimizer = noisynat.NoisyKFAC(bnn.eval(), lr=0.0, betas=(0.0, 0.0), refresh_every=1)
    bnn.loss(x, torch.zeros(40, 2, dtype=torch.float64)).backward()
    optimizer.step()
    variance = bnn.posteriors[0].variances()[0]
    torch.testing.assert_close(variance[:, -1], torch.ones(DIM, dtype=torch.float64))
    assert (variance[:, :-1] < 0.9).all()


def test_kfac_moves_it() -> None:
    net = Words(nn.Embedding(ENTRIES, DIM).double(), nn.Linear(2 * DIM, 2).double())
    x = words(40, 2)
    y = torch.stack([x[:, 0] > 2, x[:, 1] > 3], dim=-1).double()
    optimizer = noisynat.KFAC(net, noisynat.GaussianLikelihood(1.0), lr=0.2, kl_clip=None)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
