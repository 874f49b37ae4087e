"""
A band around a regression
==========================

A network should be unsure where it has seen nothing. Here the observations of a sine lie in two clusters, and
the posterior, trained by noisy K-FAC, says what it knows between and beside them.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import noisynat
from noisynat import plotting

# %%
# Data: 200 observations with noise of standard deviation 0.1, none between -1 and 0.6.

torch.manual_seed(0)
x = torch.cat([torch.empty(100, 1).uniform_(-2.0, -1.0), torch.empty(100, 1).uniform_(0.6, 1.6)])
y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)

# %%
# A network with a Gaussian posterior over its weights. The noise of the targets is not known in advance: its
# precision has a gamma prior, and is learned with the weights. The weight of the KL rises while training goes on,
# so that units are not given up before they have learned something.

net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
bnn = noisynat.VariationalNetwork(
    net,
    likelihood=noisynat.GaussianLikelihood(noise="gamma", a0=1.0, b0=0.001, initial_std=0.1),
    prior=noisynat.GaussianPrior(variance=1.0),
    posterior="kronecker",
    num_data=len(x),
    initial_precision=10.0,
)
optimizer = noisynat.NoisyKFAC(bnn, refresh_every=10)
batches = noisynat.TensorBatches(x, y, batch_size=50, seed=0)
epochs = 500
schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches))
noisynat.fit(bnn, optimizer, batches, epochs, scheduler=schedule, kl_warmup=1.0, kl_start=0.1, progress=False)
print(f"ELBO: {bnn.elbo(x, y).per_datum:.2f} nats per observation")

# %%
# Two kinds of uncertainty add up to the variance of a target. The *epistemic* one is about the function: sampled
# functions disagree where no data hold them together, and more data would bring them in line. The *aleatoric* one
# is the noise, which stays however many data there are. On the left, the dark band shows the first alone, the
# light one both.
#
# On the right, epistemic uncertainty rises between the clusters and beside them. Beside them it does not rise
# enough: the truth turns back, and no function that this posterior holds for likely does. A band is about the
# functions of the model and its prior, not about all that could be. The noise comes out wider than it was, 0.14
# for 0.1: the mean is a little too smooth, and the noise takes up what it misses.

grid = torch.linspace(-3.2, 3.2, 300).unsqueeze(-1)
prediction = bnn.predict(grid, num_samples=500)
epistemic = prediction.epistemic_variance.sqrt()
aleatoric = prediction.aleatoric_variance.sqrt()

figure, (band, parts) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
plotting.predictive_band(grid, prediction, band)
band.plot(grid, torch.sin(2 * grid), "k:", linewidth=1, label="truth")
band.plot(x, y, "k.", markersize=3, label="observations")
for function in bnn.sample_functions(3):
    band.plot(grid, function(grid), color=plotting.ORANGE, linewidth=0.8)
band.lines[-1].set_label("sampled functions")
band.set(ylim=(-3, 3))
band.legend(fontsize="small", ncols=2)
parts.plot(grid, epistemic, color=plotting.BLUE, label="epistemic")
parts.plot(grid, aleatoric, color=plotting.ORANGE, label="aleatoric")
for start, end in ((-2.0, -1.0), (0.6, 1.6)):
    parts.axvspan(start, end, color="black", alpha=0.07, linewidth=0, label="observations" if start < 0 else None)
parts.set(xlabel="x", ylabel="standard deviation", ylim=(0, 0.27))
parts.legend(fontsize="small")
plt.show()
