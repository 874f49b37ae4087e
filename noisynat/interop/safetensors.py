"""A trained posterior as a safetensors file: tensors and a few strings, which any program can read and none runs.

safetensors comes with the extra ``noisynat[safetensors]``; importing this module does not need it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import noisynat

if TYPE_CHECKING:
    from noisynat.likelihoods import Likelihood
    from noisynat.network import VariationalNetwork

__all__ = ["load_posterior", "save_posterior"]

_FORMAT = "noisynat posterior 1"
# Running averages and counters, which training needs and predictions do not: those are of the last refresh.
_RUNNING = re.compile(
    r"(?P<curvature>_posteriors\.\d+\.curvature)\.(?:(?P<kind>average|weight)\.(?P<key>.+)|skipped|failures)"
)


def save_posterior(network: VariationalNetwork, path: str | os.PathLike[str]) -> None:
    """Write what predictions need: means, the curvature behind the covariance, priors, noise, point estimates, buffers.

    The tensors have the names of ``network.state_dict()``. The metadata are ``format``, ``version`` (of noisynat),
    ``structure``, ``num_data``, ``kl_weight`` and, as JSON, the class and settings of the ``likelihood``. The file is
    written whole or not at all. To go on with training bit for bit, save state dicts instead.

    Args:
        network: with any posterior, likelihood and replicas.
        path: of the file; one that is there is replaced.

    Raises:
        ImportError: if safetensors is not installed.
        TypeError: if a module of the network keeps state that is no tensor.
    """
    safetensors = _require_safetensors()
    entries = _entries(network)
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; a safetensors file holds tensors only")
    metadata = {
        "format": _FORMAT,
        "version": noisynat.__version__,
        "structure": network.structure,
        "num_data": str(network.num_data),
        "kl_weight": repr(network.kl_weight),
        "likelihood": json.dumps(_settings(network.likelihood)),
    }
    own = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in entries.items()}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.torch.save_file(own, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_posterior(network: VariationalNetwork, path: str | os.PathLike[str]) -> None:
    """Give ``network`` the posterior that :func:`save_posterior` wrote; its predictions are then the saved ones.

    The network is built as the saved one was; its weights, kl_weight and random numbers may be any. It can be trained
    on, from the covariance that it has.

    Args:
        network: is changed only if all of the file fits.
        path: of the file.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if the file is of another network, naming every entry that does not fit.
    """
    safetensors = _require_safetensors()
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} is of format {metadata.get('format')!r}, expected {_FORMAT!r}")
    problems = _problems(network, metadata, tensors)
    if problems:
        raise ValueError("\n".join([f"{path} is of another network:", *problems]))
    state = network.state_dict()
    state.update(tensors)
    for name, value in state.items():
        running = _RUNNING.fullmatch(name)
        if running:
            state[name] = _at_the_last_refresh(running, value, tensors)
    state["_extra_state"] = {**network.get_extra_state(), "kl_weight": float(metadata["kl_weight"])}
    network.load_state_dict(state)


def _entries(network: VariationalNetwork) -> dict[str, Any]:
    """What of the network's state predictions depend on, its numbers aside."""
    state = network.state_dict()
    del state["_extra_state"]
    return {name: value for name, value in state.items() if not _RUNNING.fullmatch(name)}


def _at_the_last_refresh(running: re.Match[str], now: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """A running average or counter, as if the last refresh had just been."""
    if running["kind"] == "average":
        return tensors[f"{running['curvature']}.refreshed.{running['key']}"]
    return torch.ones_like(now) if running["kind"] == "weight" else torch.zeros_like(now)


def _settings(likelihood: Likelihood) -> dict[str, Any]:
    """The likelihood's class and its plain numbers and strings, but for what the network sets."""
    public = {name: value for name, value in vars(likelihood).items() if not name.startswith("_")}
    plain = {name: value for name, value in public.items() if isinstance(value, (bool, int, float, str))}
    return {"class": type(likelihood).__name__} | {k: plain[k] for k in plain.keys() - {"num_data", "training"}}


def _problems(network: VariationalNetwork, metadata: dict[str, str], tensors: dict[str, Tensor]) -> list[str]:
    """What of a file does not fit the network, a line each."""
    found = {key: metadata[key] for key in ("structure", "num_data")}
    wanted = {"structure": network.structure, "num_data": str(network.num_data)}
    found |= {f"likelihood.{key}": repr(value) for key, value in json.loads(metadata["likelihood"]).items()}
    wanted |= {f"likelihood.{key}": repr(value) for key, value in _settings(network.likelihood).items()}
    found |= {name: _described(value) for name, value in tensors.items()}
    wanted |= {name: _described(value) for name, value in _entries(network).items()}
    return [
        f"{name} is {found.get(name, 'missing')} in the file and {wanted.get(name, 'missing')} in the network"
        for name in wanted | found
        if found.get(name) != wanted.get(name)
    ]


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _require_safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        message = 'safetensors is not installed; get it with pip install "noisynat[safetensors]"'
        raise ImportError(message) from error
    return safetensors
