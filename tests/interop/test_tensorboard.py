"""What TensorBoard reads back is what the history says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import noisynat
from noisynat.interop.tensorboard import TensorBoardCallback

COLUMNS = ("loss", "kl", "elbo", "lr", "kl_weight", "seconds")


def network(**settings: Any) -> noisynat.VariationalNetwork:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood("gamma"), num_data=20, **settings)


def fit(bnn: noisynat.VariationalNetwork, epochs: int, folder: Path, **options: Any) -> noisynat.History:
    g = torch.Generator().manual_seed(0)
    data = noisynat.TensorBatches(torch.randn(20, 3, generator=g), torch.randn(20, 1, generator=g), batch_size=6)
    with SummaryWriter(str(folder)) as writer:
        write = TensorBoardCallback(writer, bnn, prefix="run")
        optimizer = noisynat.NoisyNaturalGradient(bnn)
        return noisynat.fit(bnn, optimizer, data, epochs, progress=False, kl_warmup=0.5, on_epoch=write, **options)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every tag in the event files of a folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(values: list[float]) -> list[tuple[int, float]]:
    """Event files hold single precision."""
    return [(epoch, float(np.float32(value))) for epoch, value in enumerate(values, start=1)]


@pytest.mark.parametrize("posterior", ["kronecker", "dense"])
def test_event_file_agrees_with_the_history(posterior: str, tmp_path: Path) -> None:
    bnn = network(posterior=posterior)
    history = fit(bnn, 3, tmp_path)
    read = scalars(tmp_path)
    for column in COLUMNS:
        assert read[f"run/{column}"] == expected(history[column])
    layers = ["0+2"] if posterior == "dense" else ["0", "2"]
    parts = [f"run/kl_of/{name}" for name in [*layers, "noise"]]
    assert set(read) == {f"run/{column}" for column in COLUMNS} | set(parts)
    total = np.sum([[value for _, value in read[part]] for part in parts], axis=0)
    np.testing.assert_allclose(total, history["kl"], rtol=1e-6)
    last = bnn.likelihood.kl(torch.Size()).item()
    assert read["run/kl_of/noise"][-1] == (3, pytest.approx(last, rel=1e-6))


def test_replicas_have_a_mean_and_a_tag_each(tmp_path: Path) -> None:
    history = fit(network(replicas=(2, 3)), 2, tmp_path)
    read = scalars(tmp_path)
    elbo = np.array(history["elbo"])  # (epochs, 2, 3)
    assert read["run/elbo"] == expected(elbo.mean((1, 2)).tolist())
    assert read["run/elbo/1,2"] == expected(elbo[:, 1, 2].tolist())
    assert read["run/lr"] == expected(history["lr"])
    assert "run/lr/0,0" not in read
    assert len(read["run/kl_of/2/0,1"]) == 2


def test_a_resumed_run_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    fit(network(), 2, tmp_path / "events", checkpoint=tmp_path / "run.pt")
    history = fit(network(), 5, tmp_path / "events", checkpoint=tmp_path / "run.pt")
    assert scalars(tmp_path / "events")["run/elbo"] == expected(history["elbo"])


def test_importing_the_module_does_not_import_tensorboard() -> None:
    code = "import sys, noisynat.interop.tensorboard; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
