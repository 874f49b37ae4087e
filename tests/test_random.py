"""Random streams: their own, repeatable, and mirrored in pairs."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from noisynat import random as random_module
from noisynat.random import RandomStream, derived_seed

LIKE = torch.zeros((), dtype=torch.float64)
CPU = torch.device("cpu")


def numbers(stream: RandomStream, count: int = 5) -> Tensor:
    return stream.normal((count,), LIKE)


def test_same_seed_same_numbers() -> None:
    assert torch.equal(numbers(RandomStream(3)), numbers(RandomStream(3)))
    assert not torch.equal(numbers(RandomStream(3)), numbers(RandomStream(4)))


def test_numbers_follow_the_dtype_asked_for() -> None:
    stream = RandomStream(0)
    for make in (stream.normal, stream.signs, stream.uniform):
        assert make((2, 3), LIKE).dtype == torch.float64
        assert make((2, 3), LIKE.float()).shape == (2, 3)


def test_moments() -> None:
    stream, count = RandomStream(0), 40_000
    normal, signs, uniform = (make((count,), LIKE) for make in (stream.normal, stream.signs, stream.uniform))
    tolerance = 5 / count**0.5
    assert abs(normal.mean()) < tolerance
    assert abs(normal.var() - 1) < 2 * tolerance
    assert set(signs.tolist()) == {-1, 1}
    assert abs(signs.mean()) < tolerance
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < tolerance


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    stream = RandomStream(derived_seed("anything"))
    with stream.antithetic(CPU):
        stream.normal((3,), LIKE), stream.signs((3,), LIKE), stream.uniform((3,), LIKE)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrap_draws_from_the_callers_generator() -> None:
    drawn = numbers(RandomStream.wrap(torch.Generator().manual_seed(7)))
    assert torch.equal(drawn, torch.randn(5, generator=torch.Generator().manual_seed(7), dtype=torch.float64))


def test_derived_seed_follows_manual_seed_and_purpose() -> None:
    torch.manual_seed(1)
    first = derived_seed("network")
    assert derived_seed("network") == first  # and nothing was drawn
    assert derived_seed("loader") != first
    torch.manual_seed(2)
    assert derived_seed("network") != first
    torch.manual_seed(1)
    assert derived_seed("network") == first
    assert 0 <= first < 2**63


def test_antithetic_blocks_mirror_the_one_before() -> None:
    stream = RandomStream(0)
    blocks = []
    for _ in range(4):
        with stream.antithetic(CPU):
            blocks.append(torch.cat([numbers(stream), numbers(stream)]))
    assert torch.equal(blocks[1], -blocks[0])
    assert torch.equal(blocks[3], -blocks[2])
    assert not torch.equal(blocks[2].abs(), blocks[0].abs())


def test_signs_are_repeated_by_the_mirrored_block() -> None:
    """Flipout's noise is sign x normal: mirroring both would undo the mirror."""
    stream = RandomStream(0)
    with stream.antithetic(CPU):
        first = stream.signs((20,), LIKE)
    with stream.antithetic(CPU):
        assert torch.equal(stream.signs((20,), LIKE), first)


def test_numbers_drawn_between_antithetic_blocks_are_plain_and_new() -> None:
    stream = RandomStream(0)
    with stream.antithetic(CPU):
        first = numbers(stream)
    between = numbers(stream)
    with stream.antithetic(CPU):
        numbers(stream)
    after = numbers(stream)
    assert not torch.equal(between.abs(), first.abs())
    assert not torch.equal(after.abs(), first.abs())


def test_exception_in_a_mirrored_block_ends_the_mirror() -> None:
    stream = RandomStream(0)
    with stream.antithetic(CPU):
        first = numbers(stream)
    with pytest.raises(KeyError), stream.antithetic(CPU):
        raise KeyError
    with stream.antithetic(CPU):
        second = numbers(stream)
    with stream.antithetic(CPU):
        third = numbers(stream)
    assert torch.equal(third, -second)
    assert not torch.equal(second.abs(), first.abs())


@pytest.mark.parametrize("blocks_before", [0, 1, 2])
@pytest.mark.parametrize("way", ["state", "deepcopy", "pickle"])
def test_state_round_trip_also_in_mid_pair(blocks_before: int, way: str) -> None:
    stream = RandomStream(5)
    for _ in range(blocks_before):
        with stream.antithetic(CPU):
            numbers(stream)
    if way == "state":
        other = RandomStream(99)
        numbers(other)
        other.load_state(stream.state())
    else:
        other = copy.deepcopy(stream) if way == "deepcopy" else pickle.loads(pickle.dumps(stream))
    for _ in range(3):
        with stream.antithetic(CPU), other.antithetic(CPU):
            assert torch.equal(numbers(other), numbers(stream))
        assert torch.equal(numbers(other), numbers(stream))


def test_state_is_plain() -> None:
    stream = RandomStream(5)
    with stream.antithetic(CPU):
        numbers(stream)
    state = stream.state()
    assert state["seed"] == 5
    assert state["device"] == "cpu"
    assert all(isinstance(position, Tensor) for position in [state["position"], *state["pair"]])


def sequence(stream: RandomStream, sizes: list[int]) -> list[Tensor]:
    found = []
    for size in sizes:
        found += [stream.normal((size,), LIKE), stream.signs((size,), LIKE), stream.uniform((size,), LIKE.float())]
    return found


@pytest.mark.parametrize("second", [[4, 3, 5], [4, 2, 5], [4, 3], [4, 3, 5, 6], [7]])
@pytest.mark.parametrize("remembered", [0, 4, 2**20])
def test_a_mirror_image_is_the_same_whether_remembered_or_made_again(
    second: list[int], remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy forgets; the original remembers all numbers, those of short calls, or none."""
    monkeypatch.setattr(random_module, "_REMEMBERED", remembered)
    stream = RandomStream(0)
    with stream.antithetic(CPU):
        sequence(stream, [4, 3, 5])
    again = copy.deepcopy(stream)
    for one in (stream, again):
        with one.antithetic(CPU):
            found = sequence(one, second)
        if one is stream:
            expected = found
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(numbers(stream), numbers(again))


def test_what_a_caller_does_to_numbers_does_not_reach_their_mirror_image() -> None:
    stream = RandomStream(0)
    with stream.antithetic(CPU):
        first = numbers(stream)
        before = first.clone()
        first.mul_(100)
    with stream.antithetic(CPU):
        assert torch.equal(numbers(stream), -before)
