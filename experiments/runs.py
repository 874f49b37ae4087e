"""One method on all splits of one data set: built, trained, evaluated, and kept in a folder.

A folder holds ``splits.csv`` (a row per split), ``history.csv``, ``predictions.csv`` (the first split's test part),
``pointwise.npz`` (every test point's log density, mean and CDF, standardized units) and ``run.json``. A run that was
stopped goes on where it stood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import noisynat
from experiments import records, summary
from experiments.methods import Method
from experiments.protocol import Splits

_LARGE_SETS = ("protein", "year")
LEVEL = 0.95
_CHECKPOINT_INTERVAL = 60.0  # seconds
_SHARPNESS = 10.0  # of members' weights, per nat of ELBO per datum: those that went astray drop out, others are equal


@dataclass(frozen=True)
class Configuration:
    """What all methods share. The noise prior is weak: Gamma(1, 0.001) on standardized targets.

    Several prior variances are those of a mixture's members, or of the splits if it has one member.
    """

    epochs: int
    batch_size: int
    hidden: int = 50
    prior_variance: float | tuple[float, ...] | Literal["empirical_bayes"] = 1.0
    last_prior_variance: float | tuple[float, ...] | None = None  # of the last layer, where it has another
    prior_scale: Literal["fan_in"] | None = None
    a0: float = 1.0
    b0: float = 0.001
    initial_noise: float = 0.1
    noise_step: float = 0.05
    initial_precision: float = 10.0
    kl_weight: float = 1.0
    elbo_samples: int = 100
    test_samples: int = 500  # of a prediction, its members together
    predictive: Literal["sampled", "linearized"] = "sampled"
    seed: int = 0

    @classmethod
    def for_size(cls, name: str, num_train: int) -> Configuration:
        """About 4,000 steps, of batches of 32, from 4,000 examples on of 128, and from 20,000 on of 512.

        The noise averages over an epoch, if that is more than 20 batches. Faster, it feeds on itself where targets have
        next to none: a wild draw makes more noise, that less curvature, that wilder draws.
        """
        batch_size = 32 if num_train < 4000 else 128 if num_train < 20_000 else 512
        return cls(
            epochs=max(round(4000 * batch_size / num_train), 1),
            batch_size=batch_size,
            hidden=100 if name in _LARGE_SETS else 50,
            noise_step=min(0.05, batch_size / num_train),
            elbo_samples=100 if num_train < 4000 else 20,
        )


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A method ready to be trained: what :func:`noisynat.fit` wants."""

    network: noisynat.VariationalNetwork
    optimizer: Optimizer
    data: noisynat.TensorBatches
    scheduler: Any


def build(method: Method, splits: Splits, config: Configuration) -> noisynat.VariationalNetwork:
    """The network of ``method``, one replica per split and member; the same initial means for every method."""
    torch.manual_seed(config.seed)
    outputs = 2 if method.heteroscedastic else 1
    net = nn.Sequential(nn.Linear(splits.features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, outputs))
    likelihood = noisynat.HeteroscedasticGaussianLikelihood if method.heteroscedastic else noisynat.GaussianLikelihood
    last_variance = config.prior_variance if config.last_prior_variance is None else config.last_prior_variance
    return noisynat.VariationalNetwork(
        net,
        likelihood=likelihood(
            noise="gamma",
            a0=config.a0,
            b0=config.b0,
            initial_std=config.initial_noise,
            step_size=config.noise_step,
        ),
        prior={
            "0": noisynat.GaussianPrior(config.prior_variance, config.prior_scale),
            "2": noisynat.GaussianPrior(last_variance, config.prior_scale),
        },
        posterior=method.structure,
        num_data=splits.num_train,
        kl_weight=config.kl_weight,
        replicas=splits.count if method.members == 1 else (splits.count, method.members),
        initial_precision=config.initial_precision,
        seed=config.seed,
    )


def prepare(
    method: Method,
    splits: Splits,
    config: Configuration,
    epochs: int | None = None,
    start: noisynat.VariationalNetwork | None = None,
) -> Training:
    """The network of one phase, its optimizer, batches and learning-rate schedule.

    Args:
        method: of the phase.
        splits: the data.
        config: of the run.
        epochs: of the phase; by default the whole run's.
        start: the network of the phase before, whose posterior goes over.
    """
    if start is None:
        network = build(method, splits, config)
    else:
        assert method.structure in ("dense", "dense_per_layer")
        network = start.with_posterior(method.structure)
    optimizer = method.optimizer(network)
    data = noisynat.TensorBatches(
        members_of(splits.x_train, network.replicas),
        members_of(splits.y_train, network.replicas),
        config.batch_size,
        replicas=network.replicas,
        seed=config.seed,
    )
    steps = (config.epochs if epochs is None else epochs) * len(data)
    scheduler = noisynat.cosine_schedule(optimizer, steps, curvature_final=method.curvature_final)
    return Training(network, optimizer, data, scheduler)


