"""scikit-learn estimators: Bayesian neural networks that scale their data and choose their settings by themselves.

They come with the extra ``noisynat[sklearn]``; ``import noisynat`` does not need it.
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError('noisynat.sklearn needs scikit-learn; get it with pip install "noisynat[sklearn]"') from error

from noisynat.sklearn.classifier import BayesianMLPClassifier
from noisynat.sklearn.regressor import BayesianMLPRegressor

__all__ = ["BayesianMLPClassifier", "BayesianMLPRegressor"]
