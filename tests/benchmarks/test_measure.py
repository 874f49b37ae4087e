"""Contenders: that they train, what is left out and why, and what a row says."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import noisynat
from benchmarks import memorized, memory
from benchmarks.contenders import CONTENDERS, IN_SWEEPS, QUICK, Contender, Trainer
from benchmarks.floor import Rates
from benchmarks.machine import denormals_are_flushed, handover_seconds, measured_rates, source_digest
from benchmarks.measure import measure, stepper
from benchmarks.networks import NETWORKS, SWEEPS, Network, digits, images, table
from benchmarks.rounds import Clock, Pace

CPU = torch.device("cpu")
RATES = Rates(flops=1e9, bytes=1e9, thin=1e9, normals=1e9)
FAST = Pace(rounds=3, turn_seconds=0.0, patience=60.0)
SMALL = digits("small", (8, 6), batch=16)
FEW = table("few", replicas=3)
IMAGES = images("images", (2, 3, 10), kernel=3)
ABSENT = replace(CONTENDERS["sgd"], name="peer-absent", kind="peer", module="absent_module", distribution="absent-dist")


def broken(network: Network, device: torch.device) -> Trainer:
    raise RuntimeError("it does not work\nhere")


def exhausted(network: Network, device: torch.device) -> Trainer:
    raise MemoryError("no room")


OURS = [name for name, c in CONTENDERS.items() if c.kind != "peer"]
SLOW = "-compiled"  # to begin with, where there are convolutions


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, network) for name in OURS for network in (SMALL, FEW)),
        *((name, IMAGES) for name in OURS if not name.endswith((SLOW, "-local"))),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_contender_of_ours_trains(name: str, network: Network) -> None:
    contender = CONTENDERS[name]
    assert contender.missing(network) is None
    trainer = contender.build(network, CPU)
    parameters = [p for p in _parameters(trainer) if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    step = stepper(trainer, contender, network, Clock())
    for _ in range(2):
        step()
    assert all(not torch.equal(now, was) for now, was in zip(parameters, before, strict=True))
    assert trainer.networks == (network.replicas or 1 if contender.kind == "noisynat" else 1)


def _parameters(trainer: Trainer) -> list[Tensor]:
    """Of a network of ours, or of one that its step closes over."""
    if trainer.bnn is not None:
        return list(trainer.bnn.parameters())
    modules = [cell.cell_contents for cell in trainer.step.__closure__ or ()]  # type: ignore[attr-defined]
    return [p for module in modules if isinstance(module, torch.nn.Module) for p in module.parameters()]


@pytest.mark.parametrize("name", [name for name in OURS if name.endswith("-local")])
def test_local_noise_is_left_out_where_weights_are_shared(name: str) -> None:
    found = measure(IMAGES, [CONTENDERS["adam"], CONTENDERS[name]], FAST, Clock(), RATES, report=lambda _: None)
    assert [(skip["contender"], skip["reason"]) for skip in found.skipped] == [
        (name, "local noise is not a posterior sample where layers share their weight over locations")
    ]


@pytest.mark.parametrize("name", [name for name, c in CONTENDERS.items() if c.kind == "peer"])
@pytest.mark.parametrize("network", [SMALL, FEW], ids=["classification", "regression"])
def test_every_installed_peer_trains(name: str, network: Network) -> None:
    contender = CONTENDERS[name]
    if (reason := contender.missing(network)) is not None:
        pytest.skip(reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = contender.build(network, CPU)
        parameters = _parameters(trainer)
        before = [p.detach().clone() for p in parameters]
        step = stepper(trainer, contender, network, Clock())
        for _ in range(trainer.cycle + 2):
            step()
    assert parameters
    assert any(not torch.equal(now, was) for now, was in zip(parameters, before, strict=True))
    assert all(torch.isfinite(p).all() for p in parameters)


def test_plans_and_cycles_are_those_of_the_optimizer() -> None:
    often = CONTENDERS["nng-kron-often"].build(SMALL, CPU)
    assert often.plan is not None
    assert (often.cycle, often.settling, often.plan.stats_every, often.plan.refresh_every) == (5, 0, 1, 5)
    default = CONTENDERS["nng-kron"].build(SMALL, CPU)
    assert default.plan is not None
    assert default.plan.columns == 1  # 784 inputs: sampled targets
    assert default.settling == 100  # when the interval of 20 steps is reached
    assert default.cycle % default.optimizer.refresh_every == 0
    assert default.cycle % default.optimizer.stats_every == 0


def test_plain_kfac_has_no_noise() -> None:
    """Two passes give one loss: the mean's."""
    for name, expected in (("kfac", True), ("nng-kron", False)):
        bnn = CONTENDERS[name].build(SMALL, CPU).bnn
        assert isinstance(bnn, noisynat.VariationalNetwork)
        x, y = SMALL.batches(CPU)[0]
        assert torch.equal(bnn.loss(x, y), bnn.loss(x, y)) is expected


