"""Training by Lightning: a module of one's own, and LightningNetwork with its logs, checkpoints and refusals."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import noisynat
from noisynat.interop.lightning import LightningNetwork
from tests.examples import NATURAL
from tests.states import differences

N, BATCH, EPOCHS = 20, 6, 3  # four batches per epoch, the last of two examples
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(N, 3, generator=g), torch.randn(N, 1, generator=g)


def loader(batch_size: int = BATCH, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), batch_size=batch_size, **settings)


def network(posterior: Any = "kronecker", seed: int = 0, **settings: Any) -> noisynat.VariationalNetwork:
    torch.manual_seed(seed)
    settings.setdefault("likelihood", noisynat.GaussianLikelihood("gamma"))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return noisynat.VariationalNetwork(net, posterior=posterior, num_data=N, **settings)


def adam(bnn: noisynat.VariationalNetwork) -> torch.optim.Optimizer:
    return torch.optim.Adam(bnn.parameters(), lr=0.01)


OPTIMIZERS: dict[str, Any] = {**NATURAL, "mean_field": adam}


def objective(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> Tensor:
    return bnn.loss(x, y) if bnn.is_natural else bnn.negative_elbo(x, y)


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**{"accelerator": "cpu", "devices": 1, "enable_model_summary": False, **quiet, **settings})


def train_by_hand(
    bnn: noisynat.VariationalNetwork, optimizer: torch.optim.Optimizer, batches: Iterable[Any], *, parts: int = 1
) -> None:
    """The plain loop; a step after every ``parts`` batches."""
    bnn.train()
    for _ in range(EPOCHS):
        for number, (x, y) in enumerate(batches):
            if number % parts == 0:
                optimizer.zero_grad()
            (objective(bnn, x, y) / parts).backward()
            if number % parts == parts - 1:
                optimizer.step()


class Plain(LightningModule):
    """What a user of Lightning writes."""

    def __init__(self, bnn: noisynat.VariationalNetwork, make: Any) -> None:
        super().__init__()
        self.bnn, self.make = bnn, make
        self.gradients_enabled: list[bool] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.gradients_enabled.append(torch.is_grad_enabled())
        return objective(self.bnn, *batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """What a validation may want; Lightning runs it in inference mode, whose tensors must not get into training."""
        x, y = batch
        self.log("val_loss", self.bnn.loss(x, y))
        self.log("val_log_prob", self.bnn.predict(x, 2, torch.Generator()).log_prob(y).mean())
        self.log("val_elbo", self.bnn.elbo(*data(), num_samples=2, generator=torch.Generator()).per_datum.mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.bnn)


# --- a module of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("posterior", OPTIMIZERS)
def test_a_module_of_ones_own_trains_as_the_plain_loop_does(posterior: str) -> None:
    """Lightning gives the optimizer a closure that zeroes gradients after the forward pass, and validates."""
    bnn, by_hand = network(posterior), network(posterior)
    module, run = Plain(bnn, OPTIMIZERS[posterior]), trainer(max_epochs=EPOCHS)
    run.fit(module, loader(), loader())
    its_optimizer = OPTIMIZERS[posterior](by_hand)
    train_by_hand(by_hand, its_optimizer, loader())
    assert differences(bnn.state_dict(), by_hand.state_dict()) == []
    assert differences(run.optimizers[0].state_dict(), its_optimizer.state_dict()) == []
    assert module.gradients_enabled == [True] * (4 * EPOCHS)  # once a step


def test_accumulation_is_the_plain_loops() -> None:
    bnn, by_hand = network(), network()
    trainer(max_epochs=EPOCHS, accumulate_grad_batches=2).fit(Plain(bnn, noisynat.NoisyKFAC), loader())
    optimizer = noisynat.NoisyKFAC(by_hand)
    train_by_hand(by_hand, optimizer, loader(), parts=2)
    assert optimizer.param_groups[0]["steps"] == 2 * EPOCHS
    assert differences(bnn.state_dict(), by_hand.state_dict()) == []


def test_clipping_moves_where_training_ends() -> None:
    """Why the guide warns of it: the likelihood's gradient shrinks and the prior's pull does not.

    The posterior mean of a linear network is known; with clipped gradients training ends nearer to the prior's mean.
    """
    x = torch.ones(N, 1)
    y = 2 + torch.linspace(-0.1, 0.1, N).unsqueeze(-1)
    ends = []
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        net = nn.Linear(1, 1, bias=False)
        bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(1.0), num_data=N, posterior="dense")
        make = partial(noisynat.NoisyNaturalGradient, lr=0.1, kl_clip=None)
        trainer(max_epochs=300, gradient_clip_val=clip).fit(Plain(bnn, make), noisynat.TensorBatches(x, y, N))
        ends.append(bnn.layers[0].mean.item())
    assert ends[0] == pytest.approx(2 * N / (N + 1), abs=0.1)
    assert abs(ends[1]) < 0.1


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["diagonal", "kronecker", "mean_field"])
def test_trains_and_logs_as_fit_does(posterior: str) -> None:
    epochs = Recorder()
    bnn, fitted = network(posterior, kl_weight=0.5), network(posterior, kl_weight=0.5)
    trainer(max_epochs=EPOCHS, callbacks=[epochs]).fit(LightningNetwork(bnn, OPTIMIZERS[posterior]), loader())
    history = noisynat.fit(fitted, OPTIMIZERS[posterior](fitted), loader(), EPOCHS, progress=False)
    assert differences(bnn.state_dict(), fitted.state_dict()) == []
    for logged, column in {"train_loss": "loss", "kl": "kl", "train_elbo": "elbo"}.items():
        assert [row[logged] for row in epochs.rows] == pytest.approx(history[column], rel=1e-5)


class Recorder(Callback):
    """Keeps what was logged, epoch by epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows.append({})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        if self.rows:
            self.rows[-1] = {key: value.item() for key, value in trainer.callback_metrics.items()}


