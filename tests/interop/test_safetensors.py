"""Posteriors in safetensors files: equal predictions, errors that name the entry, and saves that fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import noisynat
from noisynat.interop.safetensors import load_posterior, save_posterior
from noisynat.posteriors.families import STRUCTURES
from tests.examples import data
from tests.states import differences

N = 24
LIKELIHOODS: dict[str, Callable[[], noisynat.Likelihood]] = {
    "fixed": lambda: noisynat.GaussianLikelihood(0.3),
    "learned": lambda: noisynat.GaussianLikelihood("learned", step_size=0.5),
    "gamma": lambda: noisynat.GaussianLikelihood("gamma", step_size=0.5),
    "heteroscedastic": lambda: noisynat.HeteroscedasticGaussianLikelihood("gamma", step_size=0.5),
    "student": lambda: noisynat.StudentTLikelihood(step_size=0.5),
    "poisson": noisynat.PoissonLikelihood,
    "bernoulli": noisynat.BernoulliLikelihood,
    "categorical": noisynat.CategoricalLikelihood,
}


def network(
    posterior: Any = "kronecker", likelihood: str = "gamma", seed: int = 0, hidden: int = 4, **settings: Any
) -> noisynat.VariationalNetwork:
    torch.manual_seed(seed)
    norm = (
        nn.Identity()
        if settings.get("replicas")
        else nn.Sequential(nn.BatchNorm1d(hidden, affine=False), nn.PReLU(hidden))
    )
    net = nn.Sequential(nn.Linear(3, hidden), norm, nn.Tanh(), nn.Linear(hidden, 2))
    settings = {"num_data": N, **settings}
    return noisynat.VariationalNetwork(net, LIKELIHOODS[likelihood](), posterior=posterior, **settings)


def train(bnn: noisynat.VariationalNetwork, likelihood: str = "gamma", steps: int = 7) -> None:
    """Some steps, the last ones after the last refresh, so that averages and covariance differ."""
    x, y = data(likelihood, N, seed=1)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(bnn.parameters(), lr=0.1)
    if bnn.is_natural:
        optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.1, betas=(0.9, 0.8), refresh_every=5)
    bnn.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (bnn.loss(x, y) if bnn.is_natural else bnn.negative_elbo(x, y)).backward()
        optimizer.step()
    bnn.eval()


def assert_same_predictions(*networks: noisynat.VariationalNetwork) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(9))
    first, second = (bnn.eval().predict(x, 8, torch.Generator().manual_seed(2)) for bnn in networks)
    assert torch.equal(first.samples, second.samples)
    assert torch.equal(first.variance, second.variance)
    assert torch.equal(*(p.sample(3, torch.Generator().manual_seed(3)) for p in (first, second)))


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"replicas": (2,)}, {"kl_weight": 0.3}])
@pytest.mark.parametrize("posterior", STRUCTURES)
def test_loaded_posteriors_predict_alike(posterior: str, settings: dict[str, Any], tmp_path: Path) -> None:
    prior = noisynat.GaussianPrior("empirical_bayes" if posterior != "mean_field" else 1.0)
    bnn = network(posterior, prior=prior, **settings)
    train(bnn)
    save_posterior(bnn, tmp_path / "posterior.safetensors")
    loaded = network(posterior, seed=5, prior=prior, **(settings | {"kl_weight": 1.0}))
    load_posterior(loaded, tmp_path / "posterior.safetensors")
    assert_same_predictions(bnn, loaded)
    assert loaded.kl_weight == bnn.kl_weight
    for mine, its in zip(bnn.posteriors, loaded.posteriors, strict=True):
        assert torch.equal(mine.kl_divergence(), its.kl_divergence())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_go_along(likelihood: str, tmp_path: Path) -> None:
    bnn, loaded = network(likelihood=likelihood), network(likelihood=likelihood, seed=5)
    train(bnn, likelihood)
    if likelihood == "heteroscedastic":
        bnn.likelihood.strength.fill_(0.5)
    save_posterior(bnn, tmp_path / "file")
    load_posterior(loaded, str(tmp_path / "file"))
    assert_same_predictions(bnn, loaded)
    assert differences(bnn.likelihood.state_dict(), loaded.likelihood.state_dict()) == []


@pytest.mark.parametrize("posterior", ["kronecker", "eigen_corrected", "dense"])
@pytest.mark.parametrize("initial_precision", [0.0, 1.0])
def test_training_goes_on_from_the_covariance(posterior: str, initial_precision: float, tmp_path: Path) -> None:
    """The statistics are those of the last refresh: refreshing at once changes nothing but rounding."""
    bnn, loaded = (network(posterior, seed=s, initial_precision=initial_precision) for s in (0, 5))
    train(bnn)
    save_posterior(bnn, tmp_path / "file")
    load_posterior(loaded, tmp_path / "file")
    before = [posterior.covariance().detach() for posterior in loaded.posteriors]
    for posterior in loaded.posteriors:
        posterior.refresh()
    after = [posterior.covariance().detach() for posterior in loaded.posteriors]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-6)
    train(loaded)


def test_the_file_holds_what_predictions_need_and_says_of_what_it_is(tmp_path: Path) -> None:
    bnn = network("kronecker", "fixed", kl_weight=0.1)
    save_posterior(bnn, tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    settings = json.loads(metadata.pop("likelihood"))
    assert metadata == {
        "format": "noisynat posterior 1",
        "version": noisynat.__version__,
        "structure": "kronecker",
        "num_data": "24",
        "kl_weight": "0.1",
    }
    assert settings["class"] == "GaussianLikelihood"
    assert settings["kind"] == "fixed"
    curvature = {
        f"_posteriors.{i}.curvature.{key}" for i in (0, 1) for key in ("damping", "refreshed.A", "refreshed.S")
    }
    others = {"0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight"}
    likelihood = {"likelihood.residual", "likelihood.outputs_per_precision"}
    means, priors = {f"net.{i}.mean" for i in (0, 3)}, {f"_posteriors.{i}.prior_variance" for i in (0, 1)}
    assert names == curvature | means | priors | likelihood | {f"net.1.{name}" for name in others}


def test_tensors_may_share_memory_and_have_any_layout(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    bnn, loaded = (
        noisynat.VariationalNetwork(
            nn.Sequential(shared, nn.Tanh(), shared), noisynat.GaussianLikelihood(), num_data=N, seed=seed
        )
        for seed in (0, 1)
    )
    mean = bnn.layers[0].mean
    mean.data = (2 * mean.data).mT.contiguous().mT
    save_posterior(bnn, tmp_path / "file")
    load_posterior(loaded, tmp_path / "file")
    assert_same_predictions(bnn, loaded)


# --- files that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network("diagonal"), r"structure is kronecker in the file and diagonal in the network"),
        (lambda: network(num_data=9), r"num_data is 24 in the file and 9 in the network"),
        (lambda: network(likelihood="student"), r"likelihood\.class is 'GaussianLikelihood' .* 'StudentTLikelihood'"),
        (lambda: network(likelihood="fixed"), r"likelihood\.kind is 'gamma' in the file and 'fixed' in the network"),
        (
            lambda: network(hidden=5),
            r"net\.0\.mean is float32 \(4, 4\) in the file and float32 \(5, 4\) in",
        ),
        (lambda: network().double(), r"net\.0\.mean is float32 \(4, 4\) in the file and float64 \(4, 4\)"),
        (lambda: network(replicas=2), r"net\.0\.mean is float32 \(4, 4\) in the file and float32 \(2, 4, 4\)"),
        (lambda: network(replicas=2), r"net\.1\.1\.weight is float32 \(4,\) in the file and missing in the network"),
    ],
)
def test_errors_name_the_entry(other: Callable[[], Any], message: str, tmp_path: Path) -> None:
    save_posterior(network(), tmp_path / "file")
    bnn = other()
    before = {key: value.clone() for key, value in bnn.state_dict().items() if isinstance(value, Tensor)}
    with pytest.raises(ValueError, match=message):
        load_posterior(bnn, tmp_path / "file")
    assert differences(before, {key: bnn.state_dict()[key] for key in before}) == []


def test_a_missing_entry_is_named(tmp_path: Path) -> None:
    save_posterior(network(), tmp_path / "file")
    with safe_open(tmp_path / "file", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    del tensors["_posteriors.1.curvature.refreshed.S"]
    safetensors.torch.save_file(tensors, tmp_path / "file", metadata)
    message = r"_posteriors\.1\.curvature\.refreshed\.S is missing in the file and float32 \(2, 2\) in the network"
    with pytest.raises(ValueError, match=message):
        load_posterior(network(), tmp_path / "file")


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "file")
    with pytest.raises(ValueError, match="is of format None, expected 'noisynat posterior 1'"):
        load_posterior(network(), tmp_path / "file")


# --- saves that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_failed_save_leaves_what_was_there(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bnn, path = network(), tmp_path / "file"
    save_posterior(bnn, path)
    before = path.read_bytes()

    def half_a_file(tensors: Any, filename: Path, metadata: Any) -> None:
        Path(filename).write_bytes(before[: len(before) // 2])
        raise OSError("no space left on device")

    def no_replace(*_: Any) -> None:
        raise OSError("no space left on device")

    train(bnn)
    if failing == "write":
        monkeypatch.setattr(safetensors.torch, "save_file", half_a_file)
    else:
        monkeypatch.setattr("os.replace", no_replace)
    with pytest.raises(OSError, match="no space left"):
        save_posterior(bnn, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


class Memory(nn.Module):
    """A module with state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 2), Memory())
    bnn = noisynat.VariationalNetwork(net, noisynat.GaussianLikelihood(), num_data=N)
    with pytest.raises(TypeError, match=r"net\.1\._extra_state is a dict; a safetensors file holds tensors only"):
        save_posterior(bnn, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ImportError, match=r'^safetensors is not installed; get it with pip install "noisynat\[safetensors\]"$'
    ):
        save_posterior(network(), tmp_path / "file")


def test_importing_the_module_does_not_import_safetensors() -> None:
    code = "import sys, noisynat.interop.safetensors; sys.exit('safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