def test_names_that_sections_use_exist() -> None:
    assert {*IN_SWEEPS, *QUICK} <= set(CONTENDERS)
    assert not {*NETWORKS} & {*SWEEPS}


def test_rows_and_ratios() -> None:
    said: list[str] = []
    contenders = [CONTENDERS[name] for name in ("adam", "sgd", "nng-ffg")]
    found = measure(FEW, contenders, FAST, Clock(), RATES, size=3, report=said.append)
    assert not found.skipped
    assert said == ["  13-50-1, batch 32, 3 replicas: 3 contenders"]
    rows = {row["contender"]: row for row in found.rows}
    assert rows["adam"]["to_adam"] == (1.0, 1.0, 1.0)
    ours = rows["nng-ffg"]
    assert ours["networks"] == 3
    assert ours["size"] == 3
    by_hand = sorted(mine / adam for mine, adam in zip(ours["rounds"], rows["adam"]["rounds"], strict=True))
    assert ours["to_adam"][0] == by_hand[1]  # the median of three rounds
    assert ours["steps_per_round"] % ours["cycle"] == 0
    assert ours["floor"] > 3 * rows["sgd"]["floor"]


def test_what_cannot_be_measured_is_left_out_by_name_with_a_reason() -> None:
    failing = Contender("peer-broken", "broken", "peer", broken)
    full = Contender("full", "full", "noisynat", exhausted)
    contenders = [CONTENDERS["adam"], ABSENT, failing, full]
    found = measure(SMALL, contenders, FAST, Clock(), RATES, report=lambda _: None)
    assert [row["contender"] for row in found.rows] == ["adam"]
    assert found.rows[0]["to_sgd"] is None
    reasons = {skip["contender"]: skip["reason"] for skip in found.skipped}
    assert reasons == {
        "peer-absent": "the package absent-dist is not installed (extra 'peers')",
        "peer-broken": "RuntimeError: it does not work",
        "full": "no room",
    }


def test_an_error_of_our_own_is_not_left_out() -> None:
    with pytest.raises(RuntimeError, match="does not work"):
        measure(SMALL, [Contender("ours", "ours", "noisynat", broken)], FAST, Clock(), RATES)


def test_denormal_numbers_are_left_as_they_are() -> None:
    before = denormals_are_flushed()
    measure(SMALL, [CONTENDERS["adam"], CONTENDERS["nng-kron"]], FAST, Clock(), RATES, report=lambda _: None)
    assert denormals_are_flushed() is before


def test_it_is_told_how_denormal_numbers_are_treated() -> None:
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor does not flush denormal numbers")
        assert denormals_are_flushed()
    finally:
        torch.set_flush_denormal(False)
    assert not denormals_are_flushed()


def test_replicas_have_batches_of_their_own_and_others_those_of_one_network() -> None:
    seen: list[torch.Size] = []
    trainer = Trainer(lambda x, y: seen.extend([x.shape, y.shape]))
    for name in ("nng-kron", "adam"):
        step = stepper(trainer, CONTENDERS[name], FEW, Clock())
        step()
    assert seen == [(3, 32, 13), (3, 32, 1), (32, 13), (32, 1)]


