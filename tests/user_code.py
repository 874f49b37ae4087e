"""What users write, as mypy --strict must accept it; test_typing.py has it checked. Nothing here is run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Laplace
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import assert_type

import noisynat
from noisynat import acquisition, calibration
from noisynat.interop.safetensors import load_posterior, save_posterior
from noisynat.interop.tensorboard import TensorBoardCallback


def make(num_data: int, replicas: int | None = None) -> noisynat.VariationalNetwork:
    net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
    likelihood = noisynat.HeteroscedasticGaussianLikelihood(noise="gamma", a0=1.0, b0=0.001, max_ratio=10.0)
    prior = {"0": noisynat.GaussianPrior(variance=[0.1, 1.0]), "2": noisynat.GaussianPrior("empirical_bayes")}
    return noisynat.VariationalNetwork(
        net, likelihood, prior=prior, posterior="eigen_corrected", num_data=num_data, kl_weight=0.5, replicas=replicas
    )


def loops(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> None:
    optimizer = noisynat.NoisyKFAC(bnn, lr=0.02, betas=(0.9, 0.99), kl_clip=None, stats_examples=8)
    scheduler = noisynat.cosine_schedule(optimizer, total_steps=100)
    loader = DataLoader(TensorDataset(x, y), batch_size=50)
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = bnn.loss(inputs, targets)
        assert_type(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        assert_type(optimizer.step(), None)
        scheduler.step()

    def closure() -> float:
        optimizer.zero_grad()
        loss = bnn.loss(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert_type(optimizer.step(closure), float)
    torch.optim.Adam(bnn.parameters()).step(lambda: bnn.negative_elbo(x, y).item())
    noisynat.fit(bnn, optimizer, loader, epochs=2, scheduler=scheduler, checkpoint=Path("run.pt"))
    noisynat.fit(bnn, optimizer, [(x, y)], 2, on_epoch=lambda epoch, history: print(epoch, history["elbo"][-1]))


def answers(bnn: noisynat.VariationalNetwork, x: Tensor, y: Tensor) -> None:
    elbo = bnn.elbo(x, y, num_samples=10)
    assert_type(elbo.kl_by_layer, dict[str, Tensor])
    prediction = bnn.predict(x, 10, torch.Generator(), predictive="linearized", combine=elbo)
    assert_type(prediction, noisynat.Predictive)
    assert_type(prediction.epistemic_variance + prediction.aleatoric_variance, Tensor)
    assert_type(prediction.interval(0.95), tuple[Tensor, Tensor])
    assert_type(prediction.distribution, Distribution)
    assert_type(prediction.replica((0, 1)).log_prob(y), Tensor)
    assert_type(acquisition.expected_improvement(prediction, best=0.5, maximize=True), Tensor)
    assert_type(calibration.interval_coverage(prediction, y, [0.5, 0.9]), Tensor)
    functions = bnn.sample_functions(5)
    assert_type(functions(x), Tensor)
    assert_type(functions[0], noisynat.SampledFunction)
    assert_type(functions[1:3], noisynat.SampledFunctions)
    assert_type([function(x) for function in functions], list[Tensor])
    assert_type([row.kind for row in bnn.coverage().rows], list[str])
    assert_type(noisynat.memory_forecast(bnn.net, "dense").total, int)
    with bnn.sampled_weights():
        bnn(x)


class Printer:
    """In place of a SummaryWriter."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        print(step, tag, value)


def files(bnn: noisynat.VariationalNetwork, optimizer: noisynat.NoisyNaturalGradient, path: Path) -> None:
    torch.save({"bnn": bnn.state_dict(), "optimizer": optimizer.state_dict()}, path)
    bnn.load_state_dict(torch.load(path, weights_only=True)["bnn"])
    save_posterior(bnn, path)
    load_posterior(bnn, str(path))
    data = noisynat.TensorBatches(torch.zeros(2, 9, 1), torch.zeros(2, 9, 1), replicas=bnn.replicas)
    write = TensorBoardCallback(SummaryWriter(), bnn, prefix="run")
    assert_type(noisynat.fit(bnn, optimizer, data, epochs=1, on_epoch=write), noisynat.History)
    noisynat.fit(bnn, optimizer, data, epochs=1, on_epoch=TensorBoardCallback(Printer()))
    full = bnn.with_posterior("dense")
    assert_type(full.load_functions(bnn.sample_functions(2).state_dict()), noisynat.SampledFunctions)


class LaplaceLikelihood(noisynat.DistributionLikelihood):
    """A likelihood of one's own."""

    def distribution(self, f: Tensor) -> Distribution:
        return Laplace(f, 0.1)
