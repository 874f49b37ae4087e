"""Batches of tensors in memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from noisynat import TensorBatches


def numbered(n: int = 10, replicas: tuple[int, ...] = (), **settings: Any) -> TensorBatches:
    """Example i of replica r has x = (i, r) and y = 100 r + i."""
    i = torch.arange(n).double().expand(*replicas, n)
    r = torch.arange(replicas[0]).double()[:, None].expand(i.shape) if replicas else torch.zeros(n).double()
    x, y = torch.stack([i, r], -1), (100 * r + i).unsqueeze(-1)
    return TensorBatches(x, y, **{"batch_size": 3, "replicas": replicas, "seed": 0, **settings})


def epoch(batches: TensorBatches) -> list[Tensor]:
    return [y for _, y in batches]


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_epoch_shows_every_example_once() -> None:
    batches = numbered()
    for _ in range(3):
        targets = epoch(batches)
        assert [len(y) for y in targets] == [3, 3, 3, 1]
        assert torch.cat(targets).flatten().sort().values.tolist() == list(range(10))
    assert len(batches) == 4


def test_epochs_are_shuffled_anew() -> None:
    batches = numbered()
    assert torch.cat(epoch(batches)).tolist() != torch.cat(epoch(batches)).tolist()


def test_unshuffled_batches_keep_the_order() -> None:
    assert torch.cat(epoch(numbered(shuffle=False))).flatten().tolist() == list(range(10))


def test_inputs_and_targets_stay_together() -> None:
    for x, y in numbered(replicas=(4,)):
        torch.testing.assert_close(100 * x[..., 1] + x[..., 0], y[..., 0])


def test_every_replica_has_its_own_permutation() -> None:
    joined = torch.cat(epoch(numbered(replicas=(4,))), dim=1)[..., 0]
    rows = [(joined[r] - 100 * r).tolist() for r in range(4)]
    assert all(sorted(row) == list(range(10)) for row in rows)
    assert len({tuple(row) for row in rows}) == 4


@pytest.mark.parametrize("replicas", [(), (2,), (2, 3)])
@pytest.mark.parametrize("batches_at_once", [1, 2, 3])
def test_how_many_batches_are_gathered_at_once_does_not_show(
    replicas: tuple[int, ...], batches_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randn(*replicas, 17, 4, 2), torch.randn(*replicas, 17)
    for entries in (batches_at_once * 3 * 8 * torch.Size(replicas).numel(), 0, 10**6):
        monkeypatch.setattr("noisynat.data._ENTRIES_AT_ONCE", entries)
        batches = TensorBatches(x, y, 3, replicas=replicas, shuffle=False)
        parts = list(batches)
        assert [part.shape[len(replicas)] for part, _ in parts] == [3, 3, 3, 3, 3, 2]
        assert torch.equal(torch.cat([part for part, _ in parts], dim=len(replicas)), x)
        assert torch.equal(torch.cat([part for _, part in parts], dim=len(replicas)), y)


def test_data_that_replicas_share_need_no_copy_of_their_own() -> None:
    x, y = torch.randn(7, 2).expand(3, 7, 2), torch.arange(21.0).reshape(7, 3).mT.unsqueeze(-1)
    as_they_are = list(TensorBatches(x, y, 3, replicas=(3,), seed=0))
    copied = list(TensorBatches(x.contiguous(), y.contiguous(), 3, replicas=(3,), seed=0))
    for one, other in zip(as_they_are, copied, strict=True):
        assert_equal(list(one), list(other))


def test_the_same_seed_gives_the_same_batches() -> None:
    assert_equal(epoch(numbered(seed=7)), epoch(numbered(seed=7)))
    assert torch.cat(epoch(numbered(seed=7))).tolist() != torch.cat(epoch(numbered(seed=8))).tolist()


def test_the_default_seed_follows_manual_seed_without_drawing() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = epoch(numbered(seed=None))
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(first, epoch(numbered(seed=None)))
    torch.manual_seed(6)
    assert torch.cat(first).tolist() != torch.cat(epoch(numbered(seed=None))).tolist()


@pytest.mark.parametrize("replicas", [(), (2,)])
@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_resumes_at_any_batch(taken: int, replicas: tuple[int, ...]) -> None:
    """Saved from inside the loop over the second epoch, as a training loop does."""
    batches, other = numbered(replicas=replicas), numbered(replicas=replicas, seed=9)
    epoch(batches)
    iterator = iter(batches)
    if taken == 0:
        state = copy.deepcopy(batches.state_dict())
    for _ in range(taken):
        next(iterator)
        state = copy.deepcopy(batches.state_dict())
    rest = [y for _, y in iterator]
    other.load_state_dict(state)
    assert_equal(epoch(other), rest)
    assert_equal(epoch(other), epoch(batches))


def test_between_epochs_the_next_one_is_due() -> None:
    batches, other = numbered(), numbered(seed=9)
    epoch(batches)
    other.load_state_dict(batches.state_dict())
    assert_equal(epoch(other), epoch(batches))


def test_an_abandoned_epoch_is_not_resumed() -> None:
    batches = numbered()
    next(iter(batches))
    assert len(torch.cat(epoch(batches))) == 10


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        ((5, 2), (4, 1), {}, "must begin with the same"),
        ((5, 2), (5, 1), {"replicas": (3,)}, "must begin with the same"),
        ((3, 5, 2), (5, 1), {"replicas": (3,)}, "must begin with the same"),
        ((0, 2), (0, 1), {}, "no examples"),
        ((5, 2), (5, 1), {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments(x: Any, y: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorBatches(torch.zeros(x), torch.zeros(y), **settings)
