"""
Intervals by a scikit-learn estimator
=====================================

:class:`noisynat.sklearn.BayesianMLPRegressor` scales the data, chooses its settings by itself, and predicts
with intervals. Here it predicts how far diabetes has progressed a year after ten measurements were taken,
beside two of scikit-learn's own regressors.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split

from noisynat.sklearn import BayesianMLPRegressor

X, y = load_diabetes(return_X_y=True, scaled=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)

# %%
# Three models that all say how sure they are, each with its defaults but for the Gaussian process, whose default kernel
# knows no noise.

kernel = ConstantKernel(1.0) * RBF(0.1) + WhiteKernel(1.0)
models = {
    "BayesianMLPRegressor": BayesianMLPRegressor(random_state=0),
    "BayesianRidge": BayesianRidge(),
    "GaussianProcessRegressor": GaussianProcessRegressor(kernel, normalize_y=True, random_state=0),
}
for model in models.values():
    model.fit(X_train, y_train)

# %%
# R², the share of test targets in the 95% intervals, how wide these are, and the mean log-likelihood of the test
# targets. Gaussian predictions for the other two; ours is a mixture over noise and sampled functions. The data
# are few and noisy, and no model gets far. Log-likelihood on held-out data is the figure to decide by, since it counts
# both the means and how sure they claim to be.

print(f"{'model':26} {'R2':>5} {'inside':>7} {'width':>6} {'log-lik.':>9}")
for name, model in models.items():
    mean, std = model.predict(X_test, return_std=True)
    if isinstance(model, BayesianMLPRegressor):
        lower, upper = model.predict_interval(X_test, 0.95)
        log_likelihood = model.log_likelihood(X_test, y_test).mean()
    else:
        lower, upper = norm(mean, std).interval(0.95)
        log_likelihood = norm(mean, std).logpdf(y_test).mean()
    inside = np.mean((lower <= y_test) & (y_test <= upper))
    width = np.mean(upper - lower)
    print(f"{name:26} {model.score(X_test, y_test):5.2f} {inside:7.1%} {width:6.0f} {log_likelihood:9.3f}")

# %%
# Test patients in the order of their prediction. The network's intervals widen with the progress that it expects,
# since targets scatter more there.

model = models["BayesianMLPRegressor"]
order = model.predict(X_test).argsort()
lower, upper = model.predict_interval(X_test[order], 0.95)
observed, place = y_test[order], np.arange(len(order))
inside = (lower <= observed) & (observed <= upper)

figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
axes.fill_between(place, lower, upper, step="mid", color="#0072b2", alpha=0.2, linewidth=0, label="95% interval")
axes.plot(place, model.predict(X_test[order]), color="#0072b2", label="mean")
axes.plot(place[inside], observed[inside], "k.", label="observed")
axes.plot(place[~inside], observed[~inside], "D", color="#d55e00", label="observed, outside")
axes.set(xlabel="test patient, by prediction", ylabel="progress after a year", ylim=(-60, None))
axes.legend(ncols=2)
plt.show()
