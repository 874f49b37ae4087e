"""The memory forecast against the tensors that are there, and the refusal of what does not fit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisynat
from noisynat import memory
from noisynat.posteriors import Posterior
from noisynat.posteriors.families import STRUCTURES


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 7, bias=False))


def tensors(thing: Any, seen: dict[int, int]) -> None:
    """Bytes of every storage that ``thing`` reaches, except its layers."""
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    elif isinstance(thing, dict):
        for value in thing.values():
            tensors(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            tensors(value, seen)
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("noisynat"):
        tensors({key: value for key, value in vars(thing).items() if key != "_layers"}, seen)


def kept(posterior: Posterior) -> int:
    seen: dict[int, int] = {}
    tensors(posterior, seen)
    return sum(seen.values())


@pytest.mark.parametrize("replicas", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_forecast_is_what_training_keeps(structure: Any, dtype: torch.dtype, replicas: int | None) -> None:
    net = mlp().to(dtype)
    bnn = noisynat.VariationalNetwork(
        net, noisynat.GaussianLikelihood(), posterior=structure, num_data=10, replicas=replicas
    )
    if bnn.is_natural:
        optimizer = noisynat.NoisyNaturalGradient(bnn, damping=1e-3, refresh_every=5)
        for _ in range(7):  # beyond a refresh
            optimizer.zero_grad()
            bnn.loss(torch.randn(10, 20, dtype=dtype), torch.randn(10, 7, dtype=dtype)).backward()
            optimizer.step()
    found = noisynat.memory_forecast(net, structure, replicas=replicas)
    assert len(found.rows) == len(bnn.posteriors)
    for row, posterior in zip(found.rows, bnn.posteriors, strict=True):
        assert row.name == posterior.name
        assert row.bytes == pytest.approx(kept(posterior), rel=0.05)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_forecast_of_groups_normalizations_and_embeddings(structure: Any) -> None:
    net = nn.Sequential(
        nn.Embedding(12, 8), nn.Conv1d(6, 8, 3, groups=2), nn.LayerNorm(6), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
    )
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), posterior=structure, num_data=10)
    if bnn.is_natural:
        optimizer = noisynat.NoisyNaturalGradient(bnn, damping=1e-3, refresh_every=5)
        for _ in range(7):
            optimizer.zero_grad()
            bnn.loss(torch.randint(12, (10, 6)), torch.randn(10, 2)).backward()
            optimizer.step()
    found = noisynat.memory_forecast(net, structure)
    single = 40 * 6  # bytes: counts and the damping, of each group or unit
    assert {row.name: row.bytes for row in found.rows} == pytest.approx(
        {posterior.name: kept(posterior) for posterior in bnn.posteriors}, rel=0.1, abs=single
    )


@pytest.mark.parametrize("settings", [{"rank": 5}, {"max_factor_dim": 25}, {"rank": 4, "max_factor_dim": 6}])
@pytest.mark.parametrize("structure", ["kronecker", "matrix_normal"])
def test_the_forecast_of_truncated_factors(structure: Any, settings: dict[str, int]) -> None:
    net = mlp()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "layer '.*' has Kronecker factors")
        bnn = noisynat.VariationalNetwork(
            net, noisynat.GaussianLikelihood(), posterior=structure, num_data=10, **settings
        )
    optimizer = noisynat.NoisyNaturalGradient(bnn, damping=1e-3, refresh_every=5)
    for _ in range(7):
        optimizer.zero_grad()
        bnn.loss(torch.randn(10, 20), torch.randn(10, 7)).backward()
        optimizer.step()
    found = noisynat.memory_forecast(net, structure, **settings)
    for row, posterior in zip(found.rows, bnn.posteriors, strict=True):
        assert row.bytes == pytest.approx(kept(posterior), rel=0.1)


def test_floats_per_weight_of_a_wide_layer() -> None:
    """What the documentation says of 784-1000-1000-10: a factor once, thin eigenvectors, two small tables."""
    with torch.device("meta"):
        net = nn.Linear(1000, 1000)
    floats = {
        name: noisynat.memory_forecast(net, name).total / 4 for name in ("diagonal", "kronecker", "matrix_normal")
    }
    factors = 1000**2 + 1001**2 + 32 * (1000 + 1001) + 2 * 33 * 33
    assert floats == {"diagonal": 5 * 1000 * 1001, "kronecker": factors, "matrix_normal": factors}


def test_totals_and_the_largest() -> None:
    """Kronecker, float32: 3 (30^2 + 21^2) + 2 * 30 * 21 entries, and 3 (7^2 + 30^2) + 2 * 7 * 30."""
    found = noisynat.memory_forecast(mlp())
    assert [row.bytes for row in found.rows] == [4 * 5283, 4 * 3267]
    assert found.total == 4 * (5283 + 3267)
    assert found.largest.name == "0"
    assert "0             kronecker  30 x 30         20.6 KiB" in str(found)


def test_only_the_layers_asked_for_count() -> None:
    found = noisynat.memory_forecast(mlp(), "dense", layers="2", replicas=(2, 5))
    assert (found.largest.name, found.largest.side) == ("2", 210)
    assert found.total == 10 * 210**2 * (2 * 8 + 2 * 4)


def test_a_network_on_the_meta_device_has_a_forecast() -> None:
    with torch.device("meta"):
        net = nn.Linear(100_000, 100_000)
    assert noisynat.memory_forecast(net, "dense").total > 1e20


def test_what_cannot_fit_is_refused_before_anything_is_allocated() -> None:
    net = nn.Sequential(nn.Linear(50, 600), nn.ReLU(), nn.Linear(600, 2000))
    with pytest.raises(MemoryError, match=r"'dense' posterior of '0\+2', with matrices of 1232600 x 1232600"):
        noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), posterior="dense", num_data=10)


def test_what_fits_exactly_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = noisynat.memory_forecast(mlp())
    monkeypatch.setattr(memory, "_capacity", lambda device: found.total)
    memory.check(found, torch.device("cpu"))
    monkeypatch.setattr(memory, "_capacity", lambda device: found.total - 1)
    with pytest.raises(MemoryError, match=r"takes 20\.6 KiB of 33\.4 KiB in all, and this device has 33\.4 KiB"):
        memory.check(found, torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert memory.in_words(size) == words