def members_of(data: Tensor, replicas: Sequence[int]) -> Tensor:
    """Data of the splits (R, ...) given to all members: (R, M, ...) where there are M, (R, ...) otherwise."""
    return data if len(replicas) == 1 else data.unsqueeze(1).expand(*replicas, *data.shape[1:])


def train(
    method: Method,
    splits: Splits,
    config: Configuration,
    folder: Path | None = None,
    progress: bool = False,
    on_epoch: Callable[[noisynat.VariationalNetwork, noisynat.History], None] | None = None,
    compile: bool = False,
) -> tuple[noisynat.VariationalNetwork, noisynat.History]:
    """Train ``method`` on all splits at once, phase after phase.

    Args:
        method: to be trained.
        splits: the data.
        config: of the run.
        folder: of the checkpoints, one per phase, from which training resumes where they exist; None for none.
        progress: whether to show it.
        on_epoch: called with the network and the history of all phases so far after every epoch.
        compile: as for :func:`noisynat.fit`.

    Returns:
        The network and the history of all phases.
    """
    network: noisynat.VariationalNetwork | None = None
    history = noisynat.History()
    for number, (phase, epochs) in enumerate(method.phases(config.epochs)):
        run = prepare(phase, splits, config, epochs, network)
        network, before = run.network, history
        history = noisynat.fit(
            run.network,
            run.optimizer,
            run.data,
            epochs,
            scheduler=run.scheduler,
            kl_warmup=phase.kl_warmup,
            kl_start=phase.kl_start,
            noise_warmup=None if number else phase.noise_warmup,  # it is over when the second phase begins
            progress=progress,
            checkpoint=None if folder is None else folder / f"checkpoint-{number}.pt",
            checkpoint_interval=0.0 if folder is None else _CHECKPOINT_INTERVAL,
            on_epoch=_reporter(on_epoch, run.network, before),
            compile=compile,
        )
        history = joined(before, history)
    assert network is not None
    return network, history


def _reporter(
    on_epoch: Callable[[noisynat.VariationalNetwork, noisynat.History], None] | None,
    network: noisynat.VariationalNetwork,
    before: noisynat.History,
) -> Callable[[int, noisynat.History], None] | None:
    if on_epoch is None:
        return None
    return lambda _, history: on_epoch(network, joined(before, history))


def joined(first: noisynat.History, second: noisynat.History) -> noisynat.History:
    """Two histories as one: the second's epochs and seconds go on from the first's."""
    if not len(first):
        return second
    offsets = {"epoch": first["epoch"][-1], "seconds": first["seconds"][-1]}
    both = noisynat.History()
    for key, values in second.items():
        both[key] = [*first[key], *(value + offsets[key] if key in offsets else value for value in values)]
    return both


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of all phases."""
    for path in folder.glob("checkpoint-*.pt"):
        path.unlink()


# --- evaluation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What a trained method says of the test parts.

    Args:
        rows: a row per split, raw units.
        first: the first split's test part with predictions, raw units.
        pointwise: of every test point, (R, n), standardized units: ``log_prob``, ``mean`` and ``cdf`` at the target.
    """

    rows: pd.DataFrame
    first: pd.DataFrame
    pointwise: dict[str, np.ndarray]


