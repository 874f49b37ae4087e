"""skorch: training equals fit's, predictions average over the posterior, searches and checkpoints work."""

from __future__ import annotations

import importlib
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochScoring, GradientNormClipping
from torch import nn

import noisynat
from noisynat.interop.skorch import SkorchNetwork
from tests.states import differences

N = 20
G = np.random.default_rng(0)
X, Y = G.normal(size=(N, 3)).astype(np.float32), G.normal(size=(N, 1)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64)


def plain_net(hidden: int = 4, outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def make(posterior: str = "kronecker", **settings: Any) -> SkorchNetwork:
    """A net whose every ``fit`` starts from the same weights."""
    defaults: dict[str, Any] = {
        "module__net": plain_net(),
        "module__likelihood": noisynat.GaussianLikelihood("gamma"),
        "module__posterior": posterior,
        "module__seed": 3,
        "max_epochs": 3,
        "batch_size": 6,
        "train_split": None,
        "verbose": 0,
    }
    if posterior == "mean_field":
        defaults |= {"optimizer": torch.optim.Adam, "lr": 0.01}
    return SkorchNetwork(**(defaults | settings))


def fitted_by_noisynat(posterior: str, epochs: int = 3) -> tuple[noisynat.VariationalNetwork, noisynat.History]:
    likelihood = noisynat.GaussianLikelihood("gamma")
    bnn = noisynat.VariationalNetwork(plain_net(), likelihood, None, posterior, num_data=N, seed=3)  # type: ignore[arg-type]
    optimizer: torch.optim.Optimizer = torch.optim.Adam(bnn.parameters(), lr=0.01)
    if bnn.is_natural:
        optimizer = noisynat.NoisyNaturalGradient(bnn, lr=0.02)
    batches = [(torch.tensor(X[i : i + 6]), torch.tensor(Y[i : i + 6])) for i in range(0, N, 6)]
    return bnn, noisynat.fit(bnn, optimizer, batches, epochs, progress=False)


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["diagonal", "kronecker", "dense", "mean_field"])
def test_trains_as_fit_does(posterior: str) -> None:
    """skorch gives the optimizer a closure; a step is one forward pass."""
    net = make(posterior).fit(X, Y)
    bnn, history = fitted_by_noisynat(posterior)
    assert differences(net.module_.state_dict(), bnn.state_dict()) == []
    if bnn.is_natural:
        assert net.history[:, "train_loss"] == pytest.approx(history["loss"], rel=1e-5)
        assert net.optimizer_.param_groups[0]["steps"] == 3 * 4


def test_validation_does_not_change_training() -> None:
    def of_all_and_some(dataset: Any, y: Any, groups: Any = None) -> Any:
        return dataset, torch.utils.data.Subset(dataset, range(5))

    net = make(train_split=of_all_and_some).fit(X, Y)
    assert differences(net.module_.state_dict(), fitted_by_noisynat("kronecker")[0].state_dict()) == []


def test_num_data_is_the_size_of_the_training_part() -> None:
    counts: list[int] = []

    def module(**settings: Any) -> noisynat.VariationalNetwork:
        counts.append(settings["num_data"])
        return noisynat.VariationalNetwork(plain_net(), noisynat.GaussianLikelihood("gamma"), **settings)

    settings = {"max_epochs": 1, "verbose": 0}
    SkorchNetwork(module, **settings).fit(X, Y)
    SkorchNetwork(module, train_split=None, **settings).partial_fit(X, Y).partial_fit(X[:5], Y[:5])
    SkorchNetwork(module, module__num_data=77, **settings).fit(X, Y)
    warm = SkorchNetwork(module, train_split=None, warm_start=True, **settings).fit(X, Y).fit(X[:12], Y[:12])
    assert counts == [16, 20, 77, 20]
    assert warm.module_.num_data == 12


def test_param_groups_have_their_own_lr() -> None:
    net = make(optimizer__param_groups=[("net.0.*", {"lr": 0.0})]).fit(X, Y)
    start = make(max_epochs=0).fit(X, Y).module_
    assert torch.equal(net.module_.layers[0].mean, start.layers[0].mean)
    assert not torch.equal(net.module_.layers[1].mean, start.layers[1].mean)


def test_saved_parameters_and_optimizer_go_on_bit_for_bit(tmp_path: Path) -> None:
    files = {f"f_{part}": str(tmp_path / part) for part in ("params", "optimizer", "history")}
    first = make(max_epochs=2).fit(X, Y)
    first.save_params(**files)
    resumed = make(max_epochs=2, module__num_data=N, module__seed=9).initialize()
    resumed.load_params(**files)
    for net in (first, resumed):
        net.partial_fit(X, Y)
    assert differences(first.module_.state_dict(), resumed.module_.state_dict()) == []
    assert differences(first.optimizer_.state_dict(), resumed.optimizer_.state_dict()) == []


# --- predictions ------------------------------------------------------------------------------


def test_predictions_and_valid_loss_are_the_closed_forms() -> None:
    """A linear network has f(x) ~ N(x m, x Sigma x), and y has the noise's variance more."""
    std = 0.7
    net = make(
        "dense",
        module__net=nn.Linear(3, 1),
        module__likelihood=noisynat.GaussianLikelihood(std),
        train_split=lambda dataset, y: (dataset, dataset),
        num_samples=4000,
        max_epochs=1,
    ).fit(X, Y)
    layer, posterior = net.module_.layers[0], net.module_.posteriors[0]
    rows = np.concatenate([X, np.ones((N, 1))], 1)
    mean = rows @ layer.mean.detach().double().numpy().T
    variance = np.einsum("ni,ij,nj->n", rows, posterior.covariance().detach().double().numpy(), rows)[:, None]
    np.testing.assert_allclose(net.predict(X), mean, atol=0.03)
    np.testing.assert_allclose(net.predictive(X).variance, variance + std**2, rtol=0.05)
    density = -((Y - mean) ** 2) / (2 * (std**2 + variance)) - np.log(2 * math.pi * (std**2 + variance)) / 2
    assert net.history[-1, "valid_loss"] == pytest.approx(-density.mean(), rel=0.01)


