"""A residual network with normalization trains, predicts, saves, loads and resumes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import noisynat
from tests.states import differences


class Block(nn.Module):
    """Two convolutions and a shortcut, as in He et al. (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(h)) + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """With the names of torchvision's, and few and narrow blocks."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(h))), 1))


def data() -> tuple[Tensor, Tensor]:
    """Bars of three kinds, with noise."""
    y = torch.arange(48) % 3
    x = 0.3 * torch.randn(48, 1, 8, 8)
    x[y == 0, :, 3:5] += 1
    x[y == 1, :, :, 3:5] += 1
    return x, y


def make(structure: Any = "kronecker", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    bnn = noisynat.VariationalNetwork(
        ResNet(), noisynat.CategoricalLikelihood(), noisynat.GaussianPrior(1.0, "fan_in"), structure, num_data=48,
        kl_weight=0.05, strict=True,
    )  # fmt: skip
    return bnn, noisynat.NoisyNaturalGradient(bnn, lr=0.05, stats_every=2, refresh_every=5)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "matrix_normal", "eigen_corrected"])
def test_it_learns(structure: Any) -> None:
    torch.manual_seed(1)
    x, y = data()
    bnn, optimizer = make(structure)
    noisynat.fit(bnn, optimizer, noisynat.TensorBatches(x, y, 16, seed=0), 25, progress=False)
    noisynat.update_bn(bnn, x.split(16))
    prediction = bnn.predict(x, 20)
    assert (prediction.mode == y).float().mean() > 0.9
    assert prediction.log_prob(y).mean() > -0.6


def test_coverage_lists_every_parameter() -> None:
    net, bnn = ResNet(), make()[0]
    rows = {row.name: (row.shape, row.kind) for row in bnn.coverage()}
    assert rows == {name: (tuple(p.shape), "posterior") for name, p in net.named_parameters()}
    assert bnn.coverage().fraction == 1


def test_it_saves_loads_and_resumes(tmp_path: Any) -> None:
    x, y = data()
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 48, 16)]
    whole, optimizer = make()
    noisynat.fit(whole, optimizer, batches, 4, progress=False)
    first, optimizer = make()
    noisynat.fit(first, optimizer, batches, 2, progress=False, checkpoint=tmp_path / "training.pt")
    resumed, optimizer = make(seed=5)
    noisynat.fit(resumed, optimizer, batches, 4, progress=False, checkpoint=tmp_path / "training.pt")
    assert differences(whole.state_dict(), resumed.state_dict()) == []
    torch.save(resumed.state_dict(), tmp_path / "bnn.pt")
    loaded, _ = make(seed=6)
    loaded.load_state_dict(torch.load(tmp_path / "bnn.pt", weights_only=True))
    assert torch.equal(loaded.predict(x, 3).samples, resumed.predict(x, 3).samples)
