"""What the layers believe about their weights: sampling, noise and KL."""

from noisynat.posteriors.base import Posterior
from noisynat.posteriors.mean_field import MeanFieldPosterior
from noisynat.posteriors.natural import NaturalPosterior

__all__ = ["MeanFieldPosterior", "NaturalPosterior", "Posterior"]
