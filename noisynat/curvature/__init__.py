"""Structures of the curvature matrix; the structure is the posterior family."""

from noisynat.curvature.base import Curvature
from noisynat.curvature.dense import Dense
from noisynat.curvature.diagonal import Diagonal
from noisynat.curvature.eigen_corrected import EigenCorrected
from noisynat.curvature.kronecker import Kronecker
from noisynat.curvature.truncated import TruncatedKronecker

__all__ = ["Curvature", "Dense", "Diagonal", "EigenCorrected", "Kronecker", "TruncatedKronecker"]
