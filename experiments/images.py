"""Image data sets from their usual files: Fashion-MNIST, CIFAR-10, and scikit-learn's digits, which need no file.

Fashion-MNIST (Xiao et al. 2017) is looked for in a folder of IDX files, plain or gzipped, in torchvision's layout, and
where Debian's package ``dataset-fashion-mnist`` puts it; otherwise it is downloaded and checked. CIFAR-10 (Krizhevsky
2009) is read from its binary version, if a user has it.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_DEBIAN = Path("/usr/share/dataset-fashion-mnist")
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_CIFAR_BATCHES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
DATASETS = ("fashion-mnist", "cifar-10", "digits")


class ImagesNotFoundError(FileNotFoundError):
    """A data set's files are not there; says where they were looked for."""


@dataclass(frozen=True)
class Images:
    """Standardized images (N, channels, height, width) and classes (N,), and images of something else.

    Args:
        name: of the data set.
        x_train: for training.
        y_train: likewise.
        x_test: for testing.
        y_test: likewise.
        others: images that show none of the classes, by what they are, standardized alike.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    others: dict[str, Tensor]

    @property
    def classes(self) -> int:
        """Their number."""
        return int(self.y_train.max()) + 1

    def without_test(self) -> Images:
        """For choosing settings: the last tenth of the training images in place of the test images."""
        kept = len(self.x_train) - len(self.x_train) // 10
        return replace(
            self, x_train=self.x_train[:kept], y_train=self.y_train[:kept],
            x_test=self.x_train[kept:], y_test=self.y_train[kept:],
        )  # fmt: skip

    def first(self, train: int | None, test: int | None = None) -> Images:
        """With the first images only."""
        return replace(
            self, x_train=self.x_train[:train], y_train=self.y_train[:train],
            x_test=self.x_test[:test], y_test=self.y_test[:test],
            others={name: x[:test] for name, x in self.others.items()},
        )  # fmt: skip


def load(name: str, folder: Path | None = None) -> Images:
    """A data set by its name.

    Args:
        name: of :data:`DATASETS`.
        folder: of its files; by default the usual places, and for Fashion-MNIST the internet.

    Raises:
        ImagesNotFoundError: if it is not there.
        ValueError: if there is no such data set.
    """
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(folder)
    if name == "cifar-10":
        return _cifar(folder)
    raise ValueError(f"there is no data set {name!r}; known: {', '.join(DATASETS)}")


def read_idx(path: Path) -> Tensor:
    """The array in an IDX file of bytes, gzipped if its name ends with ``.gz``.

    Raises:
        ValueError: if the file is no such thing, or cut short.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of bytes")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(content[3])]
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if values.size != np.prod(shape):
        raise ValueError(f"{path} has {values.size} bytes, its head says {shape}")
    return torch.from_numpy(values.reshape(shape).copy())


# --- the sets -------------------------------------------------------------------------------------


def _fashion_mnist(folder: Path | None) -> Images:
    x_train, y_train, x_test, y_test = (read_idx(path) for path in _fashion_files(folder))
    digits = functional.interpolate(_scikit_digits()[0], size=(28, 28), mode="bilinear")
    return _prepared(
        "fashion-mnist", x_train.unsqueeze(1) / 255, y_train, x_test.unsqueeze(1) / 255, y_test, {"digits": digits}
    )


def _fashion_files(folder: Path | None) -> list[Path]:
    for place in _places(folder):
        for ending in (".gz", ""):
            paths = [place / (name.removesuffix(".gz") + ending) for name in _MD5]
            if all(path.exists() for path in paths):
                return paths
    if folder is not None:
        raise ImagesNotFoundError(f"the four files of Fashion-MNIST ({', '.join(_MD5)}) are not in {folder}")
    import pooch

    cache = pooch.os_cache("noisynat") / "fashion-mnist"
    try:
        return [Path(pooch.retrieve(_URL + name, f"md5:{md5}", name, cache)) for name, md5 in _MD5.items()]
    except OSError as error:
        raise ImagesNotFoundError(
            f"Fashion-MNIST cannot be had from {_URL} ({error}); give its folder, or install Debian's package "
            "dataset-fashion-mnist"
        ) from error


def _places(folder: Path | None) -> Iterator[Path]:
    """Where the files may be."""
    given = os.environ.get("NOISYNAT_FASHION_MNIST_DIR")
    roots = [folder] if folder is not None else [Path(given), _DEBIAN] if given else [_DEBIAN]
    for root in roots:
        yield root
        yield root / "FashionMNIST" / "raw"  # torchvision's


def _cifar(folder: Path | None) -> Images:
    root = folder or Path("cifar-10-batches-bin")
    root = root if (root / "test_batch.bin").exists() else root / "cifar-10-batches-bin"
    missing = [name for name in (*_CIFAR_BATCHES, "test_batch.bin") if not (root / name).exists()]
    if missing:
        raise ImagesNotFoundError(f"CIFAR-10 in its binary version is not in {root}: {', '.join(missing)} missing")
    parts = [_cifar_batch(root / name) for name in _CIFAR_BATCHES]
    x_test, y_test = _cifar_batch(root / "test_batch.bin")
    x_train, y_train = (torch.cat(column) for column in zip(*parts, strict=True))
    return _prepared("cifar-10", x_train, y_train, x_test, y_test, {"shuffled pixels": _shuffled(x_test)})


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32))
    return rows[:, 1:].reshape(-1, 3, 32, 32) / 255, rows[:, 0]


def _digits() -> Images:
    """A fifth of scikit-learn's, every fifth, for testing."""
    x, y = _scikit_digits()
    test = torch.arange(len(x)) % 5 == 0
    return _prepared("digits", x[~test], y[~test], x[test], y[test], {"shuffled pixels": _shuffled(x[test])})


def _scikit_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(y)


def _shuffled(x: Tensor) -> Tensor:
    """The same pixels in another order, one for all images."""
    order = torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return x.flatten(2)[..., order].reshape(x.shape)


def _prepared(
    name: str, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor, others: dict[str, Tensor]
) -> Images:
    """Standardized by each channel's mean and standard deviation over the training images."""
    mean, std = (of(x_train) for of in (_mean, _std))
    images: Sequence[Tensor] = [(x - mean) / std for x in (x_train, x_test, *others.values())]
    return Images(name, images[0], y_train.long(), images[1], y_test.long(), dict(zip(others, images[2:], strict=True)))


def _mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True)


def _std(x: Tensor) -> Tensor:
    return x.std((0, 2, 3), keepdim=True)