def test_the_default_optimizer_is_the_natural_gradient() -> None:
    run = trainer(max_epochs=1)
    run.fit(LightningNetwork(network("dense")), loader())
    assert type(run.optimizers[0]) is noisynat.NoisyNaturalGradient


def test_the_scheduler_knows_the_number_of_steps() -> None:
    run = trainer(max_epochs=2)
    module = LightningNetwork(network(), partial(noisynat.NoisyKFAC, lr=0.1), noisynat.cosine_schedule)
    rates: list[float] = []
    module.on_train_batch_end = lambda *_: rates.append(run.optimizers[0].param_groups[0]["lr"])  # type: ignore[method-assign]
    run.fit(module, loader())
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(1, 9)])


def test_a_scheduler_of_training_without_end_is_refused() -> None:
    module = LightningNetwork(network(), scheduler=noisynat.cosine_schedule)
    with pytest.raises(ValueError, match="give the Trainer max_epochs or max_steps"):
        trainer(max_epochs=-1).fit(module, loader())


@pytest.mark.parametrize("posterior", OPTIMIZERS)
def test_validation_does_not_change_training(posterior: str) -> None:
    alone, validated = network(posterior), network(posterior)
    make = OPTIMIZERS[posterior]
    trainer(max_epochs=EPOCHS).fit(LightningNetwork(alone, make), loader())
    trainer(max_epochs=EPOCHS, num_sanity_val_steps=2).fit(LightningNetwork(validated, make), loader(), loader(5))
    assert differences(alone.state_dict(), validated.state_dict()) == []


