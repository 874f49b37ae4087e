"""
Thompson sampling
=================

To find the lowest point of a function that is expensive to evaluate, draw a function from the posterior and
evaluate where *that* one is lowest. A draw is low where observations were low, or where there were none yet, so
the search exploits and explores by itself.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import noisynat
from noisynat import acquisition, plotting


def expensive(x):
    return torch.sin(3 * x) + 0.3 * x**2 - 0.3 * x


# %%
# After every evaluation a small network is trained anew on what is known. The prior says what functions to
# expect: weights of the first layer of about 3, initial ones likewise, make functions that turn several times
# between -2 and 2. The posterior is dense, with the correlations of all weights, and training takes a second.


def posterior(x, y, seed, steps=300):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1))
    nn.init.normal_(net[0].weight, std=3.0)
    nn.init.normal_(net[0].bias, std=3.0)
    bnn = noisynat.VariationalNetwork(
        net,
        noisynat.GaussianLikelihood(0.1),
        prior={"0": noisynat.GaussianPrior(variance=9.0), "2": noisynat.GaussianPrior(variance=1.0)},
        posterior="dense",
        num_data=len(x),
        initial_precision=10.0,
        init="weights",
        seed=seed,
    )
    optimizer = noisynat.NoisyNaturalGradient(
        bnn, lr=0.05, betas=(0.9, 0.98), kl_clip=0.1, stats_every=1, refresh_every=5
    )
    schedule = noisynat.cosine_schedule(optimizer, steps)
    noisynat.fit(bnn, optimizer, [(x, y)], steps, scheduler=schedule, kl_warmup=0.5, kl_start=0.1, progress=False)
    return bnn


# %%
# Three evaluations to begin with, then eight where a sampled function is lowest.

grid = torch.linspace(-2, 2, 201).unsqueeze(-1)
x = torch.tensor([[-1.6], [0.2], [1.9]])
shown = []
for evaluation in range(8):
    bnn = posterior(x, expensive(x), seed=evaluation)
    (function,) = bnn.sample_functions(1)
    lowest = grid[function(grid).argmin()]
    if evaluation in (0, 2, 7):
        shown.append((x, bnn, function, lowest))
    x = torch.cat([x, lowest.unsqueeze(0)])

print(f"lowest value found: {expensive(x).min():.3f}; lowest of all: {expensive(grid).min():.3f}")

# %%
# Below, expected improvement (:func:`noisynat.acquisition.expected_improvement`): the other way to choose, by the
# average over all functions of how far they fall below the best value so far.

figure, panels = plt.subplots(
    2, 3, figsize=(12, 5.5), sharex=True, sharey="row", height_ratios=(3, 1), layout="constrained"
)
for (above, below), (known, bnn, function, lowest) in zip(panels.T, shown, strict=True):
    prediction = bnn.predict(grid, num_samples=300)
    plotting.predictive_band(grid, prediction, above)
    above.plot(grid, function(grid), color=plotting.ORANGE, label="sampled function")
    above.plot(grid, expensive(grid), "k:", label="truth")
    above.plot(known, expensive(known), "ko", markersize=4, label="evaluations")
    above.axvline(lowest.item(), color=plotting.RED, linewidth=1, label="evaluated next")
    above.set(title=f"{len(known)} evaluations", xlabel="", ylabel="" if len(known) > 3 else "y")
    improvement = acquisition.expected_improvement(prediction, expensive(known).min())
    below.fill_between(grid.squeeze(-1), improvement, color=plotting.GREEN, alpha=0.5, linewidth=0)
    below.set(xlabel="x")
panels[0, 0].legend(fontsize="small", loc="upper right")
panels[1, 0].set_ylabel("expected\nimprovement")
plt.show()
