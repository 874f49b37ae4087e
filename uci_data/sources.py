"""The order in which sources are asked for a data set, and what each of them does.

1. the folder given as ``root``: it must hold the set, no other source is asked;
2. the folder in the environment variable ``NOISYNAT_UCI_DIR``;
3. the user's cache;
4. an installed package that ships the set;
5. download.

A damaged file in a folder of the user's (1, 2) is an error: it is never changed and never passed over.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from .archive import read_npz
from .cache import cached_file, keep, read_cached
from .dataset import Dataset
from .download import download
from .entry import DatasetInfo
from .errors import DataWarning, SourceUnavailableError, dataset_not_found
from .integrity import verify
from .parsers import comma_separated

FOLDER_VARIABLE = "NOISYNAT_UCI_DIR"


def from_root(info: DatasetInfo, root: Path) -> Dataset:
    """Read ``<name>.npz`` from the folder that the caller named."""
    path = root.expanduser() / f"{info.name}.npz"
    if not path.is_file():
        raise dataset_not_found(info.name, [f"root={str(root)!r}: {path} does not exist"])
    return Dataset(info, *read_npz(info, path), source=f"root folder: {path}")


def from_environment(info: DatasetInfo) -> Dataset:
    """Read ``<name>.npz`` from the folder in ``NOISYNAT_UCI_DIR``."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise SourceUnavailableError("the variable is not set")
    path = Path(folder).expanduser() / f"{info.name}.npz"
    if not path.parent.is_dir():
        warnings.warn(f"{FOLDER_VARIABLE} names no folder: {folder}", DataWarning, stacklevel=2)
    if not path.is_file():
        raise SourceUnavailableError(f"{path} does not exist")
    return Dataset(info, *read_npz(info, path), source=f"{FOLDER_VARIABLE}: {path}")


def from_cache(info: DatasetInfo) -> Dataset:
    """Read the set as an earlier download left it."""
    return Dataset(info, *read_cached(info), source=f"cache: {cached_file(info)}")


def from_package(info: DatasetInfo) -> Dataset:
    """Read the set from a file inside an installed package, without importing the package."""
    if info.package_file is None:
        raise SourceUnavailableError("no known package ships this set")
    package, file = info.package_file
    spec = find_spec(package)
    if spec is None:
        raise SourceUnavailableError(f"{package} is not installed: pip install noisynat[experiments]")
    paths = [Path(folder) / file for folder in spec.submodule_search_locations or ()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise SourceUnavailableError(f"the installed {package} has no file {file}")
    try:
        X, y = comma_separated(path)
        verify(info, X, y, str(path))
    except ValueError as error:
        warnings.warn(f"Passing over the installed {package}: {error}", DataWarning, stacklevel=2)
        raise SourceUnavailableError(f"the file {path} is not the set") from error
    return Dataset(info, X, y, source=f"package {package}: {file}")


def from_download(info: DatasetInfo, allowed: bool, progress: bool) -> Dataset:
    """Download the donor's file and keep the parsed set in the cache."""
    if not allowed:
        raise SourceUnavailableError("not tried, because download=False")
    X, y = download(info, progress)
    keep(info, X, y)
    return Dataset(info, X, y, source=f"download: {info.url}")


def find(info: DatasetInfo, root: Path | None, allow_download: bool, progress: bool) -> Dataset:
    """Ask the sources in order; the first that has the set decides.

    Raises:
        DatasetNotFoundError: none has it; the message lists every way and why it failed.
        CorruptedDataError: one has it, but damaged.
    """
    if root is not None:
        return from_root(info, root)
    package = info.package_file[0] if info.package_file else "none known"
    sources: dict[str, Callable[[], Dataset]] = {
        f"set {FOLDER_VARIABLE} to a folder with {info.name}.npz": lambda: from_environment(info),
        "cache of earlier downloads": lambda: from_cache(info),
        f"installed package ({package})": lambda: from_package(info),
        f"download of {info.url}": lambda: from_download(info, allow_download, progress),
    }
    ways = [f"load({info.name!r}, root=FOLDER), with X and y in FOLDER/{info.name}.npz: no root was given"]
    for way, source in sources.items():
        try:
            return source()
        except SourceUnavailableError as reason:
            ways.append(f"{way}: {reason}")
    raise dataset_not_found(info.name, ways)