def test_batches_come_round_again() -> None:
    seen: list[Tensor] = []
    few = replace(SMALL, num_batches=2)
    step = stepper(Trainer(lambda x, y: seen.append(x)), CONTENDERS["adam"], few, Clock())
    for _ in range(3):
        step()
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_networks_and_batches_are_the_same_every_time_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again = (dict(SMALL.make().named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for (x, y), (x2, y2) in zip(SMALL.batches(CPU), SMALL.batches(CPU), strict=True):
        assert x.shape == (16, 784)
        assert y.shape == (16,)
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    x, y = FEW.batches(CPU, replicas=3)[0]
    assert (x.shape, y.shape) == ((3, 32, 13), (3, 32, 1))
    assert torch.equal(state, torch.get_rng_state())


def test_rates_are_those_of_the_work_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says half a second for all: 2 n^3 operations, 8 n^2 numbers read and written."""
    clock = Clock()
    monkeypatch.setattr(clock, "seconds", lambda work: work() or 0.5)
    rates = measured_rates(clock, side=16)
    assert rates.flops == 2 * 16**3 / 0.5
    assert rates.bytes == 2 * 8 * 16**2 * 4 / 0.5
    assert rates.thin == 2 * 8 * 8 * 16 / 0.5  # a matrix of 16 columns has no 32
    assert rates.normals == 8 * 8 / 0.5


@pytest.mark.parametrize("count", [1, 2])
def test_only_a_second_thread_has_to_take_over(count: int) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        seconds = handover_seconds()
        found = measure(FEW, [CONTENDERS[name] for name in ("adam", "sgd")], FAST, Clock(), RATES)
    finally:
        torch.set_num_threads(threads)
    assert (seconds is None) == (count == 1)
    assert len(found.handover) == (FAST.rounds if count > 1 else 0)


def test_the_digest_changes_with_any_module(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    module = tmp_path / "inner" / "a.py"
    digests = set()
    for text in ("x = 1\n", "x = 2\n", "x = 2\n"):
        module.write_text(text)
        digests.add(source_digest([tmp_path]))
    assert len(digests) == 2
    assert source_digest() not in digests


def test_the_one_batch_is_learned_by_heart() -> None:
    network = memorized.one_batch((30,))
    contender = CONTENDERS["nng-ffg"]
    trainer = contender.build(network, CPU)
    assert trainer.bnn is not None
    step = stepper(trainer, contender, network, Clock())
    x, y = network.batches(CPU)[0]
    losses = []
    for _ in range(2):
        losses.append(trainer.bnn.eval().loss(x, y).item())
        trainer.bnn.train()
        for _ in range(400):
            step()
    assert losses[0] > 2
    assert losses[1] > 100 * trainer.bnn.eval().loss(x, y).item()


def test_learned_networks_are_compared_with_fresh_ones_in_the_same_rounds() -> None:
    calls: dict[int, int] = {}

    def counted(network: Network, device: torch.device) -> Trainer:
        def step(x: Tensor, y: Tensor) -> None:
            count = calls[network.num_batches] = calls.get(network.num_batches, 0) + 1
            time.sleep(5e-3 if count > 15 else 1e-3)  # 1 + 3 steps of warm-up and 11 of learning

        return Trainer(step)

    contenders = [Contender("slowing", "it slows down", "noisynat", counted), ABSENT]
    found = memorized.compare(memorized.one_batch((5,)), contenders, 11, FAST, Clock())
    assert calls == {1: 4 + 11 + 3, Network.num_batches: 4 + 3}
    (row,) = found.rows
    assert row["slower"][0] > 2
    assert row["learned"][0] > 2 * row["fresh"][0]
    assert [skip["contender"] for skip in found.skipped] == ["peer-absent"]


@pytest.mark.skipif(not memory._STATUS.exists(), reason="Linux tells the memory of a process")
def test_peak_memory_is_what_a_network_takes_more() -> None:
    """Adam keeps weights, gradients and two averages: 16 bytes a weight; SGD one average less."""
    large = digits("large", (2000, 2000), batch=2)
    weights = sum(layer.out * layer.columns for layer in large.layer_shapes())
    adam, sgd = (memory.peak_bytes(name, large, CPU) for name in ("adam", "sgd"))
    assert adam is not None
    assert sgd is not None
    assert 15.9 * weights <= adam < 28 * weights  # and what the largest layer's step takes for a moment
    assert 11.9 * weights <= sgd < 14 * weights  # pages that were never touched may be gone