def test_double_precision() -> None:
    bnn = network()
    trainer(max_epochs=1, precision="64-true").fit(LightningNetwork(bnn), loader(), loader())
    assert bnn.layers[0].mean.dtype == torch.float64


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    x, y = data()
    y[N // 2 :] = 1e30
    bnn, before = network(), network()
    bad = DataLoader(TensorDataset(x, y), batch_size=N // 2)
    with pytest.raises(noisynat.NonFiniteLossError, match="epoch 1, batch 2;"):
        trainer(max_epochs=1).fit(LightningNetwork(bnn), bad)
    noisynat.fit(before, noisynat.NoisyNaturalGradient(before), [next(iter(bad))], 1, progress=False)
    assert differences(dict(bnn.named_parameters()), dict(before.named_parameters())) == []


# --- evaluation -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("posterior", ["dense", "mean_field"])
def test_evaluation_logs_what_the_closed_forms_give(posterior: str, stage: str) -> None:
    """A linear network has f(x) ~ N(x m, x Sigma x): both log-likelihoods and the KL are known."""
    x, y = data()
    std, prior, kl_weight = 0.7, 2.0, 0.5
    torch.manual_seed(1)
    bnn = noisynat.VariationalNetwork(
        nn.Linear(3, 1),
        noisynat.GaussianLikelihood(std),
        noisynat.GaussianPrior(prior),
        posterior,  # type: ignore[arg-type]
        num_data=N,
        kl_weight=kl_weight,
    )
    module = LightningNetwork(bnn, None if bnn.is_natural else adam, num_samples=2000)
    run = trainer()
    (run.validate if stage == "val" else run.test)(module, loader(), verbose=False)
    logged = {key: value.item() for key, value in run.callback_metrics.items()}

    mean, covariance = bnn.layers[0].mean.detach().flatten().double(), bnn.posteriors[0].covariance().detach().double()
    rows = torch.cat([x, torch.ones(N, 1)], 1).double()
    f, variance = rows @ mean, ((rows @ covariance) * rows).sum(1)
    target = y.flatten().double()
    expected = -0.5 * math.log(2 * math.pi * std**2) - ((target - f).square() + variance) / (2 * std**2)
    log_prob = torch.distributions.Normal(f, (std**2 + variance).sqrt()).log_prob(target)
    q = torch.distributions.MultivariateNormal(mean, covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros(4).double(), prior * torch.eye(4).double())
    kl = torch.distributions.kl_divergence(q, p).item()
    assert logged[f"{stage}_loss"] == pytest.approx(-expected.mean().item(), rel=0.02)
    assert logged[f"{stage}_log_prob"] == pytest.approx(log_prob.mean().item(), rel=0.02)
    assert logged[f"{stage}_elbo"] == pytest.approx(-logged[f"{stage}_loss"] - kl_weight * kl / N, rel=1e-5)


def test_replicas_are_averaged() -> None:
    bnn = network(replicas=2)
    run = trainer(max_epochs=1)
    run.fit(LightningNetwork(bnn, num_samples=3), loader(), loader())
    kl = sum(posterior.kl_divergence() for posterior in bnn.posteriors) + bnn.likelihood.kl(bnn.replicas)
    assert run.callback_metrics["kl"].item() == pytest.approx(kl.mean().item())
    x, y = data()
    prediction = bnn.predict(x, 3, torch.Generator().manual_seed(0))
    assert run.callback_metrics["val_log_prob"].item() == pytest.approx(prediction.log_prob(y).mean().item(), rel=1e-5)


@pytest.mark.parametrize("with_targets", [True, False])
def test_predictions_are_of_the_same_functions_in_every_batch(with_targets: bool) -> None:
    bnn = network()
    x, _ = data()
    batches = loader(5) if with_targets else DataLoader(x, batch_size=5)  # type: ignore[arg-type]
    parts = trainer().predict(LightningNetwork(bnn, num_samples=7, seed=4), batches)
    assert parts is not None
    assert all(isinstance(part, noisynat.Predictive) for part in parts)
    together = bnn.predict(x, 7, torch.Generator().manual_seed(4)).samples
    torch.testing.assert_close(torch.cat([part.samples for part in parts], 1), together)


# --- checkpoints ------------------------------------------------------------------------------


def batches(kind: str) -> Any:
    if kind != "shuffled loader":
        return noisynat.TensorBatches(*data(), batch_size=BATCH, seed=5)
    return loader(shuffle=True)


def run_with_checkpoints(
    posterior: str, kind: str, folder: Path, seed: int, resume_from: Path | None = None
) -> tuple[LightningNetwork, Trainer]:
    every: dict[str, Any] = {"every_n_train_steps": 1} if kind == "tensors, every step" else {}
    callback = ModelCheckpoint(folder, "{step}", save_top_k=-1, **every)
    module = LightningNetwork(network(posterior, seed), OPTIMIZERS[posterior], num_samples=2)
    torch.manual_seed(seed)
    run = trainer(max_epochs=EPOCHS, callbacks=[callback], enable_checkpointing=True)
    run.fit(module, batches(kind), loader(), ckpt_path=resume_from, weights_only=True)
    return module, run


@pytest.mark.parametrize("kind", ["tensors, every step", "tensors, every epoch", "shuffled loader"])
@pytest.mark.parametrize("posterior", ["kronecker", "eigen_corrected", "dense", "mean_field"])
def test_resumed_training_is_bit_equal(posterior: str, kind: str, tmp_path: Path) -> None:
    module, run = run_with_checkpoints(posterior, kind, tmp_path / "first", seed=0)
    files = sorted((tmp_path / "first").iterdir())
    assert len(files) == (4 * EPOCHS if kind == "tensors, every step" else EPOCHS)
    for file in files:
        again, its_run = run_with_checkpoints(posterior, kind, tmp_path / "again", seed=9, resume_from=file)
        assert differences(module.state_dict(), again.state_dict()) == [], file.name
        assert differences(run.optimizers[0].state_dict(), its_run.optimizers[0].state_dict()) == [], file.name


def test_a_checkpoint_loads_without_a_trainer(tmp_path: Path) -> None:
    module, run = LightningNetwork(network()), trainer(max_epochs=1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "run.ckpt")
    loaded = LightningNetwork.load_from_checkpoint(
        tmp_path / "run.ckpt", network=network(seed=8), weights_only=True, map_location="cpu"
    )
    assert differences(module.state_dict(), loaded.state_dict()) == []
    random_states = []
    for new in (loaded, LightningNetwork(network())):
        torch.manual_seed(1)
        trainer(max_epochs=1).fit(new, loader(shuffle=True))
        random_states.append(torch.get_rng_state())
    assert torch.equal(*random_states)  # a new run does not go on with the batches of the old one


def test_training_may_go_on_with_batches_of_another_kind(tmp_path: Path) -> None:
    first, second = trainer(max_epochs=1), trainer(max_epochs=2)
    first.fit(LightningNetwork(network()), loader(shuffle=True))
    first.save_checkpoint(tmp_path / "run.ckpt")
    second.fit(LightningNetwork(network()), batches("tensors"), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert second.optimizers[0].param_groups[0]["steps"] == 2 * 4


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_val": 0.5}, "gradient_clip_val=0.5 would scale the likelihood's part"),
        ({"callbacks": [EMAWeightAveraging()]}, "EMAWeightAveraging would average the posterior's means and not"),
        ({"callbacks": [StochasticWeightAveraging(1e-2)]}, "StochasticWeightAveraging would average"),
        ({"precision": "bf16-mixed"}, "precision must be '32-true' or '64-true', got 'bf16-mixed'"),
        ({"accumulate_grad_batches": 3}, "accumulate_grad_batches=3 does not divide the 4 batches"),
        ({"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})], "max_epochs": 2}, "accumulate_grad_batches=3"),
    ],
)
def test_what_would_change_the_result_silently_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**{"max_epochs": 1, **settings}).fit(LightningNetwork(network()), loader())


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(ValueError, match="2 processes would each have a curvature"):
        trainer(max_epochs=1).fit(LightningNetwork(network()), loader())


def test_mean_field_gradients_may_be_clipped() -> None:
    trainer(max_epochs=1, gradient_clip_val=0.5).fit(LightningNetwork(network("mean_field"), adam), loader())


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="takes a VariationalNetwork, got Linear"):
        LightningNetwork(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        LightningNetwork(network(), num_samples=0)
    with pytest.raises(ValueError, match="'mean_field' posterior needs optimizer="):
        LightningNetwork(network("mean_field"))


def test_without_lightning_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "noisynat.interop.lightning")
    message = r'^Lightning is not installed; get it with pip install "noisynat\[lightning\]"$'
    with pytest.raises(ImportError, match=message):
        importlib.import_module("noisynat.interop.lightning")
