"""The errors that are this library's own."""

from __future__ import annotations


class CurvatureError(ArithmeticError):
    """A curvature could not be factorized three times in a row; names the layer and its condition number."""


class NonFiniteLossError(ArithmeticError):
    """The training loss became infinite or not a number; parameters are as they were before that step."""
