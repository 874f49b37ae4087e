"""fit(): the loop, its history, and runs that are stopped and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisynat
from tests.states import differences

N, BATCH = 20, 6  # four batches per epoch, the last of two examples


class CrashError(Exception):
    """A simulated crash."""


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=g), torch.randn(N, 1, generator=g)


def batches(kind: str = "tensors", seed: int = 0) -> Any:
    """The same examples in every kind of container."""
    x, y = data()
    if kind == "tensors":
        return noisynat.TensorBatches(x, y, batch_size=BATCH, seed=seed)
    generator = torch.Generator().manual_seed(seed) if kind == "loader with generator" else None
    return DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, generator=generator)


def make(posterior: Any = "kronecker", **settings: Any) -> tuple[noisynat.VariationalNetwork, torch.optim.Optimizer]:
    """A small network and its optimizer."""
    settings.setdefault("likelihood", noisynat.GaussianLikelihood("gamma"))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    bnn = noisynat.VariationalNetwork(net, posterior=posterior, num_data=N, **settings)
    if not bnn.is_natural:
        return bnn, torch.optim.Adam(bnn.parameters(), lr=0.01)
    return bnn, noisynat.NoisyNaturalGradient(bnn, lr=0.05)


def quiet(
    bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer, source: Any, epochs: int, **options: Any
) -> noisynat.History:
    return noisynat.fit(bnn, optimizer, source, epochs, progress=False, **options)


def without_seconds(history: noisynat.History) -> dict[str, list[Any]]:
    return {key: column for key, column in history.items() if key != "seconds"}


# --- the loop and its history -----------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["kronecker", "mean_field"])
def test_fit_is_the_plain_loop(posterior: Any) -> None:
    torch.manual_seed(1)
    fitted, optimizer = make(posterior)
    torch.manual_seed(1)
    by_hand, its_optimizer = make(posterior)
    quiet(fitted, optimizer, batches(), 3)
    source = batches()
    for _ in range(3):
        for x, y in source:
            its_optimizer.zero_grad()
            (by_hand.loss(x, y) if by_hand.is_natural else by_hand.negative_elbo(x, y)).backward()
            its_optimizer.step()
    assert differences(fitted.state_dict(), by_hand.state_dict()) == []


def test_history_has_a_row_per_epoch() -> None:
    history = quiet(*make(), batches(), 3)
    assert set(history) == {"epoch", "loss", "kl", "elbo", "lr", "kl_weight", "seconds"}
    assert len(history) == 3
    assert history["epoch"] == [1, 2, 3]
    assert history["lr"] == [0.05] * 3
    assert history["kl_weight"] == [1.0] * 3
    assert 0 < history["seconds"][0] < history["seconds"][1] < history["seconds"][2]
    assert all(isinstance(value, float) for key in ("loss", "kl", "elbo") for value in history[key])


def test_history_counts_examples_not_batches() -> None:
    """Known weights, nothing moves: the loss is that of all data, though the last batch is smaller."""
    bnn, _ = make("mean_field", likelihood=noisynat.GaussianLikelihood(0.5), kl_weight=0.5)
    with torch.no_grad():
        for posterior in bnn.posteriors:
            posterior.log_std.fill_(-30.0)
    history = quiet(bnn, torch.optim.SGD(bnn.parameters(), lr=0.0), batches(), 1)
    x, y = data()
    loss = -torch.distributions.Normal(bnn.eval()(x), 0.5).log_prob(y).mean().item()
    kl = sum(posterior.kl_divergence() for posterior in bnn.posteriors).item()
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert history["kl"][0] == pytest.approx(kl)
    assert history["elbo"][0] == pytest.approx(-loss - 0.5 * kl / N, rel=1e-5)


def test_history_of_replicas_has_an_entry_each() -> None:
    bnn, optimizer = make(replicas=3)
    x, y = data()
    own = noisynat.TensorBatches(x.expand(3, -1, -1), y.expand(3, -1, -1), batch_size=BATCH, replicas=(3,))
    for source in (batches(), own):
        history = quiet(bnn, optimizer, source, 2)
        assert [len(row) for key in ("loss", "kl", "elbo") for row in history[key]] == [3] * 6


def test_training_improves() -> None:
    history = quiet(*make(), batches(), 30)
    assert sum(history["elbo"][-5:]) > sum(history["elbo"][:5])


def test_warm_up_raises_the_kl_weight_and_ends_at_its_value() -> None:
    bnn, optimizer = make(kl_weight=0.8)
    history = quiet(bnn, optimizer, batches(), 6, kl_warmup=0.5)
    assert history["kl_weight"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert bnn.kl_weight == 0.8


def test_warm_up_over_all_epochs_still_ends_at_the_value() -> None:
    bnn, optimizer = make()
    history = quiet(bnn, optimizer, batches(), 4, kl_warmup=1.0)
    assert history["kl_weight"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert bnn.kl_weight == 1.0
    assert all(posterior.kl_weight == 1.0 for posterior in bnn.posteriors)


def test_warm_up_may_rise_geometrically() -> None:
    bnn, optimizer = make(kl_weight=0.8)
    history = quiet(bnn, optimizer, batches(), 4, kl_warmup=0.5, kl_start=0.25)
    assert history["kl_weight"] == pytest.approx([0.2, 0.4, 0.8, 0.8])


def test_an_interrupted_warm_up_leaves_the_kl_weight_as_it_was() -> None:
    bnn, optimizer = make(kl_weight=0.8)
    with pytest.raises(CrashError):
        quiet(bnn, optimizer, batches(), 6, kl_warmup=1.0, on_epoch=crash_after(2))
    assert bnn.kl_weight == 0.8


def test_the_scheduler_steps_once_per_batch() -> None:
    bnn, optimizer = make()
    scheduler = noisynat.cosine_schedule(optimizer, total_steps=8)
    history = quiet(bnn, optimizer, batches(), 2, scheduler=scheduler)
    assert history["lr"] == pytest.approx([0.05 * 0.5 * (1 + math.cos(math.pi * 4 / 8)), 0.0])


def test_on_epoch_sees_the_history() -> None:
    seen = []
    quiet(*make(), batches(), 3, on_epoch=lambda epoch, history: seen.append((epoch, len(history))))
    assert seen == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_found(training: bool) -> None:
    bnn, optimizer = make()
    bnn.train(training)
    quiet(bnn, optimizer, batches(), 1)
    assert bnn.training is training
    with pytest.raises(CrashError):
        quiet(bnn, optimizer, batches(), 1, on_epoch=crash_after(1))
    assert bnn.training is training


def test_zero_epochs_change_nothing() -> None:
    bnn, optimizer = make()
    before = {key: value.clone() for key, value in bnn.named_parameters()}
    assert len(quiet(bnn, optimizer, batches(), 0)) == 0
    assert all(torch.equal(value, before[key]) for key, value in bnn.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs >= 0"),
        ({"kl_warmup": 1.5}, "kl_warmup <= 1"),
        ({"kl_start": 0.0}, "0 < kl_start <= 1"),
        ({"kl_start": 1.5}, "0 < kl_start <= 1"),
        ({"checkpoint_every": 5}, "needs checkpoint="),
        ({"checkpoint_every": 0, "checkpoint": "file"}, "positive number of steps"),
        ({"checkpoint_interval": 5.0}, "needs checkpoint="),
        ({"checkpoint_interval": -1.0, "checkpoint": "file"}, "at least 0"),
        ({"checkpoint_interval": float("nan"), "checkpoint": "file"}, "at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(*make(), batches(), **{"epochs": 1, **options})


def test_no_batches_raise() -> None:
    with pytest.raises(ValueError, match="no batches"):
        quiet(*make(), [], 1)


# --- progress ---------------------------------------------------------------------------------


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    noisynat.fit(*make(), batches(), 3)
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert output.out == ""
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("loss" in line and "elbo" in line and "\r" not in line for line in lines)


def test_long_runs_write_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    noisynat.fit(*make(replicas=2), batches(), 45)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 12
    assert lines[-1].startswith("epoch 45/45")


def test_progress_shows_the_mean_over_all_replica_dimensions(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Linear(2, 1)
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.5), num_data=4, replicas=(2, 3))
    history = noisynat.fit(bnn, noisynat.NoisyKFAC(bnn), [(torch.ones(4, 2), torch.ones(4, 1))], 1, progress=True)
    mean = torch.tensor(history["loss"][0]).mean()
    assert f"epoch 1/1: loss {mean:.4g}, elbo" in capsys.readouterr().err


def test_without_progress_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(*make(), batches(), 3)
    output = capsys.readouterr()
    assert output.out == output.err == ""


# --- losses that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["kronecker", "mean_field"])
def test_a_loss_that_is_not_finite_stops_before_the_step(posterior: Any) -> None:
    x, y = data()
    bad = [(x[:5], y[:5]), (x[5:], torch.full_like(y[5:], 1e30)), (x, y)]
    torch.manual_seed(1)
    stopped, optimizer = make(posterior)
    torch.manual_seed(1)
    before, its_optimizer = make(posterior)
    with pytest.raises(noisynat.NonFiniteLossError, match="epoch 1, batch 2;"):
        quiet(stopped, optimizer, bad, 2)
    quiet(before, its_optimizer, bad[:1], 1)
    for key, value in before.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, stopped.state_dict()[key]), key


def test_the_replica_whose_loss_is_not_finite_is_named() -> None:
    bnn, optimizer = make(replicas=3)
    x, y = data()
    y = y.repeat(3, 1, 1)
    y[1] = 1e30
    with pytest.raises(noisynat.NonFiniteLossError, match=r"epoch 1, batch 1, replicas \[1\]"):
        quiet(bnn, optimizer, [(x, y)], 1)


# --- resuming ---------------------------------------------------------------------------------


def crash_after(epoch: int) -> Callable[[int, noisynat.History], None]:
    """A callback that crashes."""

    def on_epoch(done: int, history: noisynat.History) -> None:
        if done == epoch:
            raise CrashError

    return on_epoch


def crash_at_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make the optimizer crash at the end of that step, counted from 1."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise CrashError

    optimizer.register_step_post_hook(hook)


def start(seed: int, kind: str, posterior: Any, path: Path | None, **options: Any) -> tuple[Any, ...]:
    """Everything a script makes before it calls fit, and how it calls it: four epochs."""
    torch.manual_seed(seed)
    bnn, optimizer = make(posterior)
    scheduler = noisynat.cosine_schedule(optimizer, total_steps=16)
    source = batches(kind, seed)

    def go(**more: Any) -> noisynat.History:
        settings = {"scheduler": scheduler, "kl_warmup": 0.5, "checkpoint": path, **options, **more}
        return quiet(bnn, optimizer, source, 4, **settings)

    return bnn, optimizer, go


def assert_resumes(kind: str, posterior: Any, path: Path, step: int, checkpoint_every: int | None) -> None:
    """Crash at a step, resume in a new process, and end where the run without a crash ends."""
    whole, its_optimizer, go = start(0, kind, posterior, None)
    history = go()
    _, optimizer, go = start(0, kind, posterior, path, checkpoint_every=checkpoint_every)
    crash_at_step(optimizer, step)
    with pytest.raises(CrashError):
        go()
    resumed, optimizer, go = start(99, kind, posterior, path, checkpoint_every=checkpoint_every)
    again = go()
    assert differences(whole.state_dict(), resumed.state_dict()) == []
    assert differences(its_optimizer.state_dict(), optimizer.state_dict()) == []
    assert without_seconds(again) == without_seconds(history)


KINDS = ["tensors", "loader", "loader with generator"]


@pytest.mark.parametrize("step", [5, 8, 15])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_between_checkpoints_of_epochs(kind: str, step: int, tmp_path: Path) -> None:
    assert_resumes(kind, "kronecker", tmp_path / "run" / "checkpoint.pt", step, None)


@pytest.mark.parametrize("checkpoint_every", [1, 3, 4])
@pytest.mark.parametrize("step", [5, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_within_an_epoch(kind: str, step: int, checkpoint_every: int, tmp_path: Path) -> None:
    assert_resumes(kind, "kronecker", tmp_path / "checkpoint.pt", step, checkpoint_every)


@pytest.mark.parametrize("posterior", ["diagonal", "matrix_normal", "eigen_corrected", "dense", "mean_field"])
def test_every_posterior_resumes(posterior: Any, tmp_path: Path) -> None:
    assert_resumes("tensors", posterior, tmp_path / "checkpoint.pt", 7, 3)


def test_checkpoints_wait_for_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs end every 10 seconds: with an interval of 15, the first, third and fifth are kept, and the last."""
    path, now, kept = tmp_path / "checkpoint.pt", [0.0], []
    monkeypatch.setattr("noisynat.training.time.monotonic", lambda: now[0])

    def at_epoch(epoch: int, _: noisynat.History) -> None:
        kept.append(torch.load(path, weights_only=True)["position"]["epoch"])
        now[0] += 10

    quiet(*make(), batches(), 6, checkpoint=path, checkpoint_interval=15.0, on_epoch=at_epoch)
    assert kept == [1, 1, 3, 3, 5, 6]


