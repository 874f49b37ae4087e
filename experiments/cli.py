"""What the experiments' command lines share: names of methods and data sets, and data that may be absent."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import typer
from rich.console import Console

import uci_data
from experiments.protocol import Splits, load_splits

Named = TypeVar("Named")


def started(threads: int) -> Console:
    """Set torch's threads and make lines appear as they come, also when piped; gives the console to print on."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(threads)
    return Console(soft_wrap=True)


def chosen(names: str, known: Mapping[str, Named], option: str = "--methods") -> list[Named]:
    """The members of ``known`` that a comma-separated list names, in its order.

    Raises:
        typer.BadParameter: if a name is not known or there is none.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise typer.BadParameter(f"unknown methods {unknown}; known: {', '.join(known)}", param_hint=option)
    return [known[name] for name in wanted]


def checked_datasets(names: Sequence[str]) -> list[str]:
    """The names, each once; an unknown one fails before anything is trained.

    Raises:
        typer.BadParameter: if a name is not known.
    """
    for name in names:
        try:
            uci_data.info(name)
        except uci_data.UnknownDatasetError as error:
            raise typer.BadParameter(str(error), param_hint="DATASETS") from error
    return list(dict.fromkeys(names))


def loaded(name: str, splits: int | None, console: Console) -> Splits:
    """The first ``splits`` splits of a data set, or the reason why it is absent and the command's end."""
    try:
        return load_splits(uci_data.load(name), splits)
    except uci_data.DatasetNotFoundError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from error
