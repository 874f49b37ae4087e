"""The comparison with NUTS, on a small set: references, resumption, tables and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import noisynat
import uci_data
from experiments import hmc_agreement, hmc_reference, records, runs
from experiments.agreement_report import HALVES
from experiments.hmc_agreement import KNOWN
from experiments.hmc_reference import exact_network, one_split
from experiments.methods import METHODS
from experiments.protocol import Splits, load_splits
from experiments.runs import Configuration, build, train


class SmallSet:
    """Stands in for a loaded data set: 40 rows, 3 features, 2 splits."""

    name = "boston"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.X = rng.normal(5, 2, (40, 3))
        self.y = 100 + 7 * self.X[:, 0] + 3 * rng.normal(0, 1, 40)

    def splits(self) -> list[uci_data.Split]:
        order = np.arange(40)
        return [uci_data.Split(order[:30], order[30:]), uci_data.Split(order[10:], order[:10])]


@pytest.fixture(autouse=True)
def small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uci_data, "load", lambda name: SmallSet())


QUICK = {"--methods": "bbb,nng-full", "--chains": 2, "--warmup": 6, "--draws": 12, "--part": 6, "--epochs": 2}
QUICK |= {"--hidden": 2, "--max-tree-depth": 4}


def run(output: Path, *arguments: str, threshold: str = "50") -> Any:
    quick = [str(part) for option in QUICK.items() for part in option]
    given = ["boston", *quick, "--threshold", threshold, "--output", str(output), *arguments]
    return CliRunner().invoke(hmc_agreement.app, given)


def test_the_command_writes_tables_figure_and_reference_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "agreement.csv")
    assert list(table.method) == [HALVES, "bbb", "bbb", "nng-full", "nng-full"]
    assert list(table.predictive) == ["sampled", "sampled", "linearized", "sampled", "linearized"]
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()
    text = (tmp_path / "agreement.md").read_text(encoding="utf-8")
    assert "KL(NUTS, q)" in text
    assert "epist. sd: rank corr." in text
    assert "prior variance 1 / inputs of the layer; 2 x 12 draws after 6" in text
    assert (tmp_path / "boston-split0.png").read_bytes().startswith(b"\x89PNG")
    diagnostics = records.read_json(tmp_path / "boston-split0" / "reference.json")
    assert diagnostics is not None
    assert diagnostics["diagnostics"]["draws"] == 12
    assert diagnostics["command"].startswith("python -m experiments.hmc_agreement")

    def nothing(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("there is nothing to do")

    with monkeypatch.context() as patched:  # the same again: all from files
        patched.setattr(hmc_reference, "sample_nuts", nothing)
        patched.setattr(runs, "train", nothing)
        again = run(tmp_path)
    assert again.exit_code == 0, again.output
    assert "done before" in again.output
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "agreement.csv"), table)

    before = torch.load(tmp_path / "boston-split0" / "reference.pt", weights_only=True)["weights"]
    assert run(tmp_path, "--draws", "18").exit_code == 0  # more draws go on with the chains, and methods are run anew
    after = torch.load(tmp_path / "boston-split0" / "reference.pt", weights_only=True)["weights"]
    assert after.shape[1] == 18
    assert torch.equal(after[:, :12], before)
    assert run(tmp_path, "--prior-variance", "2").exit_code == 0  # another posterior starts anew
    assert not torch.equal(torch.load(tmp_path / "boston-split0" / "reference.pt")["weights"][:, :12], before)


def test_an_unconverged_reference_is_reported_and_not_used(tmp_path: Path) -> None:
    result = run(tmp_path, "--max-draws", "12", threshold="1.0001")
    assert result.exit_code == 1
    assert "not converged" in result.output
    assert "no converged reference for: boston" in result.output
    assert not (tmp_path / "agreement.csv").exists()
    assert not (tmp_path / "boston-split0" / "bbb").exists()
    recorded = records.read_json(tmp_path / "boston-split0" / "reference.json")
    assert recorded is not None
    assert recorded["diagnostics"]["converged"] is False


def small_splits(split: int = 0) -> Splits:
    return one_split(load_splits(SmallSet()), split)  # type: ignore[arg-type]


def test_one_split_is_that_split() -> None:
    data, splits = SmallSet(), small_splits(1)
    train = data.y[10:]
    np.testing.assert_allclose(splits.y_test[0, :, 0], (data.y[:10] - train.mean()) / train.std(), rtol=1e-5)
    assert splits.count == 1


@pytest.mark.parametrize("scale", ["fan_in", None])
@pytest.mark.parametrize("method", ["nng-kron", "nng-full", "bbb", "mix-kron"])
def test_reference_and_methods_have_the_same_model(scale: Any, method: str) -> None:
    splits = small_splits()
    config = Configuration(epochs=1, batch_size=10, hidden=4, prior_variance=2.0, prior_scale=scale)
    for network in (exact_network(splits, config), build(KNOWN[method], splits, config)):
        per_layer = torch.cat([p.prior_variance.reshape(len(p.layers), -1) for p in network.posteriors])
        expected = torch.tensor([2 / 3, 2 / 4] if scale else [2.0, 2.0], dtype=torch.float64)
        torch.testing.assert_close(per_layer, expected[:, None].expand(per_layer.shape))
        assert [(layer.out_features, layer.columns) for layer in network.layers] == [(4, 4), (1, 5)]
        assert network.num_data == 30
        assert type(network.likelihood) is noisynat.GaussianLikelihood
        assert (network.likelihood.a0, network.likelihood.b0) == (config.a0, config.b0)


@pytest.mark.parametrize("predictive", ["sampled", "linearized"])
def test_members_predict_as_one_mixture(predictive: Any) -> None:
    splits = small_splits()
    network, _ = train(KNOWN["mix-full"], splits, Configuration(epochs=4, batch_size=10, hidden=3))
    assert hmc_agreement.predict(network, splits, 55, predictive).samples.shape == (55, 10, 1)


def test_figures_are_in_raw_units() -> None:
    data, splits = SmallSet(), small_splits()
    network, _ = train(METHODS["nng-kron"], splits, Configuration(epochs=2, batch_size=10, hidden=4))
    prediction = hmc_agreement.predict(network, splits, 50)
    table = hmc_agreement.points(prediction, prediction, splits)
    figures = hmc_agreement.accuracy(prediction, splits)
    observed = data.y[30:]
    assert figures["rmse"] == pytest.approx(np.sqrt(np.mean((table.method_mean - observed) ** 2)), rel=1e-4)
    scaled = replace(splits, y_scale=10 * splits.y_scale)
    assert hmc_agreement.accuracy(prediction, scaled)["rmse"] == pytest.approx(10 * figures["rmse"], rel=1e-4)
    shift = figures["log_likelihood"] - hmc_agreement.accuracy(prediction, scaled)["log_likelihood"]
    assert shift == pytest.approx(np.log(10), rel=1e-4)
    assert (table.nuts_std > table.nuts_epistemic_std).all()


MISTAKES = [
    ["--methods", "nng-best"],
    ["--methods", "mix-kron-het"],  # its noise varies, the reference's does not
    ["--chains", "3"],
    ["--prior-scale", "fan-in"],
    ["bosten"],
]


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_fail_before_anything_is_drawn(tmp_path: Path, arguments: list[str]) -> None:
    result = run(tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert arguments[-1].split("-")[0] in result.output
    assert not any(tmp_path.iterdir())