def evaluate(network: noisynat.VariationalNetwork, splits: Splits, config: Configuration) -> Evaluation:
    """Figures of every split; those of an ELBO are means over members."""
    elbo = network.elbo(
        members_of(splits.x_train, network.replicas),
        members_of(splits.y_train, network.replicas),
        num_samples=config.elbo_samples,
    )
    prediction = network.predict(
        members_of(splits.x_test, network.replicas),
        num_samples=-(-config.test_samples // network.replicas[1:].numel()),  # of each member
        predictive=config.predictive,
        combine=weights_of_members(elbo),
    )
    pointwise = {
        "log_prob": prediction.log_prob(splits.y_test),
        "mean": prediction.mean.squeeze(-1),
        "cdf": prediction.cdf(splits.y_test).squeeze(-1),
    }
    of_training = {
        "elbo_per_datum": elbo.per_datum,
        "elbo_error": elbo.standard_error / splits.num_train,
        "kl": elbo.kl,
    }
    scale = splits.y_scale
    of_prediction = {
        "epistemic_std": prediction.epistemic_variance.mean((-2, -1)).sqrt() * scale,
        "noise_std": prediction.aleatoric_variance.mean((-2, -1)).sqrt() * scale,
    }
    arrays = {key: value.double().numpy() for key, value in pointwise.items()}
    columns = {
        "split": np.arange(splits.count),
        **figures_of(arrays, splits),
        **{key: _per_split(value) for key, value in {**of_training, **of_prediction}.items()},
    }
    return Evaluation(pd.DataFrame(columns), _first_split(prediction, splits), arrays)


def weights_of_members(elbo: noisynat.ELBO) -> Tensor | None:
    """Of a mixture, (R, M), by the ELBO on their training part; None where every split has one network."""
    return torch.softmax(_SHARPNESS * elbo.per_datum, dim=-1) if elbo.total.dim() > 1 else None


def _per_split(value: Tensor) -> np.ndarray:
    """A number per split (R,) of (R,) or, as the mean over members, (R, M)."""
    array: np.ndarray = value.double().reshape(len(value), -1).mean(1).numpy()
    return array


def figures_of(pointwise: dict[str, np.ndarray], splits: Splits) -> dict[str, np.ndarray]:
    """RMSE and test log-likelihood in raw units and the coverage of central 95% intervals, each (R,)."""
    scale = splits.y_scale.double().numpy()
    squares = (pointwise["mean"] - splits.y_test.squeeze(-1).double().numpy()) ** 2
    return {
        "rmse": np.sqrt(squares.mean(1)) * scale,
        "log_likelihood": pointwise["log_prob"].mean(1) - np.log(scale),
        "coverage": (np.abs(pointwise["cdf"] - 0.5) <= LEVEL / 2).mean(1),
    }


def _first_split(prediction: noisynat.Predictive, splits: Splits) -> pd.DataFrame:
    """Observed and predicted targets of the first split's test part with a 95% interval, in raw units."""
    lower, upper = prediction.replica(0).interval(LEVEL)
    columns = {
        "observed": splits.y_test[0],
        "predicted": prediction.mean[0],
        "lower": lower,
        "upper": upper,
        "epistemic_std": prediction.epistemic_variance[0].sqrt(),
    }
    offset, scale = splits.y_mean[0], splits.y_scale[0]
    raw = {key: value[:, 0] * scale + (0 if key == "epistemic_std" else offset) for key, value in columns.items()}
    return pd.DataFrame({key: value.numpy() for key, value in raw.items()})


# --- a run and its folder -------------------------------------------------------------------------


def run_one(
    method: Method, splits: Splits, config: Configuration, folder: Path, progress: bool, module: str = __name__
) -> bool:
    """Train and evaluate ``method`` into ``folder``, unless it holds this very run; whether there was work to do."""
    config = replace(config, **method.configuration)
    settings = plain({**asdict(config), **asdict(method), "splits": splits.count, "num_train": splits.num_train})
    done = records.read_json(folder / "run.json")
    if done is not None and done["settings"] == settings:
        return False
    if records.read_json(folder / "started.json") != settings:
        remove_checkpoints(folder)
        records.write_json(folder / "started.json", settings)
    started = time.perf_counter()
    network, history = train(method, splits, config, folder, progress)
    result = evaluate(network, splits, config)
    rows = result.rows
    rows.insert(0, "dataset", splits.name)
    rows.insert(1, "method", method.name)
    rows["training_seconds"] = history["seconds"][-1]
    records.write_table(folder / "splits.csv", rows)
    records.write_table(folder / "predictions.csv", result.first)
    records.write_table(folder / "history.csv", summary.history_table(history))
    records.write_arrays(folder / "pointwise.npz", result.pointwise)
    total = time.perf_counter() - started
    records.write_json(folder / "run.json", {"settings": settings, "seconds": total, **records.provenance(module)})
    remove_checkpoints(folder)
    return True


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` as they read back from a JSON file (tuples are lists there)."""
    value: dict[str, Any] = json.loads(json.dumps(settings))
    return value
