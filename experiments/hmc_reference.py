"""The exact posterior of the UCI network by NUTS, drawn until it has converged and kept on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn

import noisynat
from experiments import records
from experiments.protocol import Splits
from experiments.runs import Configuration
from noisynat.interop.pyro import NUTSPosterior, sample_nuts

# What of the settings decides the posterior and its chains; the rest is about methods and how long to draw.
_DECISIVE = (
    "split",
    "prior_variance",
    "prior_scale",
    "chains",
    "warmup",
    "max_tree_depth",
    "hidden",
    "a0",
    "b0",
    "seed",
)


@dataclass(frozen=True)
class Settings:
    """What the reference is drawn with, and how the comparison is made.

    Args:
        split: number of the split.
        chains: at least 2; an even number, to be halved.
        warmup: draws per chain for adaptation.
        part: draws per chain between two looks at R-hat.
        draws: per chain, at least.
        max_draws: per chain, at most.
        max_tree_depth: a draw takes at most 2^depth - 1 leapfrog steps.
        threshold: of R-hat.
        samples: of the predictions that are compared.
    """

    split: int = 0
    chains: int = 4
    warmup: int = 300
    part: int = 300
    draws: int = 1200
    max_draws: int = 4800
    max_tree_depth: int = 10
    threshold: float = 1.01
    samples: int = 2000


def one_split(splits: Splits, split: int) -> Splits:
    """Split number ``split`` alone."""
    tensors = {field.name: getattr(splits, field.name)[split : split + 1] for field in fields(splits)[1:]}
    return replace(splits, **tensors)


def reference(
    splits: Splits,
    config: Configuration,
    settings: Settings,
    folder: Path,
    command: str,
    *,
    processes: int,
    progress: bool,
) -> NUTSPosterior:
    """NUTS's draws from ``folder``, drawn on until they have converged or are as many as they may be.

    Whether they have converged is the result's own to say; the network, prior and noise are those of the methods.
    ``command`` is the module whose run this is, for the record.
    """
    network = exact_network(splits, config)
    everything = {**asdict(config), **asdict(settings)}
    about = {"dataset": splits.name, "num_train": splits.num_train, **{key: everything[key] for key in _DECISIVE}}
    path = folder / "reference.pt"
    recorded = records.read_json(folder / "reference.json")
    result = None
    if path.exists() and recorded is not None and recorded["settings"] == about:
        result = NUTSPosterior.load(path, network)
        result.threshold = settings.threshold
    while result is None or result.draws < settings.draws or not result.converged:
        if result is not None and result.draws >= settings.max_draws:
            break
        result = sample_nuts(
            network,
            splits.x_train[0],
            splits.y_train[0],
            num_samples=settings.part,
            warmup=settings.warmup,
            chains=settings.chains,
            seed=config.seed,
            max_tree_depth=settings.max_tree_depth,
            init="prior",  # as far apart as chains should be that are to find each other
            check_at=splits.x_test[0],
            threshold=settings.threshold,
            processes=processes,
            progress=progress,
            resume=result,
        )
        folder.mkdir(parents=True, exist_ok=True)
        result.save(path)
        content = {"settings": about, "diagnostics": result.summary(), **records.provenance(command)}
        records.write_json(folder / "reference.json", content)
    return result


def exact_network(splits: Splits, config: Configuration) -> noisynat.VariationalNetwork:
    """A network without replicas, of the methods' architecture, prior and likelihood.

    NUTS takes no more of it than that: its posterior is as it was initialized.
    """
    torch.manual_seed(config.seed)
    net = nn.Sequential(nn.Linear(splits.features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
    return noisynat.VariationalNetwork(
        net,
        noisynat.GaussianLikelihood(noise="gamma", a0=config.a0, b0=config.b0),
        noisynat.GaussianPrior(config.prior_variance, config.prior_scale),
        "diagonal",
        num_data=splits.num_train,
        seed=config.seed,
    )
