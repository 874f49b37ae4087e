"""Posteriors of convolutions against dense matrices: factors, covariance, noise, steps and predictions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import noisynat
from noisynat.curvature import Dense, EigenCorrected, Kronecker
from noisynat.random import RandomStream
from tests.layers.test_conv import CASES, conv_of, images, patches_by_hand
from tests.posteriors.test_noise import by_example, check_moments

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

NATURAL = ("diagonal", "matrix_normal", "kronecker", "eigen_corrected", "dense", "dense_per_layer")
STD = 0.5
DRAWS = 10_000


class Net(nn.Module):
    """A convolution, a nonlinearity and a linear layer of what is left of 4 x 6 x 7 images."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.head = nn.LazyLinear(2).double()
        self(images(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def variational(net: nn.Module, structure: Any = "kronecker", num_data: int = 10, **settings: Any) -> Any:
    likelihood = noisynat.GaussianLikelihood(STD)
    return noisynat.VariationalNetwork(net, likelihood, posterior=structure, num_data=num_data, seed=0, **settings)


def statistics_of(bnn: Any, *batches: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    """Averages of the first layer, all of one step's batches, at the mean."""
    optimizer = noisynat.NoisyNaturalGradient(bnn.eval(), lr=0.0, betas=(0.0, 0.0), fisher="ggn", stats_every=1)
    for x in batches:
        y = torch.zeros(len(x), bnn(x).shape[-1], dtype=x.dtype)
        (scale * bnn.loss(x, y)).backward()
    optimizer.step()
    return {key: average.value.clone() for key, average in bnn.posteriors[0].curvature.averages.items()}


def jacobian(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """Of the outputs (B, K) in a layer's weight and bias, one row of the weight after the other: (B, K, D)."""
    own = dict(net.named_parameters())
    chosen = {key: value for key, value in own.items() if key.startswith(f"{name}.")}
    found = jacrev(lambda changed: functional_call(net, {**own, **changed}, (x,)))(chosen)
    normalizes = isinstance(net.get_submodule(name), nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    if normalizes:  # a row has the scale and the shift of a unit
        return torch.stack([part.flatten(2) for part in found.values()], dim=-1).flatten(2).detach()
    rows = found[f"{name}.weight"].flatten(3)
    if f"{name}.bias" in found:
        rows = torch.cat([rows, found[f"{name}.bias"].unsqueeze(-1)], dim=-1)
    return rows.flatten(2).detach()


def gauss_newton(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """(1/B) sum_b J_b^T J_b / std^2, (D, D)."""
    j = jacobian(net, name, x)
    return torch.einsum("bki,bkj->ij", j, j) / len(x) / STD**2


def factors_by_hand(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    """A and S of each group of the convolution's outputs, by loops over examples and locations."""
    conv: Any = net.conv
    window = noisynat.layers.Window.of(conv)
    channels, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    s = conv(x)
    f = net.head(torch.tanh(s).flatten(1))
    gradients = [torch.autograd.grad(f[:, k].sum() / STD, s, retain_graph=True)[0] for k in range(f.shape[-1])]
    of_inputs, of_outputs = [], []
    for group in range(conv.groups):
        rows = patches_by_hand(x[:, group * channels : (group + 1) * channels], window)
        if conv.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)
        locations = rows.shape[1]
        of_inputs.append(sum(torch.outer(row, row) for rows_of_one in rows for row in rows_of_one) / len(x))
        g = [part[:, group * outputs : (group + 1) * outputs].flatten(2) for part in gradients]
        squares = [
            torch.outer(part[n, :, t], part[n, :, t]) for part in g for n in range(len(x)) for t in range(locations)
        ]
        of_outputs.append(sum(squares) / (len(x) * locations))
    return torch.stack(of_inputs), torch.stack(of_outputs)


# --- factors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_factors_are_those_of_kfc(case: dict[str, Any]) -> None:
    net, x = Net(conv_of(case)), images(3)
    found = statistics_of(variational(net), x)
    a, s = factors_by_hand(net, x)
    torch.testing.assert_close(found["A"].reshape(a.shape), a)
    torch.testing.assert_close(found["S"].reshape(s.shape), s)


@pytest.mark.parametrize("structure", ["dense_per_layer", "dense", "diagonal", "eigen_corrected"])
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[16], CASES[18]], ids=str)
def test_the_rest_is_exact(case: dict[str, Any], structure: Any) -> None:
    """Dense curvature is the Gauss-Newton block, a diagonal one its diagonal, and EK-FAC its diagonal in a basis."""
    net, x = Net(conv_of(case)), images(3)
    bnn = variational(net, structure)
    statistics_of(bnn, x)
    expected, size = gauss_newton(net, "conv", x), bnn.layers[0].mean.numel()
    curvature = bnn.posteriors[0].curvature
    if structure in ("dense", "dense_per_layer"):
        torch.testing.assert_close(curvature.latest()[:size, :size], expected)
        return
    if structure == "diagonal":
        torch.testing.assert_close(curvature.averages["c"].value.flatten(), expected.diagonal())
        return
    groups = case.get("groups", 1)
    block = size // groups
    basis = curvature.prepared
    optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.0, betas=(0.0, 0.0), fisher="ggn", stats_every=1)
    bnn.loss(x, torch.zeros(3, 2, dtype=x.dtype)).backward()  # once more, in the basis of the first time
    optimizer._update_curvature()
    values = curvature.averages["d"].value.reshape(groups, -1)
    for group in range(groups):
        vectors = [basis[key].reshape(groups, *basis[key].shape[-2:])[group] for key in ("S.vectors", "A.vectors")]
        q = torch.kron(*vectors)
        part = expected[group * block : (group + 1) * block, group * block : (group + 1) * block]
        torch.testing.assert_close(values[group], (q.T @ part @ q).diagonal())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("structure", ["kronecker", "eigen_corrected", "diagonal", "dense"])
def test_statistics_do_not_know_batch_sizes_or_scales(structure: str, groups: int) -> None:
    net, x = Net(conv_of({"groups": groups})), images(4)
    expected = statistics_of(variational(net, structure), x)
    changes = [
        statistics_of(variational(net, structure), torch.cat([x, x])),
        statistics_of(variational(net, structure), x[:1], x[1:]),
        statistics_of(variational(net, structure), x, scale=1000.0),
    ]
    for found in changes:
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("noise", ["shared", "auto"])
@pytest.mark.parametrize("first", [nn.Linear(5, 3), nn.Conv1d(2, 3, 2), nn.BatchNorm1d(2)], ids=str)
def test_what_follows_a_layer_may_change_its_outputs_in_place(first: nn.Module, noise: str) -> None:
    """Gradients are those of the layer's outputs, and not of what became of them."""
    x, found = torch.randn(7, 2, 5, dtype=torch.float64), []
    first, head = copy.deepcopy(first).double(), nn.LazyLinear(1).double()
    nn.Sequential(first, nn.Flatten(), head)(x)
    for inplace in (True, False):
        net = nn.Sequential(first, nn.ReLU(inplace), nn.Flatten(), head)
        bnn = variational(net, noise=noise)
        optimizer = noisynat.NoisyNaturalGradient(bnn.train(), lr=0.0, betas=(0.0, 0.0))
        bnn.loss(x, torch.zeros(7, 1, dtype=x.dtype)).backward()
        optimizer.step()
        found.append({key: average.value for key, average in bnn.posteriors[0].curvature.averages.items()})
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])


def test_the_first_examples_of_a_batch_can_stand_for_it() -> None:
    net, x = Net(conv_of({"groups": 2})), images(4)
    bnn = variational(net).eval()
    optimizer = noisynat.NoisyNaturalGradient(
        bnn, lr=0.0, betas=(0.0, 0.0), fisher="ggn", stats_every=1, stats_examples=3
    )
    bnn.loss(x, torch.zeros(4, 2, dtype=x.dtype)).backward()
    optimizer.step()
    expected = statistics_of(variational(net), x[:3])
    for key, average in bnn.posteriors[0].curvature.averages.items():
        torch.testing.assert_close(average.value, expected[key])


def test_the_biass_row_is_what_all_locations_sum_to() -> None:
    """A's last entry is T, and the others of its row are the mean image's sums under the window."""
    net, x = Net(conv_of({"stride": 2})), images(3)
    a = statistics_of(variational(net), x)["A"]
    torch.testing.assert_close(a[-1, -1], torch.tensor(2.0 * 3, dtype=x.dtype))
    weight = torch.ones(1, 1, 2, 3, dtype=x.dtype)  # one for each place of the window
    sums = nn.functional.conv2d(x.mean(0).unsqueeze(1), weight, dilation=2)  # entry (i, j) of the windows, summed
    torch.testing.assert_close(a[-1, :-1], sums[..., :3, :3].flatten())


# --- weight sharing in deep linear networks -------------------------------------------------------


class DeepLinear(nn.Module):
    """Two linear layers at each of T locations, whose outputs are kept, or averaged."""

    def __init__(self, kind: str, pooled: bool) -> None:
        super().__init__()
        self.kind, self.pooled = kind, pooled
        if kind == "linear":
            self.first, self.second = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
        else:
            self.first, self.second = nn.Conv1d(4, 3, 2).double(), nn.Conv1d(3, 2, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        f = self.second(self.first(x if self.kind == "conv" else x.mT))
        f = f if self.kind == "conv" else f.mT
        return f.mean(-1) if self.pooled else f.flatten(1)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_each_rule_is_exact_where_it_should_be(kind: str, pooled: bool, sharing: Any) -> None:
    net, x = DeepLinear(kind, pooled), images(5, dims=1)
    bnn = variational(net, sharing={"first": sharing, "sec*": sharing})
    statistics_of(bnn, x)
    for posterior, name in zip(bnn.posteriors, ("first", "second"), strict=True):
        factors = {key: average.value for key, average in posterior.curvature.averages.items()}
        exact = gauss_newton(net, name, x)
        error = (torch.kron(factors["S"], factors["A"]) - exact).norm() / exact.norm()
        assert (error < 1e-10) == (pooled == (sharing == "reduce")), error


def test_one_location_knows_no_rules() -> None:
    x = images(5, dims=1)[..., 0]
    found = [
        statistics_of(variational(nn.Linear(4, 2).double(), sharing=rule), x)["A"] for rule in ("expand", "reduce")
    ]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("structure", ["kronecker", "matrix_normal", "eigen_corrected"])
def test_rules_reach_every_kronecker_form(structure: Any) -> None:
    bnn = variational(DeepLinear("conv", True), structure, sharing={"first": "reduce"})
    curvatures = [posterior.curvature for posterior in bnn.posteriors]
    assert all(isinstance(curvature, (Kronecker, EigenCorrected)) for curvature in curvatures)
    assert [curvature.rule for curvature in curvatures] == ["reduce", "expand"]
    truncated = variational(DeepLinear("conv", True), "kronecker", sharing="reduce", rank=1)
    assert [posterior.curvature.rule for posterior in truncated.posteriors] == ["reduce", "reduce"]


def test_rules_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="sharing is one of 'expand', 'reduce', got 'sum'"):
        variational(nn.Linear(4, 2).double(), sharing="sum")
    with pytest.raises(ValueError, match="entry 'third' of sharing fits none of the layers first, second"):
        variational(DeepLinear("conv", True), sharing={"third": "reduce"})


# --- a convolution of one pixel is a linear layer -------------------------------------------------


class NoPixel(nn.Module):
    """Two linear layers."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class OnePixel(NoPixel):
    """The same as convolutions of images of one pixel."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__(*(self.convolution(linear) for linear in (first, second)))

    @staticmethod
    def convolution(linear: nn.Linear) -> nn.Conv2d:
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1).double()
        conv.load_state_dict({"weight": linear.weight[..., None, None], "bias": linear.bias})
        return conv

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x[..., None, None])))[..., 0, 0]


