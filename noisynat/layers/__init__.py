"""Modules that carry a weight posterior, and the conversion of ordinary modules into them."""

from noisynat.layers.base import VariationalLayer
from noisynat.layers.conv import VariationalConv1d, VariationalConv2d, Window
from noisynat.layers.convert import Coverage, CoverageRow, convert
from noisynat.layers.embedding import VariationalEmbedding
from noisynat.layers.linear import VariationalLinear
from noisynat.layers.norm import VariationalNorm

__all__ = [
    "Coverage",
    "CoverageRow",
    "VariationalConv1d",
    "VariationalConv2d",
    "VariationalEmbedding",
    "VariationalLayer",
    "VariationalLinear",
    "VariationalNorm",
    "Window",
    "convert",
]
