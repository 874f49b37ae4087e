"""
Noise that varies
=================

Some targets are measured better than others. A network with two outputs per target, the mean and the scale of
the noise, finds out which: :class:`~noisynat.HeteroscedasticGaussianLikelihood`. Its intervals are narrow on
the left and wide on the right; those of constant noise are much the same everywhere, too wide on the left and
too narrow on the right.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import noisynat
from noisynat import plotting


def noise_std(x):
    return 0.05 + 0.35 * torch.sigmoid(4 * x)


torch.manual_seed(0)
x, x_test = torch.empty(300, 1).uniform_(-2, 2), torch.empty(1000, 1).uniform_(-2, 2)
y, y_test = (torch.sin(2 * at) + noise_std(at) * torch.randn_like(at) for at in (x, x_test))

# %%
# The same training for both. At first the noise is held constant (``noise_warmup``): set free from the start, it
# would explain what the mean has not learned yet.


def train(likelihood, outputs, noise_warmup=None, epochs=250):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, outputs))
    bnn = noisynat.VariationalNetwork(net, likelihood, num_data=len(x), initial_precision=10.0)
    optimizer = noisynat.NoisyKFAC(bnn, refresh_every=10)
    batches = noisynat.TensorBatches(x, y, batch_size=50, seed=0)
    schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches))
    warmups = {"kl_warmup": 1.0, "kl_start": 0.1, "noise_warmup": noise_warmup}
    noisynat.fit(bnn, optimizer, batches, epochs, scheduler=schedule, progress=False, **warmups)
    return bnn


prior = {"noise": "gamma", "a0": 1.0, "b0": 0.001, "initial_std": 0.2}
constant = train(noisynat.GaussianLikelihood(**prior), outputs=1)
varying = train(noisynat.HeteroscedasticGaussianLikelihood(**prior), outputs=2, noise_warmup=(0.3, 0.6))

# %%
# On new targets the log-likelihood tells them apart.

for name, bnn in (("constant", constant), ("varying", varying)):
    print(f"{name} noise: {bnn.predict(x_test).log_prob(y_test).mean():.3f} nats per target")

# %%
# The third panel compares the standard deviation of the noise with the one that made the data.

grid = torch.linspace(-2, 2, 200).unsqueeze(-1)
figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
networks = (("constant noise", constant, plotting.ORANGE), ("varying noise", varying, plotting.BLUE))
for axes, (name, bnn, color) in zip(panels, networks, strict=False):
    prediction = bnn.predict(grid, num_samples=300)
    plotting.predictive_band(grid, prediction, axes, color=color)
    axes.plot(x, y, "k.", markersize=2)
    axes.set(title=name, ylim=(-2.0, 3.2))
    axes.legend(fontsize="small", loc="upper left")
    panels[2].plot(grid, prediction.aleatoric_variance.sqrt(), color=color, label=name)
panels[2].plot(grid, noise_std(grid), "k:", label="truth")
panels[2].set(xlabel="x", ylabel="standard deviation of the noise", ylim=(0, None))
panels[2].legend(fontsize="small")
plt.show()
