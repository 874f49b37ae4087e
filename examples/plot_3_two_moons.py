"""
Classes, and what the network does not know
===========================================

Two half moons, one class each. Where the moons overlap, nobody can tell the classes apart; where the boundary
runs on beyond the data, this network has seen nothing. Both times the probability is near one half, but only
the second doubt would yield to more data. The *mutual information* between class and weights tells the two
doubts apart.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn

import noisynat
from noisynat import plotting

points, classes = make_moons(200, noise=0.25, random_state=0)
x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(classes)
x = x - x.mean(0)

# %%
# Training is the same as in regression, with another likelihood.

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 2))
bnn = noisynat.VariationalNetwork(net, noisynat.CategoricalLikelihood(), num_data=len(x), initial_precision=10.0)
optimizer = noisynat.NoisyKFAC(bnn, refresh_every=10)
batches = noisynat.TensorBatches(x, y, batch_size=50, seed=0)
epochs = 300
schedule = noisynat.cosine_schedule(optimizer, epochs * len(batches))
noisynat.fit(bnn, optimizer, batches, epochs, scheduler=schedule, kl_warmup=0.2, progress=False)

# %%
# Entropy is the whole uncertainty about the class, at most log 2 = 0.69 nats. Mutual information is its epistemic
# part: how much the sampled functions disagree. Between the moons entropy is high and mutual information low;
# where the boundary leaves the data, both are high.

across, up = torch.linspace(-4, 4, 81), torch.linspace(-3.5, 3.5, 71)
prediction = bnn.predict(torch.cartesian_prod(across, up), num_samples=300)
maps = (
    ("P(second class)", prediction.probs[:, 1], "probability"),
    ("entropy", prediction.entropy, "nats"),
    ("mutual information", prediction.mutual_information, "nats"),
)
figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
for axes, (title, values, unit) in zip(panels, maps, strict=True):
    shades = axes.contourf(across, up, values.reshape(len(across), len(up)).T, levels=10, cmap="cividis")
    figure.colorbar(shades, ax=axes, label=unit)
    for number, (marker, color) in enumerate((("o", "white"), ("s", plotting.RED))):
        axes.plot(*x[y == number].T, marker, color=color, markersize=3, markeredgecolor="black", markeredgewidth=0.3)
    axes.set(title=title, xlabel="first input")
panels[0].set_ylabel("second input")
plt.show()
