"""Results on disk: whole or not at all, with the command, seed, versions and hardware beside them."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

_PACKAGES = ("noisynat", "torch", "numpy")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` as CSV, floats with 7 significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.7g"))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ``arrays`` as a compressed .npz file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What :func:`write_json` wrote, or None if there is no such file."""
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def is_of(path: Path, settings: dict[str, Any]) -> bool:
    """Whether there is a file ``path`` of a run with these settings, which ``run.json`` beside it tells.

    If not, the file is removed and the settings are noted, for the run that begins.
    """
    plain = json.loads(json.dumps(settings))
    note = path.with_name("run.json")
    if read_json(note) == plain and path.exists():
        return True
    path.unlink(missing_ok=True)
    write_json(note, plain)
    return False


def provenance(module: str) -> dict[str, Any]:
    """The command, versions and hardware of this run."""
    return {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
