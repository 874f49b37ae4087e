"""A network as a LightningModule: training, ELBO, predictions and checkpoints by Lightning's Trainer.

Lightning (Falcon et al. 2019) comes with the extra ``noisynat[lightning]``; without it importing this module raises
ImportError. A LightningModule of one's own works too, see the guide to Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from noisynat.data import TensorBatches
from noisynat.errors import check_finite
from noisynat.network import VariationalNetwork
from noisynat.optim import NoisyNaturalGradient
from noisynat.predictive import Predictive

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
except ImportError as error:
    raise ImportError('Lightning is not installed; get it with pip install "noisynat[lightning]"') from error

__all__ = ["LightningNetwork"]

Batch = Sequence[Tensor]  # x and y


class LightningNetwork(LightningModule):
    """A :class:`~noisynat.VariationalNetwork` for Lightning's Trainer, under automatic optimization.

    Batches are (x, y); to predict, x alone will do. Logged per epoch, in nats, replicas averaged:

    - ``train_loss``: mean negative log-likelihood of an example at the epoch's sampled weights;
    - ``kl``: of weights and noise, at the epoch's end;
    - ``train_elbo``: of those two, per training example, a running estimate as :class:`~noisynat.History` has it;
    - ``val_loss``: mean negative log-likelihood of a validation example, expected over the posterior;
    - ``val_elbo``: of that and the KL, per training example;
    - ``val_log_prob``: log density (of classes, log probability) of a validation example under the predictive.

    ``Trainer.test`` logs ``test_loss``, ``test_elbo`` and ``test_log_prob``. Validation, test and prediction draw the
    same standard normal numbers for every batch and in every epoch, so that epochs compare and all rows of a prediction
    are of the same functions, and training does not depend on how often they run.

    Checkpoints hold the network's whole state, so that training resumed from one is bit for bit, on the CPU, training
    that was never stopped. That includes the batches' order: of :class:`~noisynat.TensorBatches` anywhere, of a
    DataLoader without a generator of its own between epochs.

    What would change the result silently is refused when training starts: gradient clipping (of a natural posterior,
    whose prior is no part of the gradient), weight averaging, half precision, several processes, and accumulation over
    a number of batches that does not divide the epoch's.

    Args:
        network: is trained in place.
        optimizer: makes the optimizer of the network, as ``functools.partial(noisynat.NoisyKFAC, lr=0.02)`` does; by
            default the natural gradient with its default settings. A ``"mean_field"`` posterior needs one, such as
            ``lambda network: torch.optim.Adam(network.parameters())``.
        scheduler: makes a learning-rate scheduler of the optimizer and the number of optimizer steps, as
            :func:`noisynat.cosine_schedule` does; it is stepped after every optimizer step.
        num_samples: posterior samples of validation, test and prediction.
        seed: of their random numbers.

    Raises:
        ImportError: if Lightning is not installed.
        TypeError: if ``network`` is no VariationalNetwork.
        ValueError: if ``num_samples`` is not positive, or a ``"mean_field"`` posterior comes without an optimizer.
    """

    def __init__(
        self,
        network: VariationalNetwork,
        optimizer: Callable[[VariationalNetwork], Optimizer] | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        *,
        num_samples: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(network, VariationalNetwork):
            raise TypeError(f"LightningNetwork takes a VariationalNetwork, got {type(network).__name__}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if optimizer is None:
            if not network.is_natural:
                raise ValueError("a 'mean_field' posterior needs optimizer=, as lambda n: Adam(n.parameters())")
            optimizer = NoisyNaturalGradient
        self.network = network
        self.num_samples, self.seed = num_samples, seed
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._resumed: dict[str, Any] | None = None  # of a checkpoint: where its batches stood

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`noisynat.VariationalNetwork.forward`."""
        outputs: Tensor = self.network(x)
        return outputs

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one.

        Raises:
            ValueError: if there is a scheduler, and the Trainer is to run without end.
        """
        optimizer = self._make_optimizer(self.network)
        if self._make_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("the scheduler needs the number of steps: give the Trainer max_epochs or max_steps")
        scheduler = self._make_scheduler(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of a batch, which Lightning back-propagates.

        Raises:
            NonFiniteLossError: if it is not finite; parameters are as they were before that step.
        """
        x, y = batch
        loss = self.network.loss_per_replica(x, y)
        objective = loss if self.network.is_natural else loss + self.network.scaled_kl().to(loss.dtype)
        check_finite(objective, f"epoch {self.current_epoch + 1}, batch {batch_idx + 1}")
        self._log_mean("train_loss", loss, self._examples(x), prog_bar=True)
        return objective.sum()

    def on_train_epoch_end(self) -> None:
        """Log the KL and the epoch's running ELBO."""
        weights_kl, noise_kl = self._kls()
        self.log("kl", (weights_kl + noise_kl).mean())
        self.log("train_elbo", self._elbo("train_loss"), prog_bar=True)

    # --- validation, test and prediction ----------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the expected log-likelihood and the predictive's."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the ELBO on the validation data."""
        self.log("val_elbo", self._elbo("val_loss"), prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As :meth:`validation_step`."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`."""
        self.log("test_elbo", self._elbo("test_loss"))

    def predict_step(self, batch: Tensor | Batch, batch_idx: int = 0) -> Predictive:
        """The posterior predictive at a batch's inputs; targets, if it has any, are not looked at."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        generator = torch.Generator(x.device).manual_seed(self.seed)
        return self.network.predict(x, self.num_samples, generator)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        x, y = batch
        network, prediction = self.network, self.predict_step(x)
        targets = network.checked_targets(prediction.samples[0], y)
        expected = torch.stack([network.likelihood.log_prob(f, targets) for f in prediction.samples]).mean(0)
        self._log_mean(f"{stage}_loss", -expected, self._examples(x), prog_bar=True)
        self._log_mean(f"{stage}_log_prob", prediction.log_prob(y), self._examples(x))

    def _elbo(self, loss: str) -> Tensor:
        """Per training example, of the epoch's mean of ``loss``."""
        weights_kl, noise_kl = self._kls()
        kl = (self.network.kl_weight * weights_kl + noise_kl).mean()
        return -self.trainer.callback_metrics[loss] - kl / self.network.num_data

    @torch.no_grad()
    def _kls(self) -> tuple[Tensor, Tensor]:
        """Of weights and of noise, (*replicas,)."""
        network = self.network
        weights = torch.stack([posterior.kl_divergence() for posterior in network.posteriors]).sum(0)
        return weights, network.likelihood.kl(network.replicas)

    def _log_mean(self, name: str, value: Tensor, examples: int, *, prog_bar: bool = False) -> None:
        """Log an epoch's mean over examples and replicas."""
        mean = value.detach().mean()
        self.log(name, mean, on_step=False, on_epoch=True, batch_size=examples, prog_bar=prog_bar)

    def _examples(self, x: Tensor) -> int:
        """B of inputs (B, in) or (*replicas, B, in)."""
        lead = self.network.replicas
        return x.shape[len(lead)] if len(lead) and x.dim() > 2 else len(x)

    # --- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the order of the batches depends on."""
        data = self.trainer.train_dataloader
        loader = data.state_dict() if isinstance(data, TensorBatches) else None
        checkpoint["batches"] = {"random_state": torch.get_rng_state(), "loader": loader}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the batches stood, for training to go on from there."""
        self._resumed = checkpoint.get("batches")

    def on_fit_start(self) -> None:
        """Refuse settings of the Trainer that would change the result, and resume the order of the batches.

        Raises:
            ValueError: saying which setting, and what to use instead.
        """
        self._refuse_settings()
        if self.trainer.ckpt_path is None:
            self._resumed = None
        if self._resumed is not None:
            torch.set_rng_state(self._resumed["random_state"])

    def on_train_start(self) -> None:
        """Resume the batches themselves: in the middle of an epoch Lightning does so, between epochs it does not."""
        data, resumed = self.trainer.train_dataloader, self._resumed
        self._resumed = None
        if resumed is None or resumed["loader"] is None or not isinstance(data, TensorBatches):
            return
        data.load_state_dict(resumed["loader"])
        if resumed["loader"]["next_batch"] == len(data):
            list(data)  # nothing is left of that epoch: on to the next

    # --- what would change the result silently ----------------------------------------------------

    def _refuse_settings(self) -> None:
        trainer = self.trainer
        if self.network.is_natural and trainer.gradient_clip_val:
            raise ValueError(
                f"gradient_clip_val={trainer.gradient_clip_val} would scale the likelihood's part of the step and not "
                "the prior's; leave it out: the optimizer's kl_clip bounds the whole step"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
                raise ValueError(
                    f"{type(callback).__name__} would average the posterior's means and not its covariance; leave it "
                    "out: a learning rate that falls (scheduler=noisynat.cosine_schedule) does what averaging is for"
                )
        if trainer.precision not in ("32-true", "64-true"):
            raise ValueError(f"precision must be '32-true' or '64-true', got {trainer.precision!r}")
        if trainer.world_size > 1:
            raise ValueError(
                f"{trainer.world_size} processes would each have a curvature of their own batches; use devices=1"
            )

    def on_train_epoch_start(self) -> None:
        """Refuse to accumulate gradients over a part of a step's batches.

        Raises:
            ValueError: if ``accumulate_grad_batches`` does not divide the number of an epoch's batches.
        """
        parts, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        if math.isfinite(batches) and batches % parts:
            raise ValueError(
                f"accumulate_grad_batches={parts} does not divide the {batches} batches of an epoch: the last step's "
                f"likelihood would count for {batches % parts}/{parts} against the prior; let it divide them, by the "
                "batch size or limit_train_batches"
            )
