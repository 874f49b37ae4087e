"""Timing in rounds: whose turn it is, how long, and what becomes of the times."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from benchmarks.rounds import Clock, Pace, TooSlowError, Turn, interleaved, ratios, spread, steps_per_turn, warmed_up

PACE = Pace(rounds=4, turn_seconds=1.0, patience=1e9)


class FakeClock(Clock):
    """Time passes only when a step says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def seconds(self, work: Callable[[], object]) -> float:
        before = self.now
        work()
        return self.now - before

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("cycle", "seconds", "turn_seconds", "expected"),
    [
        (1, 0.1, 1.0, 10),
        (1, 0.3, 1.0, 4),
        (5, 0.1, 1.0, 10),
        (5, 0.3, 1.0, 5),
        (100, 0.001, 0.15, 200),
        (7, 9.0, 1.0, 7),
    ],
)
def test_a_turn_is_the_fewest_whole_cycles_that_last_long_enough(
    cycle: int, seconds: float, turn_seconds: float, expected: int
) -> None:
    assert steps_per_turn(cycle, seconds, turn_seconds) == expected


def test_every_contender_has_one_turn_in_every_round() -> None:
    clock, called = FakeClock(), []

    def recorded(name: str) -> Callable[[], None]:
        return lambda: called.append(name)

    turns = {name: Turn(recorded(name), steps) for name, steps in (("a", 1), ("b", 2), ("c", 3))}
    times = interleaved(turns, PACE, clock)
    assert {name: len(of_rounds) for name, of_rounds in times.items()} == {"a": 4, "b": 4, "c": 4}
    for start in range(0, 24, 6):
        in_round = called[start : start + 6]
        assert sorted(in_round) == ["a", "b", "b", "c", "c", "c"]
        assert len([name for name, _ in itertools.groupby(in_round)]) == 3  # the steps of a turn are not torn apart
    orders = {tuple(name for name, _ in itertools.groupby(called[start : start + 6])) for start in range(0, 24, 6)}
    assert len(orders) > 1


def test_what_slows_the_machine_down_cancels_in_the_ratios() -> None:
    """Every round the machine is half as fast as before; the contender takes three times the reference's time."""
    clock, rounds = FakeClock(), itertools.count()
    slowness = {"now": 1.0}

    def step_of(seconds: float) -> Callable[[], None]:
        def step() -> None:
            slowness["now"] = 2.0 ** (next(rounds) // 4)  # four steps a round
            clock.pass_by(seconds * slowness["now"])

        return step

    turns = {"reference": Turn(step_of(1.0), 2), "contender": Turn(step_of(3.0), 2)}
    times = interleaved(turns, PACE, clock)
    assert times["reference"] == [1, 2, 4, 8]
    assert ratios(times["contender"], times["reference"]) == [3, 3, 3, 3]


def test_seconds_are_per_step_and_include_what_is_done_every_so_many_steps() -> None:
    clock, steps = FakeClock(), itertools.count()
    turn = Turn(lambda: clock.pass_by(10.0 if next(steps) % 5 == 0 else 1.0), 5)
    assert interleaved({"a": turn}, PACE, clock)["a"] == [pytest.approx(14 / 5)] * 4


def test_warm_up_takes_a_cycle_and_does_not_count_the_first_step() -> None:
    clock, steps = FakeClock(), itertools.count()
    turn = warmed_up(lambda: clock.pass_by(0.1 if next(steps) else 50.0), 5, PACE, clock)
    assert next(steps) == 6
    assert turn.steps == 10


def test_one_that_is_too_slow_is_given_up_before_its_cycle_is_over() -> None:
    clock, steps = FakeClock(), itertools.count()

    def step() -> None:
        next(steps)
        clock.pass_by(2.0)

    with pytest.raises(TooSlowError, match="3 of 101 steps"):
        warmed_up(step, 100, Pace(rounds=1, turn_seconds=1.0, patience=5.0), clock)
    assert next(steps) == 3


def test_something_else_is_done_before_every_round() -> None:
    order: list[str] = []
    interleaved({"a": Turn(lambda: order.append("a"), 2)}, PACE, FakeClock(), before_round=lambda: order.append("-"))
    assert order == ["-", "a", "a"] * PACE.rounds


def test_no_round_begins_once_patience_is_over() -> None:
    assert len(interleaved({"a": Turn(lambda: None, 1)}, Pace(9, 0.0, patience=0.0), Clock())["a"]) == 1


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_the_clock_measures_wall_time() -> None:
    a = torch.randn(400, 400)
    once = min(Clock().seconds(lambda: a @ a) for _ in range(5))
    many = min(Clock().seconds(lambda: [a @ a for _ in range(20)]) for _ in range(3))
    assert many > 5 * once > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_clock_waits_for_the_gpu() -> None:
    a = torch.randn(4000, 4000, device="cuda")
    clock = Clock("cuda")
    clock.seconds(lambda: a @ a)
    assert clock.seconds(lambda: [a @ a for _ in range(40)]) > 5 * clock.seconds(lambda: a @ a)


def test_warm_up_begins_once_the_contender_has_settled() -> None:
    clock, steps = FakeClock(), itertools.count()
    turn = warmed_up(lambda: clock.pass_by(0.1 if next(steps) >= 20 else 50.0), 5, PACE, clock, settling=20)
    assert next(steps) == 25
    assert turn.steps == steps_per_turn(5, 0.1, PACE.turn_seconds)
