"""Imports of optional packages, made only when one is needed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from .errors import missing_extra


def require(module: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.
    """
    if find_spec(module) is None:
        raise missing_extra(module)
    return import_module(module)