@pytest.mark.parametrize("structure", [*NATURAL, "mean_field"])
@pytest.mark.parametrize("noise", ["shared", "per_example"])
def test_one_pixel(structure: str, noise: str) -> None:
    """Trained with the same random numbers, it is the same posterior."""
    first, second = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
    linear = variational(NoPixel(first, second), structure, noise=noise)
    conv = variational(OnePixel(first, second), structure, noise=noise)
    x, y = images(10, dims=1)[..., 0], torch.randn(10, 2, dtype=torch.float64)
    for bnn in (linear, conv):
        if structure == "mean_field":
            optimizer: Any = torch.optim.Adam(bnn.parameters(), 0.01)
        else:
            optimizer = noisynat.NoisyNaturalGradient(bnn.train(), lr=0.05)
        for _ in range(8):
            optimizer.zero_grad()
            (bnn.negative_elbo(x, y) if structure == "mean_field" else bnn.loss(x, y)).backward()
            optimizer.step()
    for one, other in zip(conv.posteriors, linear.posteriors, strict=True):
        torch.testing.assert_close(one.layers[0].mean, other.layers[0].mean)
        torch.testing.assert_close(one.covariance(), other.covariance())
    torch.testing.assert_close(conv.elbo(x, y).total, linear.elbo(x, y).total)
    torch.testing.assert_close(conv.predict(x).mean, linear.predict(x).mean)