def test_predictions_do_not_depend_on_the_batches_or_on_the_call() -> None:
    net = make().fit(X, Y)
    small = net.predict(X)
    np.testing.assert_array_equal(net.predict(X), small)
    net.set_params(batch_size=N)
    np.testing.assert_allclose(net.predict(X), small, rtol=1e-5)
    np.testing.assert_allclose(net.predictive(X).mean, small, rtol=1e-5)


def test_classes() -> None:
    net = make(
        module__net=plain_net(outputs=2), module__likelihood=noisynat.CategoricalLikelihood(), max_epochs=60
    ).fit(X, LABELS)
    probs = net.predict_proba(X)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(net.predict(X), probs.argmax(1))
    assert (net.predict(X) == LABELS).mean() > 0.8
    np.testing.assert_allclose(net.predictive(X).probs, probs, rtol=1e-5)


def test_binary_targets() -> None:
    binary = LABELS[:, None].astype(np.float32)
    net = make(module__likelihood=noisynat.BernoulliLikelihood(), max_epochs=60).fit(X, binary)
    np.testing.assert_array_equal(net.predict(X), net.predict_proba(X) > 0.5)
    assert (net.predict(X) == binary).mean() > 0.8


# --- as scikit-learn and skorch use it --------------------------------------------------------


def wide(hidden: int, **settings: Any) -> noisynat.VariationalNetwork:
    return noisynat.VariationalNetwork(plain_net(hidden), noisynat.GaussianLikelihood("gamma"), **settings)


def test_searches_and_pipelines() -> None:
    net = SkorchNetwork(wide, module__hidden=2, train_split=None, max_epochs=2, verbose=0)
    model = make_pipeline(StandardScaler(), net)
    grid = {"skorchnetwork__module__hidden": [2, 7], "skorchnetwork__module__posterior": ["kronecker", "dense"]}
    search = GridSearchCV(model, grid, scoring="neg_mean_squared_error", cv=4).fit(X, Y)
    best = search.best_estimator_[-1].module_
    assert best.layers[0].out_features == search.best_params_["skorchnetwork__module__hidden"]
    assert best.num_data == N
    assert search.predict(X).shape == (N, 1)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_callbacks_see_train_and_validation() -> None:
    callbacks = [EpochScoring("r2", on_train=True, name="train_r2"), EpochScoring("r2", name="r2"), EarlyStopping()]
    net = make(train_split=lambda dataset, y: (dataset, dataset), callbacks=callbacks).fit(X, Y)
    assert net.history[-1, "train_r2"] == pytest.approx(net.history[-1, "r2"], rel=1e-5)


def test_clones_and_pickles() -> None:
    net = make().fit(X, Y)
    again = clone(net).fit(X, Y)
    assert differences(again.module_.state_dict(), net.module_.state_dict()) == []
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net)).predict(X), net.predict(X))


def test_new_arguments_make_a_new_network() -> None:
    net = make().fit(X, Y)
    net.set_params(module__posterior="dense")
    assert net.module_.structure == "dense"
    assert net.optimizer_.network is net.module_
    assert net.module_.num_data == N


# --- what is refused --------------------------------------------------------------------------


def test_a_natural_posterior_refuses_other_optimizers() -> None:
    with pytest.raises(TypeError, match=r"'kronecker' posterior is trained by noisynat's optimizers, .* not by .*Adam"):
        make(optimizer=torch.optim.Adam).fit(X, Y)
    with pytest.raises(ValueError, match=r"NoisyAdam trains posteriors 'diagonal'"):
        make(optimizer=noisynat.NoisyAdam).fit(X, Y)


def test_clipping_is_refused_for_natural_posteriors_only() -> None:
    with pytest.raises(ValueError, match="GradientNormClipping would scale the likelihood's part"):
        make(callbacks=[GradientNormClipping(1.0)]).fit(X, Y)
    make("mean_field", callbacks=[GradientNormClipping(1.0)]).fit(X, Y)


def test_a_plain_neural_net_cannot_make_the_optimizer() -> None:
    """Why there is a net of our own."""
    settings = {"module__net": plain_net(), "module__likelihood": noisynat.GaussianLikelihood(), "module__num_data": N}
    net = NeuralNet(noisynat.VariationalNetwork, nn.MSELoss, noisynat.NoisyKFAC, **settings)
    with pytest.raises(TypeError, match="NoisyKFAC takes a VariationalNetwork, got list"):
        net.initialize()


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    net = make().fit(X, Y)
    before = {key: value.clone() for key, value in net.module_.named_parameters()}
    with pytest.raises(noisynat.NonFiniteLossError, match="not finite in epoch 4;"):
        net.partial_fit(X, np.full_like(Y, 1e30))
    assert differences(before, dict(net.module_.named_parameters())) == []


def test_without_data_num_data_must_be_given() -> None:
    with pytest.raises(TypeError, match="num_data is required"):
        make().initialize()


def test_without_skorch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "skorch"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "skorch", None)
    monkeypatch.delitem(sys.modules, "noisynat.interop.skorch")
    with pytest.raises(ImportError, match=r'^skorch is not installed; get it with pip install "noisynat\[skorch\]"$'):
        importlib.import_module("noisynat.interop.skorch")