def test_a_crash_after_a_checkpoint_that_was_not_written(tmp_path: Path) -> None:
    whole, _, go = start(0, "loader", "kronecker", None)
    history = go()
    _, _, go = start(0, "loader", "kronecker", tmp_path / "checkpoint.pt", on_epoch=crash_after(3))
    with pytest.raises(CrashError):
        go(checkpoint_interval=3600.0)
    resumed, _, go = start(99, "loader", "kronecker", tmp_path / "checkpoint.pt")
    assert without_seconds(go()) == without_seconds(history)
    assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_a_crash_in_a_callback_loses_nothing(tmp_path: Path) -> None:
    whole, _, go = start(0, "loader", "kronecker", None)
    history = go()
    _, _, go = start(0, "loader", "kronecker", tmp_path / "checkpoint.pt", on_epoch=crash_after(2))
    with pytest.raises(CrashError):
        go()
    resumed, _, go = start(99, "loader", "kronecker", tmp_path / "checkpoint.pt")
    assert without_seconds(go()) == without_seconds(history)
    assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_resuming_in_the_same_process(tmp_path: Path) -> None:
    """Interrupt a notebook's cell during warm-up, and run it again."""
    whole, _, go = start(0, "tensors", "kronecker", None)
    history = go()
    resumed, _, go = start(0, "tensors", "kronecker", tmp_path / "checkpoint.pt")
    with pytest.raises(CrashError):
        go(on_epoch=crash_after(1))
    assert without_seconds(go()) == without_seconds(history)
    assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_a_finished_run_is_only_loaded(tmp_path: Path) -> None:
    whole, _, go = start(0, "tensors", "kronecker", tmp_path / "checkpoint.pt")
    history = go()
    again, _, go = start(99, "tensors", "kronecker", tmp_path / "checkpoint.pt")
    assert without_seconds(go()) == without_seconds(history)
    assert differences(whole.state_dict(), again.state_dict()) == []


