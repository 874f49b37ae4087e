"""The profile by stage: nested stages, the hooks, and a real step."""

from __future__ import annotations

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.floor import STAGES, Rates
from benchmarks.networks import digits
from benchmarks.rounds import Clock
from benchmarks.stages import HOOKS, Stopwatch, profiled, watched

SMALL = digits("small", (30, 30), batch=16)
RATES = Rates(flops=1e9, bytes=1e9, thin=1e9, normals=1e9)


def test_an_inner_stage_interrupts_the_outer_one() -> None:
    now = 0.0
    stopwatch = Stopwatch(lambda: now)
    with stopwatch.stage("forward"):
        now += 1
        with stopwatch.stage("noise"):
            now += 10
            with stopwatch.stage("forward"):
                now += 100
            now += 20
        now += 2
    now += 1000  # between stages nobody is charged
    with stopwatch.stage("noise"):
        now += 30
    assert {stage: spent for stage, spent in stopwatch.seconds.items() if spent} == {"forward": 103, "noise": 60}


def test_the_stage_ends_where_it_raises() -> None:
    now = 0.0
    stopwatch = Stopwatch(lambda: now)

    def failing() -> None:
        nonlocal now
        with stopwatch.stage("noise"):
            now += 1
            raise ValueError

    with stopwatch.stage("forward"):
        with pytest.raises(ValueError):
            failing()
        now += 5
    assert (stopwatch.seconds["forward"], stopwatch.seconds["noise"]) == (5, 1)


def test_hooks_are_there_and_leave_no_trace() -> None:
    before = [getattr(owner, name) for _, owner, name in HOOKS]
    with watched(Stopwatch(lambda: 0.0)):
        assert all(getattr(owner, name) is not was for (_, owner, name), was in zip(HOOKS, before, strict=True))
    assert all(getattr(owner, name) is was for (_, owner, name), was in zip(HOOKS, before, strict=True))
    assert {stage for stage, _, _ in HOOKS} == set(STAGES)


@pytest.mark.parametrize("name", ["nng-ffg", "nng-mvg", "nng-kron-shared", "nng-ekfac-flipout"])
def test_every_stage_of_a_step_is_seen(name: str) -> None:
    row = profiled(SMALL, CONTENDERS[name], 2, Clock(), RATES)
    stages = {part["stage"]: part for part in row["stages"]}
    assert tuple(stages) == STAGES
    assert all(part["seconds"] > 0 for part in stages.values())
    assert all(part["floor"] > 0 for part in stages.values())
    assert sum(part["share"] for part in stages.values()) == pytest.approx(1)
    assert row["watched_seconds"] < 5 * row["seconds"]  # watching does not change the picture
    assert row["watched_seconds"] > row["seconds"] / 5  # and the stages are the step
    assert row["steps"] % 2 == 0
    assert all(part["share"] >= 0.05 for part in row["operators"])
    shares = [part["share"] for part in row["operators"]]
    assert shares == sorted(shares, reverse=True)
    assert shares


def test_plain_kfac_spends_nothing_on_noise() -> None:
    row = profiled(SMALL, CONTENDERS["kfac"], 1, Clock(), RATES)
    noise = next(part for part in row["stages"] if part["stage"] == "noise")
    assert (noise["seconds"], noise["floor"]) == (0, 0)
