"""Modules that carry a weight posterior, and the conversion of ordinary modules into them."""

from noisynat.layers.base import VariationalLayer
from noisynat.layers.convert import Coverage, CoverageRow, convert
from noisynat.layers.linear import VariationalLinear

__all__ = ["Coverage", "CoverageRow", "VariationalLayer", "VariationalLinear", "convert"]
