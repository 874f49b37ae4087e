"""How much the inputs matter, by automatic relevance determination (MacKay 1994; Neal 1996).

A prior variance for the weights of every input maximizes the ELBO where it is their mean square under the posterior,
and scaling the input by the root of it is the same as giving its weights that prior variance. Of a hidden unit that was
pruned this mean square is the prior's own, whatever the input. The squares of posterior means stand in for it here, to
which such units add nothing.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments import records
from experiments.methods import METHODS
from experiments.protocol import Splits
from experiments.runs import Configuration, plain, train

_SHARE = 0.5  # of the epochs that the pilot network has
_FILE = "relevance"


def input_relevance(splits: Splits, config: Configuration, folder: Path) -> Tensor:
    """Relevance of the inputs, (R, features), float64, its mean square over the inputs being 1.

    A pilot network with a Kronecker posterior is trained on the training parts; it is kept in ``folder``.

    Args:
        splits: the data; test parts are not looked at.
        config: of the run that the relevance is for.
        folder: with ``relevance.npz`` and its settings.
    """
    short = replace(config, epochs=max(round(_SHARE * config.epochs), 1))
    settings = plain({**asdict(short), "splits": splits.count, "num_train": splits.num_train})
    path = folder / f"{_FILE}.npz"
    if records.read_json(folder / f"{_FILE}.json") != settings:
        records.write_arrays(path, {_FILE: _relevance(splits, short)})
        records.write_json(folder / f"{_FILE}.json", settings)
    with np.load(path) as arrays:
        return torch.as_tensor(arrays[_FILE])


@torch.no_grad()
def _relevance(splits: Splits, config: Configuration) -> np.ndarray:
    with torch.enable_grad():
        network, _ = train(METHODS["nng-kron"], splits, config)
    square = network.layers[0].mean.double().square().mean(-2)[..., : splits.features]
    relevance: np.ndarray = (square / square.mean(-1, keepdim=True)).sqrt().numpy()
    return relevance
