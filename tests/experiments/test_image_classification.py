"""The image experiment: files as they come, scores against their definitions, and that a stopped run goes on."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from experiments import image_classification, image_methods, images
from experiments.image_methods import METHODS, Configuration, Method
from experiments.image_networks import NETWORKS

IDX = {"train-images-idx3-ubyte": (6, 28, 28), "train-labels-idx1-ubyte": (6,)} | {
    "t10k-images-idx3-ubyte": (4, 28, 28), "t10k-labels-idx1-ubyte": (4,),
}  # fmt: skip


def write_idx(path: Path, values: np.ndarray, *, zipped: bool) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = head + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if zipped else content)


def fashion(folder: Path, *, zipped: bool = True) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 256 if "images" in name else 10, shape) for name, shape in IDX.items()}
    for name, values in arrays.items():
        write_idx(folder / (name + ".gz" * zipped), values, zipped=zipped)
    return arrays


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
def test_fashion_mnist_from_its_files(tmp_path: Path, zipped: bool, inside: str) -> None:
    arrays = fashion(tmp_path / inside, zipped=zipped)
    found = images.load("fashion-mnist", tmp_path)
    train, test = (arrays[f"{part}-images-idx3-ubyte"] / 255.0 for part in ("train", "t10k"))
    mean, std = train.mean(), train.std(ddof=1)
    torch.testing.assert_close(found.x_train, torch.tensor((train - mean) / std).float().unsqueeze(1))
    torch.testing.assert_close(found.x_test, torch.tensor((test - mean) / std).float().unsqueeze(1))
    assert found.y_test.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert found.others["digits"].shape == (1797, 1, 28, 28)


def test_fashion_mnist_from_the_environments_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion(tmp_path)
    monkeypatch.setenv("NOISYNAT_FASHION_MNIST_DIR", str(tmp_path))
    assert len(images.load("fashion-mnist").x_train) == 6


def test_fashion_mnist_is_downloaded_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and checksum, from one place."""
    import pooch

    fashion(tmp_path)
    asked: list[tuple[str, str]] = []

    def retrieve(url: str, known_hash: str, fname: str, path: Any) -> str:
        asked.append((url, known_hash))
        return str(tmp_path / fname)

    monkeypatch.delenv("NOISYNAT_FASHION_MNIST_DIR", raising=False)
    monkeypatch.setattr(images, "_DEBIAN", tmp_path / "nowhere")
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(images.load("fashion-mnist").x_train) == 6
    assert all(url.startswith("http://fashion-mnist.s3-website") and checksum[:4] == "md5:" for url, checksum in asked)
    assert len(asked) == 4

    def fails(*args: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(pooch, "retrieve", fails)
    with pytest.raises(images.ImagesNotFoundError, match=r"cannot be had from .* \(no network\)"):
        images.load("fashion-mnist")


def test_cifar_from_its_binary_version(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = {name: generator.integers(0, 256, (5, 3073)).astype(np.uint8) for name in images._CIFAR_BATCHES}
    rows["test_batch.bin"] = generator.integers(0, 256, (4, 3073)).astype(np.uint8)
    for name, values in rows.items():
        values[:, 0] %= 10
        values.tofile(folder / name)
    found = images.load("cifar-10", tmp_path)
    assert found.x_train.shape == (25, 3, 32, 32)
    assert found.y_test.tolist() == rows["test_batch.bin"][:, 0].tolist()
    green = np.concatenate([rows[name][:, 1:].reshape(-1, 3, 32, 32)[:, 1] for name in images._CIFAR_BATCHES]) / 255
    torch.testing.assert_close(found.x_train[:, 1], torch.tensor((green - green.mean()) / green.std(ddof=1)).float())
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(images.ImagesNotFoundError, match=r"data_batch_3\.bin missing"):
        images.load("cifar-10", tmp_path)


def test_digits_need_no_file() -> None:
    found = images.load("digits")
    assert (len(found.x_train), len(found.x_test), found.classes) == (1437, 360, 10)
    assert found.x_train.mean().abs() < 1e-5
    assert found.x_train.std() == pytest.approx(1, abs=1e-5)
    (shuffled,) = found.others.values()
    torch.testing.assert_close(shuffled.flatten(1).sort(1)[0], found.x_test.flatten(1).sort(1)[0])
    assert not torch.equal(shuffled, found.x_test)


def test_settings_are_chosen_without_test_images() -> None:
    digits = images.load("digits")
    chosen = digits.without_test()
    count = len(digits.x_train)
    assert len(chosen.x_test) == count // 10
    assert torch.equal(torch.cat([chosen.x_train, chosen.x_test]), digits.x_train)
    assert torch.equal(torch.cat([chosen.y_train, chosen.y_test]), digits.y_train)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x01\x00\x00\x00\x05\x00"]
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"is no IDX file|has 1 bytes"):
        images.read_idx(tmp_path / "file")


def test_data_sets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(images.ImagesNotFoundError, match="four files of Fashion-MNIST"):
        images.load("fashion-mnist", tmp_path)
    with pytest.raises(ValueError, match="there is no data set 'mnist'"):
        images.load("mnist")


# --- networks and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_images_of_any_size(name: str, shape: tuple[int, int, int]) -> None:
    assert NETWORKS[name](shape, 7, 0.1)(torch.randn(2, *shape)).shape == (2, 7)


def test_sizes_are_those_of_the_papers() -> None:
    """ResNet-20 has 0.27 million parameters (He et al. 2016, table 6)."""
    sizes = {name: sum(p.numel() for p in make((3, 32, 32), 10, 0.0).parameters()) for name, make in NETWORKS.items()}
    assert sizes["resnet-20"] == pytest.approx(0.27e6, rel=0.03)
    lenet = NETWORKS["lenet"]((1, 28, 28), 10, 0.0)
    assert sum(p.numel() for p in lenet.parameters()) == 156 + 2416 + 400 * 120 + 120 + 120 * 84 + 84 + 840 + 10


def test_scores_by_hand() -> None:
    probs = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    found = image_classification.scores(probs, torch.tensor([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.8) + math.log(0.4)) / 3)
    assert found["brier"] == pytest.approx((2 * 0.3**2 + 2 * 0.2**2 + 2 * 0.6**2) / 3)
    assert found["ece"] == pytest.approx((0.3 + 0.2 + 0.6) / 3)


def test_doubt_by_hand() -> None:
    """Three of four pairs are in the right order."""
    sure, unsure, half = [0.99, 0.01], [0.5, 0.5], [0.8, 0.2]
    assert image_classification.doubt(torch.tensor([sure, half]), torch.tensor([unsure, [0.9, 0.1]])) == 0.75
    assert image_classification.entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist() == [
        pytest.approx(math.log(2)), 0.0,
    ]  # fmt: skip


# --- training -------------------------------------------------------------------------------------

FEW = images.load("digits").first(300, 100)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name: str) -> None:
    config = Configuration(epochs=20, batch_size=32, samples=10)
    method = replace(METHODS[name], kl_weight=0.01)
    losses: list[float] = []
    outcome = image_methods.train(method, FEW, config, lambda epoch, seconds, loss, probs: losses.append(loss))
    assert len(losses) == method.members * (10 if name == "kfac-half" else 20)
    assert losses[method.epochs(config) - 1] < 0.8 * losses[0]
    assert outcome.seconds > 0
    assert (outcome.elbo is not None) == (method.posterior is not None)
    probs = outcome.probs(FEW.x_test, 10)
    torch.testing.assert_close(probs.sum(-1), torch.ones(100))
    assert image_classification.scores(probs, FEW.y_test)["accuracy"] > 0.3


