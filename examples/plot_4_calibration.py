"""
Is a regressor calibrated?
==========================

Of all intervals at level 0.9, nine in ten should contain their target. Where the predicted standard deviation
is twice as large, errors should be twice as large too. :mod:`noisynat.plotting` draws both, on targets that
were not trained on.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import noisynat
from noisynat import calibration, plotting

# %%
# Data with three inputs. The third one decides how noisy a target is.


def observations(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, generator=generator) * 4 - 2
    mean = torch.sin(2 * x[:, :1]) + 0.5 * x[:, 1:2] ** 2
    std = 0.1 * torch.exp(0.7 * x[:, 2:])
    return x, mean + std * torch.randn(count, 1, generator=generator)


x, y = observations(500, seed=0)
x_test, y_test = observations(1000, seed=1)
offset, scale = y.mean(), y.std()

# %%
# Two posteriors: one that takes the noise for constant, and one that lets it vary.


def train(likelihood, outputs, noise_warmup=None, epochs=120):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, outputs))
    bnn = noisynat.VariationalNetwork(net, likelihood, num_data=len(x), initial_precision=10.0)
    optimizer = noisynat.NoisyKFAC(bnn, refresh_every=10)
    batches = noisynat.TensorBatches(x, (y - offset) / scale, batch_size=50, seed=0)
    schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches))
    warmups = {"kl_warmup": 1.0, "kl_start": 0.1, "noise_warmup": noise_warmup}
    noisynat.fit(bnn, optimizer, batches, epochs, scheduler=schedule, progress=False, **warmups)
    return bnn.predict(x_test, num_samples=300)


prior = {"noise": "gamma", "a0": 1.0, "b0": 0.001, "initial_std": 0.2}
constant = train(noisynat.GaussianLikelihood(**prior), outputs=1)
varying = train(noisynat.HeteroscedasticGaussianLikelihood(**prior), outputs=2, noise_warmup=(0.3, 0.6))

# %%
# The curve shows which share of the targets lies inside the intervals of every level. Constant noise is a
# compromise, too wide for most targets, so its curve runs far above the diagonal; that of varying noise is
# closer, and still a little too wide. On the right, each dot is a target. With varying noise a large standard
# deviation announces a large error; with constant noise it announces little.

figure, (curve, *errors) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
target = (y_test - offset) / scale
for axes, (name, prediction, color) in zip(
    errors,
    (("constant noise", constant, plotting.ORANGE), ("varying noise", varying, plotting.BLUE)),
    strict=True,
):
    plotting.calibration_curve(prediction, target, curve, color=color, label=name)
    plotting.uncertainty_against_error(prediction, target, axes, color=color, unit="std of y")
    axes.set(title=name, ylim=(0, 1.3))
    axes.legend(fontsize="small")
    share = calibration.interval_coverage(prediction, target, [0.5, 0.95])
    print(f"{name}: {share[0]:.1%} of the targets in the 50% intervals, {share[1]:.1%} in the 95% intervals")
curve.legend(fontsize="small")
plt.show()