def test_more_epochs_go_on_from_a_finished_run(tmp_path: Path) -> None:
    for kind in KINDS:
        path = tmp_path / f"{kind}.pt"
        torch.manual_seed(0)
        bnn, optimizer = make()
        quiet(bnn, optimizer, batches(kind), 2, checkpoint=path)
        torch.manual_seed(99)
        resumed, its_optimizer = make()
        history = quiet(resumed, its_optimizer, batches(kind, seed=99), 5, checkpoint=path)
        torch.manual_seed(0)
        whole, its_optimizer = make()
        expected = quiet(whole, its_optimizer, batches(kind), 5)
        assert without_seconds(history) == without_seconds(expected)
        assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_resumed_seconds_go_on(tmp_path: Path) -> None:
    bnn, optimizer = make()
    first = quiet(bnn, optimizer, batches(), 1, checkpoint=tmp_path / "checkpoint.pt")
    both = quiet(bnn, optimizer, batches(), 2, checkpoint=tmp_path / "checkpoint.pt")
    assert both["seconds"][0] == first["seconds"][0] < both["seconds"][1]


def test_a_crash_while_writing_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    bnn, optimizer = make()
    quiet(bnn, optimizer, batches(), 1, checkpoint=path)
    before = path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]

    def half_written(state: Any, target: Any) -> None:
        Path(target).write_bytes(before[: len(before) // 2])
        raise CrashError

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(CrashError):
        quiet(bnn, optimizer, batches(), 2, checkpoint=path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert len(quiet(*make(), batches(), 2, checkpoint=path)) == 2


def test_the_elbo_of_a_warm_up_is_that_of_the_final_kl_weight() -> None:
    net = torch.nn.Linear(2, 1)
    network = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(0.5), num_data=20, kl_weight=0.8)
    optimizer = noisynat.NoisyKFAC(network)
    history = noisynat.fit(
        network, optimizer, [(torch.ones(20, 2), torch.ones(20, 1))], 4, kl_warmup=0.5, progress=False
    )
    assert history["kl_weight"][0] < 0.8
    expected = [-loss - 0.8 * kl / 20 for loss, kl in zip(history["loss"], history["kl"], strict=True)]
    assert history["elbo"] == pytest.approx(expected)