# --- covariance, noise and steps ------------------------------------------------------------------


def trained_posterior(structure: str, groups: int, noise: str, replicas: int | None = None) -> Any:
    """Of a small convolution that has seen three images; with replicas, the same for each of them."""
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 2, 2, groups=groups).double()
    one = variational(nn.Sequential(conv, nn.Flatten()), structure, num_data=4, noise=noise)
    if structure != "mean_field":
        statistics_of(one, torch.randn(3, 2, 3, 2, dtype=torch.float64))
    if replicas is None:
        return one
    many = variational(conv, structure, num_data=4, noise=noise, replicas=replicas, init="weights")
    if structure != "mean_field":
        state = one.posteriors[0].curvature.state_tensors()
        curvature = many.posteriors[0].curvature
        curvature.load_tensors({key: value.expand(replicas, *value.shape).clone() for key, value in state.items()})
    return many


def dense_covariance(structure: str, groups: int) -> Tensor:
    """Sigma (D, D) of :func:`trained_posterior`, from its curvature's own dense matrices."""
    posterior = trained_posterior(structure, groups, "shared").posteriors[0]
    if structure == "mean_field":
        return torch.diag_embed((2 * posterior.log_std).exp().flatten()).detach()
    dense = posterior.curvature.to_dense()
    dense = dense if dense.dim() == 2 else torch.block_diag(*dense)
    return torch.linalg.inv(dense) / 4


