"""The errors that are this library's own."""

from __future__ import annotations


class CurvatureError(ArithmeticError):
    """A curvature could not be factorized three times in a row; names the layer and its condition number."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number; parameters are as they were before that step."""


class MissingExtraError(ImportError):
    """An optional package is needed; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'noisynat[{extra}]'")
