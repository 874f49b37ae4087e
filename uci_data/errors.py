"""What can go wrong when a data set is asked for, each with what to do about it.

The errors are plain classes with a text, so that they travel between processes; the functions below
write the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UnknownDatasetError(ValueError):
    """The name is not in the registry; the text lists the names and the closest one."""


class CorruptedDataError(ValueError):
    """A data set was found, but it is not the one in the registry. Nothing was changed on disk."""


class DatasetNotFoundError(FileNotFoundError):
    """No source has the data set; the text lists every way to get it and why each failed."""


class MissingExtraError(ImportError):
    """A package of the optional extra ``experiments`` is needed and is not installed."""


class SourceUnavailableError(Exception):
    """One source does not have the data set; its text says why. The next source is asked."""


class DataWarning(UserWarning):
    """Something about the data deserves attention, though they can be used."""


def unknown_dataset(name: object, names: Iterable[str]) -> UnknownDatasetError:
    """The error for a name that is not among ``names``."""
    known = list(names)
    close = get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownDatasetError(f"Unknown data set {name!r}.{hint} Known names: {', '.join(known)}.")


def corrupted_data(name: str, where: str, *, expected: str, found: str) -> CorruptedDataError:
    """The error for a file or an address, ``where``, that does not hold the set ``name``."""
    return CorruptedDataError(
        f"{where} is not the {name} data set.\n"
        f"  expected: {expected}\n"
        f"  found:    {found}\n"
        "Replace it with an intact copy, or remove it."
    )


def dataset_not_found(name: str, ways: Sequence[str]) -> DatasetNotFoundError:
    """The error for a set that no source has; each of ``ways`` ends in why it failed."""
    listing = "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, start=1))
    return DatasetNotFoundError(f"No {name} data set found. Ways to get it, and why each failed:\n{listing}")


def missing_extra(module: str) -> MissingExtraError:
    """The error for an optional package that is not installed."""
    return MissingExtraError(
        f"The package {module!r} is needed and is not installed: pip install noisynat[experiments]",
        name=module,
    )