STRUCTURES = (*NATURAL, "mean_field")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_covariance_kl_and_steps_by_dense_algebra(structure: str, groups: int) -> None:
    bnn = trained_posterior(structure, groups, "shared")
    posterior, layer = bnn.posteriors[0], bnn.layers[0]
    sigma = dense_covariance(structure, groups)
    torch.testing.assert_close(posterior.covariance(), sigma)
    torch.testing.assert_close(torch.cat([v.flatten() for v in posterior.variances()]), sigma.diagonal())
    mean = layer.mean.detach().flatten().clone()
    kl = (sigma.trace() + mean @ mean - len(mean) - torch.logdet(sigma)) / 2
    torch.testing.assert_close(posterior.kl_divergence(), kl)
    if structure == "mean_field":
        return
    v = torch.randn_like(layer.mean)
    step = posterior.precondition([v], 0.0)
    expected = 4 * sigma @ v.flatten()
    torch.testing.assert_close(posterior.inner(step), expected @ v.flatten())
    with torch.no_grad():
        posterior.move(step, [torch.full((1, 1), -2.0, dtype=torch.float64)])
    torch.testing.assert_close(layer.mean.detach().flatten(), mean - 2 * expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("noise", ["shared", "flipout", "per_example", "grouped", "auto"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_noise_is_joint_over_locations(structure: str, noise: str, groups: int) -> None:
    """Outputs at all locations have the covariance J Sigma J^T of one weight; examples are uncorrelated or share it."""
    if noise == "flipout" and structure in ("dense", "dense_per_layer"):
        pytest.skip("has no noise at the outputs")
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    many = trained_posterior(structure, groups, noise, DRAWS)
    plain = nn.Module()
    plain.conv = nn.Conv2d(2, 2, 2, groups=groups).double()
    plain.forward = lambda x: plain.conv(x).flatten(1)  # type: ignore[method-assign]
    j = jacobian(plain, "conv", x).flatten(0, 1)  # (examples * out * T, D); a linear map, whatever the weights
    joint = j @ dense_covariance(structure, groups) @ j.T
    images_of_all = x.expand(DRAWS, *x.shape)
    with torch.no_grad():
        deviations = (many.train()(images_of_all) - many.eval()(images_of_all)).flatten(1)
    check_moments(deviations, joint if noise == "shared" else by_example(joint, len(joint) // 2))


@pytest.mark.parametrize("noise", ["local", "separable"])
def test_noise_that_is_independent_at_every_location_is_refused(noise: str) -> None:
    bnn = variational(Net(conv_of({})), noise=noise)
    with pytest.raises(ValueError, match="not a posterior sample for a shared weight"):
        bnn.train()(images(3))


def test_auto_noise_has_a_draw_for_each_of_four_groups_of_examples() -> None:
    bnn = variational(Net(conv_of({})))
    x = images(1).expand(32, -1, -1, -1)
    s: list[Tensor] = []
    bnn.net.conv.register_forward_hook(lambda module, inputs, output: s.append(output.detach()))
    bnn.train()(x)
    same = (s[0][:, None] == s[0][None]).flatten(2).all(-1)
    group = torch.arange(32) // 8
    assert torch.equal(same, group[:, None] == group[None])


# --- predictions, state ---------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_linearized_predictions_are_first_order(groups: int) -> None:
    net, x = Net(conv_of({"groups": groups})), images(3)
    bnn = variational(net)
    draws = list(bnn._sampler.draw(4, RandomStream(0)))
    found = bnn._sampler.evaluate_linearized(x, draws)
    with torch.no_grad():
        f = net(x)
        for sample, draw in zip(found, draws, strict=True):
            expected = f.clone()
            for name, layer, one in zip(("conv", "head"), bnn.layers, draw, strict=True):
                expected += jacobian(net, name, x) @ (one.weight - layer.mean).flatten()
            torch.testing.assert_close(sample, expected)


@pytest.mark.parametrize("structure", NATURAL)
def test_training_that_was_stopped_goes_on_bit_for_bit(structure: Any) -> None:
    x, y = images(12), torch.randn(12, 2, dtype=torch.float64)

    def trainer() -> tuple[Any, Any]:
        torch.manual_seed(3)
        bnn = variational(Net(conv_of({"groups": 2})), structure)
        return bnn, noisynat.NoisyNaturalGradient(bnn.train(), lr=0.05, stats_every=2, refresh_every=3)

    def train(bnn: Any, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            bnn.loss(x, y).backward()
            optimizer.step()

    bnn, optimizer = trainer()
    train(bnn, optimizer, 5)
    state = copy.deepcopy((bnn.state_dict(), optimizer.state_dict()))
    again, optimizer_again = trainer()
    again.load_state_dict(state[0])
    optimizer_again.load_state_dict(state[1])
    train(bnn, optimizer, 5)
    train(again, optimizer_again, 5)
    assert all(torch.equal(one.mean, other.mean) for one, other in zip(bnn.layers, again.layers, strict=True))
    assert torch.equal(bnn.predict(x).samples, again.predict(x).samples)


def test_a_kronecker_posterior_of_groups_goes_on_as_a_dense_one() -> None:
    bnn = variational(Net(conv_of({"groups": 2})))
    statistics_of(bnn, images(3))
    for structure in ("dense", "dense_per_layer"):
        dense = bnn.with_posterior(structure)
        assert isinstance(dense.posteriors[0].curvature, Dense)
        size = bnn.layers[0].mean.numel()
        torch.testing.assert_close(dense.posteriors[0].covariance()[:size, :size], bnn.posteriors[0].covariance())