def test_an_ensemble_averages_networks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def plain(method: Method, images: Any, config: Configuration, report: Any) -> Any:
        seeds.append(config.seed)
        value = torch.full((1, 2), float(len(seeds)))
        report(1, 1.0, 0.0, lambda x, samples: value)
        return image_methods.Outcome(lambda x, samples: value, 2.0)

    monkeypatch.setattr(image_methods, "_plain", plain)
    reports: list[tuple[float, Tensor]] = []
    for seed in (0, 1):
        outcome = image_methods.train(
            METHODS["ensemble"], FEW, Configuration(seed=seed),
            lambda epoch, seconds, loss, probs: reports.append((seconds, probs(FEW.x_test, 1)[0, 0])),
        )  # fmt: skip
    assert len(set(seeds)) == 10
    assert outcome.seconds == 10.0
    assert [seconds for seconds, _ in reports[:5]] == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert [value.item() for _, value in reports[:5]] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_the_command_writes_its_files_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["digits", "--quick", "--methods", "adam,nng-kron", "--threads", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(image_classification.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    folder = tmp_path / "digits" / "lenet"
    table = pd.read_csv(folder / "results.csv")
    assert table.method.tolist() == ["adam", "nng-kron"]
    assert table.kl_weight.isna().tolist() == [True, False]
    assert {"accuracy", "nll", "ece", "brier", "auroc, shuffled pixels", "elbo", "seconds"} <= set(table.columns)
    text = (folder / "results.md").read_text()
    assert "Posteriors with lambda below 1 are cold" in text
    assert "noisy K-FAC, exact damping" in text
    assert all((folder / name).stat().st_size > 10_000 for name in ("curves.png", "reliability.png"))
    history = pd.read_csv(folder / "nng-kron-0" / "history.csv")
    assert history.epoch.tolist() == [1, 2]
    assert np.load(folder / "adam-0" / "predictions.npz")["probs"].shape == (360, 10)

    monkeypatch.setattr(image_classification, "train", lambda *_: pytest.fail("everything is there"))
    again = CliRunner().invoke(image_classification.app, arguments, catch_exceptions=False)
    assert again.exit_code == 0


def test_the_command_scores_training_images_that_were_held_out(tmp_path: Path) -> None:
    arguments = ["digits", "--quick", "--methods", "bbb", "--kl-weight", "0.5", "--held-out", "--output", str(tmp_path)]
    assert CliRunner().invoke(image_classification.app, arguments, catch_exceptions=False).exit_code == 0
    folder = tmp_path / "digits" / "lenet"
    assert pd.read_csv(folder / "results.csv").kl_weight.tolist() == [0.5]
    digits = images.load("digits")
    held_out = digits.y_train[-(len(digits.y_train) // 10) :]
    assert np.load(folder / "bbb-0" / "predictions.npz")["y"].tolist() == held_out.tolist()


def test_absent_files_end_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(image_classification.app, ["cifar-10", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "CIFAR-10 in its binary version is not in" in result.output
