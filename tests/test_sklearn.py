"""The estimators: scikit-learn's own checks, and what can be derived of their numbers."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from noisynat.sklearn import BayesianMLPClassifier, BayesianMLPRegressor, base, course
from noisynat.sklearn.course import Course

BRIEF: dict[str, Any] = {"max_iter": 8, "n_networks": 2, "n_posterior_samples": 40, "random_state": 0}
CHECKED: dict[str, Any] = {"max_iter": 10, "n_networks": 1, "n_posterior_samples": 40, "posterior": "kronecker"}

generator = np.random.default_rng(0)
X = generator.uniform(-2, 2, (90, 2))
Y = np.sin(X[:, 0]) + 0.1 * generator.standard_normal(90)
LABELS = np.array(["bad", "good", "ugly"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 1)]
NEW = generator.uniform(-2, 2, (7, 2))


@pytest.fixture(scope="module")
def regressor() -> BayesianMLPRegressor:
    return BayesianMLPRegressor(**BRIEF).fit(X, Y)


@pytest.fixture(scope="module")
def of_two() -> BayesianMLPRegressor:
    """Two targets of unlike scales."""
    return BayesianMLPRegressor(**BRIEF).fit(X, np.stack([Y, 5 - 100 * Y], axis=1))


@pytest.fixture(scope="module", params=["two", "three"])
def classifier(request: pytest.FixtureRequest) -> BayesianMLPClassifier:
    y = np.where(LABELS == "ugly", "bad", LABELS) if request.param == "two" else LABELS
    return BayesianMLPClassifier(**BRIEF).fit(X, y)


@parametrize_with_checks([BayesianMLPRegressor(**CHECKED), BayesianMLPClassifier(**CHECKED)])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# --- the numbers of a regression ------------------------------------------------------------------


def test_log_likelihood_is_in_the_targets_own_units(regressor: BayesianMLPRegressor) -> None:
    large = clone(regressor).fit(X, 1000 * Y - 7)
    here, there = regressor.log_likelihood(X, Y), large.log_likelihood(X, 1000 * Y - 7)
    np.testing.assert_allclose(there, here - np.log(1000), rtol=1e-6)
    assert large.elbo_ == pytest.approx(regressor.elbo_ - len(X) * np.log(1000))
    np.testing.assert_allclose(large.elbo_history_, np.subtract(regressor.elbo_history_, np.log(1000)))
    np.testing.assert_allclose(large.loss_curve_, np.add(regressor.loss_curve_, np.log(1000)))
    np.testing.assert_allclose(large.predict(X), 1000 * regressor.predict(X) - 7)


def test_log_likelihood_is_a_density(regressor: BayesianMLPRegressor) -> None:
    grid = np.linspace(-30, 30, 3001)
    density = np.exp(regressor.log_likelihood(np.repeat(NEW[:1], len(grid), axis=0), grid))
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)


def test_interval_holds_its_probability(of_two: BayesianMLPRegressor) -> None:
    lower, upper = of_two.predict_interval(NEW, 0.8)
    predictive = of_two._predictive(of_two._inputs(NEW))
    for end, probability in ((lower, 0.1), (upper, 0.9)):
        cdf = predictive.cdf(torch.from_numpy(of_two.y_scaler_.transform(end)))
        np.testing.assert_allclose(cdf, probability, atol=1e-5)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        of_two.predict_interval(NEW, 95)


def test_uncertainties_agree(of_two: BayesianMLPRegressor) -> None:
    mean, std = of_two.predict(NEW, return_std=True)
    again, cov = of_two.predict(NEW, return_cov=True)
    np.testing.assert_array_equal(mean, of_two.predict(NEW))
    np.testing.assert_allclose(again, mean)
    assert cov.shape == (7, 7, 2)
    for k in range(2):
        np.testing.assert_allclose(np.diag(cov[..., k]), std[:, k] ** 2)
        np.testing.assert_allclose(cov[..., k], cov[..., k].T)
        assert np.linalg.eigvalsh(cov[..., k]).min() > 0
    predictive = of_two._predictive(of_two._inputs(NEW))
    np.testing.assert_allclose(std**2, predictive.variance.numpy() * of_two.y_scaler_.scale_**2)
    with pytest.raises(ValueError, match="one of return_std and return_cov"):
        of_two.predict(NEW, return_std=True, return_cov=True)


def test_draws_have_the_predicted_moments(of_two: BayesianMLPRegressor) -> None:
    draws = of_two.set_params(n_posterior_samples=4000).sample_y(NEW, 4000, random_state=1)
    mean, cov = of_two.predict(NEW, return_cov=True)
    of_two.set_params(n_posterior_samples=BRIEF["n_posterior_samples"])
    assert draws.shape == (7, 2, 4000)
    for k in range(2):
        scale = np.sqrt(np.diag(cov[..., k]))
        assert np.abs((draws[:, k].mean(1) - mean[:, k]) / scale).max() < 0.1
        assert np.abs((np.cov(draws[:, k]) - cov[..., k]) / np.outer(scale, scale)).max() < 0.25


@pytest.mark.parametrize(("form", "expected"), [((90,), (7,)), ((90, 1), (7, 1)), ((90, 2), (7, 2))])
def test_predictions_have_the_form_of_the_targets(form: tuple[int, ...], expected: tuple[int, ...]) -> None:
    y = np.stack([Y, Y], axis=1)[:, : form[-1]].reshape(form) if len(form) == 2 else Y
    model = BayesianMLPRegressor(**{**BRIEF, "max_iter": 1}).fit(X, y)
    mean, std = model.predict(NEW, return_std=True)
    assert mean.shape == std.shape == model.predict_interval(NEW)[0].shape == expected
    assert model.predict(NEW, return_cov=True)[1].shape == (7, *expected)
    assert model.sample_y(NEW, 3).shape == (*expected, 3)
    assert model.log_likelihood(X, y).shape == (90,)
    assert isinstance(model.score(X, y), float)
    with pytest.raises(ValueError, match="training began with targets"):
        model.log_likelihood(X, np.zeros((90, 3)))


def test_constant_features_and_targets_do_no_harm() -> None:
    constant = np.column_stack([X, np.full(90, 3.7)])
    model = BayesianMLPRegressor(**BRIEF).fit(constant, np.full(90, 0.1))
    mean, std = model.predict(constant + np.eye(3)[2], return_std=True)
    assert np.isfinite(mean).all()
    assert np.isfinite(std).all()
    assert (std > 0).all()


def test_noise_can_be_constant() -> None:
    model = BayesianMLPRegressor(noise="constant", **BRIEF).fit(X, Y)
    varying, constant = BayesianMLPRegressor(**BRIEF).fit(X, Y), model
    for which, differs in ((varying, True), (constant, False)):
        noise = which._predictive(which._inputs(NEW)).aleatoric_variance
        assert bool(noise.std() > 1e-8) == differs


def test_outliers_are_drawn_in_up_to_the_limit() -> None:
    """By hand: 4 standard deviations with a limit of 3 are 4 / sqrt(1 + 16 / 9) = 2.4."""
    column = np.array([-1.0, 1.0] * 45).reshape(-1, 1)  # mean 0, standard deviation 1
    inputs = np.array([[4.0], [-4.0], [0.0], [1e9]])
    for limit, expected in ((3.0, [2.4, -2.4, 0, 3]), (None, [4, -4, 0, 1e9])):
        model = BayesianMLPRegressor(input_limit=limit, **BRIEF).fit(column, Y)
        np.testing.assert_allclose(model._inputs(inputs).squeeze(1), expected, atol=1e-12)
        far, near = model.predict(inputs[3:], return_std=True)[1], model.predict(column[:1], return_std=True)[1]
        assert bool(far > 1e6 * near) == (limit is None)


def test_it_learns_a_curve_without_tuning() -> None:
    for effort, structure, score in (("quick", "kronecker", 0.9), ("thorough", "dense", 0.95)):
        model = BayesianMLPRegressor(effort=effort, random_state=0).fit(X, Y)
        lower, upper = model.predict_interval(NEW)
        truth = np.sin(NEW[:, 0])
        assert model.score(NEW, truth) > score
        assert ((lower < truth) & (truth < upper)).all()
        assert (upper - lower).max() < 2.5
        assert model.network_.structure == structure


@pytest.mark.parametrize("wide", [False, True])
def test_little_work_has_one_thread_and_the_setting_is_put_back(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, original, before = [], course.train, torch.get_num_threads()

    def noting(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return original(*args)

    monkeypatch.setattr(course, "train", noting)
    torch.set_num_threads(2)
    try:
        BayesianMLPRegressor(hidden_layer_sizes=800 if wide else 50, **BRIEF).fit(X, Y)
        assert seen == [2 if wide else 1]
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="prior"):
            BayesianMLPRegressor(prior_variance=-1, **BRIEF).fit(X, Y)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- the numbers of a classification --------------------------------------------------------------


def test_probabilities_are_probabilities(classifier: BayesianMLPClassifier) -> None:
    probabilities, logs = classifier.predict_proba(NEW), classifier.predict_log_proba(NEW)
    assert probabilities.shape == (7, len(classifier.classes_))
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_allclose(logs, np.log(probabilities))
    predictive = classifier._predictive(classifier._inputs(NEW)).probs.numpy()
    if len(classifier.classes_) == 2:
        predictive = np.hstack([1 - predictive, predictive])
    np.testing.assert_allclose(probabilities, predictive)
    assert list(classifier.predict(NEW)) == list(classifier.classes_[probabilities.argmax(1)])


def test_log_likelihood_is_minus_the_log_loss(classifier: BayesianMLPClassifier) -> None:
    y = classifier.predict(X)[::-1]
    loss = log_loss(y, classifier.predict_proba(X), labels=classifier.classes_)
    assert -classifier.log_likelihood(X, y).mean() == pytest.approx(loss)
    with pytest.raises(ValueError, match="classes that training has not"):
        classifier.log_likelihood(X, np.full(90, "new"))


def test_it_classifies_without_tuning() -> None:
    data, classes = load_iris(return_X_y=True)
    model = BayesianMLPClassifier(max_iter=80, random_state=0).fit(data[::2], classes[::2])
    assert model.score(data[1::2], classes[1::2]) > 0.92
    assert model.log_likelihood(data[1::2], classes[1::2]).mean() > -0.35


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        BayesianMLPClassifier(**BRIEF).fit(X, np.zeros(90, dtype=int))


# --- training, part by part -----------------------------------------------------------------------


def test_partial_fit_counts_and_narrows() -> None:
    model = BayesianMLPRegressor(**BRIEF)
    model.partial_fit(X[:60], Y[:60])
    scale, before = model.x_scaler_.scale_.copy(), model.network_.posteriors[0].variances()[0].mean()
    model.partial_fit(X[60:], Y[60:])
    assert (model.n_samples_seen_, model.network_.num_data, model.n_iter_) == (90, 90, 2)
    assert len(model.elbo_history_) == len(model.loss_curve_) == 2
    assert model.network_.likelihood.num_data == 90
    assert model._optimizer_state is not None
    assert model._optimizer_state["param_groups"][0]["steps"] == 3  # two batches, and one
    assert model.network_.posteriors[0].variances()[0].mean() < before
    np.testing.assert_array_equal(model.x_scaler_.scale_, scale)
    with pytest.raises(ValueError, match="training began with targets"):
        model.partial_fit(X, np.stack([Y, Y], axis=1))


def test_partial_fit_learns_a_stream() -> None:
    model = BayesianMLPRegressor(**BRIEF)
    for _ in range(40):
        model.partial_fit(X, Y)
    assert model.score(X, Y) > 0.8
    assert np.mean(model.loss_curve_[-5:]) < model.loss_curve_[0]
    assert model.network_.kl_weight == 1


def test_partial_fit_goes_on_after_fit() -> None:
    model = BayesianMLPRegressor(**{**BRIEF, "max_iter": 60}).fit(X, Y)
    score, weights = model.score(X, Y), model.mixture_weights_
    model.partial_fit(X, Y)
    assert (model.n_samples_seen_, model.n_iter_) == (180, 61)
    assert abs(model.score(X, Y) - score) < 0.05
    assert model.mixture_weights_ is weights
    assert model.fit(X, Y).n_samples_seen_ == 90
    assert model.n_iter_ == 60


def test_partial_fit_of_classes() -> None:
    model = BayesianMLPClassifier(**BRIEF)
    with pytest.raises(ValueError, match="first call of partial_fit needs classes"):
        model.partial_fit(X, LABELS)
    model.partial_fit(X[:1], LABELS[:1], classes=["ugly", "good", "bad"])
    model.partial_fit(X, LABELS)
    assert list(model.classes_) == ["bad", "good", "ugly"]
    assert model.predict_proba(NEW).shape == (7, 3)
    with pytest.raises(ValueError, match="training began with"):
        model.partial_fit(X, LABELS, classes=["bad", "good"])
    with pytest.raises(ValueError, match="classes that training has not"):
        model.partial_fit(X, np.full(90, "new"))
    assert model.n_samples_seen_ == 91


# --- repeatable, portable, composable -------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, None])
def test_same_state_same_numbers_and_no_trace(seed: int | None, regressor: BayesianMLPRegressor) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    models = [clone(regressor).set_params(random_state=seed).fit(X, Y) for _ in range(2)]
    draws = [model.sample_y(NEW, 5) for model in models]
    np.testing.assert_array_equal(*draws)
    np.testing.assert_array_equal(models[0].predict(NEW), models[1].predict(NEW))
    np.testing.assert_array_equal(models[0].predict(NEW), models[0].predict(NEW))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert not np.array_equal(models[0].sample_y(NEW, 5, random_state=1), draws[0])
    other = clone(regressor).set_params(random_state=1).fit(X, Y)
    assert not np.allclose(other.predict(NEW), regressor.predict(NEW))


def test_a_copy_predicts_and_goes_on_alike() -> None:
    model = BayesianMLPRegressor(**{**BRIEF, "max_iter": 2}).fit(X, Y)
    stream = io.BytesIO()
    joblib.dump(model, stream)
    stream.seek(0)
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), joblib.load(stream)]
    for other in copies:
        np.testing.assert_array_equal(other.predict(NEW), model.predict(NEW))
    model.partial_fit(X, Y)
    for other in copies:
        np.testing.assert_array_equal(other.partial_fit(X, Y).predict(NEW), model.predict(NEW))


def test_rows_are_predicted_in_parts(of_two: BayesianMLPRegressor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of_two.predict(X, return_std=True), of_two.predict_interval(X), of_two.log_likelihood(X, of_two.predict(X))
    monkeypatch.setattr(base, "_ENTRIES_AT_ONCE", 40 * 4 * 8)  # eight rows
    assert len(list(of_two._predictives(of_two._inputs(X)))) == 12
    np.testing.assert_allclose(of_two.predict(X, return_std=True), whole[0])
    np.testing.assert_allclose(of_two.predict_interval(X), whole[1])
    np.testing.assert_allclose(of_two.log_likelihood(X, of_two.predict(X)), whole[2])


def test_names_of_features_are_kept(regressor: BayesianMLPRegressor) -> None:
    frame = pd.DataFrame(X, columns=["a", "b"])
    model = clone(regressor).fit(frame, pd.Series(Y))
    assert list(model.feature_names_in_) == ["a", "b"]
    np.testing.assert_allclose(model.predict(frame), regressor.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[["b", "a"]])


def test_it_is_part_of_pipelines_and_searches() -> None:
    quick = BayesianMLPRegressor(**{**BRIEF, "max_iter": 2})
    assert make_pipeline(PolynomialFeatures(2), quick).fit(X, Y).predict(NEW).shape == (7,)
    assert cross_val_score(quick, X, Y, cv=2).shape == (2,)
    search = GridSearchCV(quick, {"prior_variance": [0.5, "empirical_bayes"], "hidden_layer_sizes": [8, (8, 4)]}, cv=2)
    assert search.fit(X, Y).predict(NEW).shape == (7,)


def test_sparse_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        BayesianMLPRegressor(**BRIEF).fit(sparse.csr_array(X), Y)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_layer_sizes", (0,)),
        ("hidden_layer_sizes", 2.5),
        ("activation", "relu6"),
        ("posterior", "mean_field"),
        ("prior_variance", -1),
        ("n_networks", 0),
        ("max_iter", "all"),
        ("batch_size", 0),
        ("learning_rate_init", 0.0),
        ("n_posterior_samples", 1.5),
        ("noise", "loud"),
        ("input_limit", 0),
        ("input_limit", "far"),
    ],
)
def test_wrong_settings_are_named(setting: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=setting.split("_")[0]):
        BayesianMLPRegressor(**{**BRIEF, setting: value}).fit(X, Y)


def test_unfitted_estimators_say_so() -> None:
    for ask in (BayesianMLPRegressor().sample_y, BayesianMLPRegressor().predict_interval):
        with pytest.raises(NotFittedError):
            ask(X)


def test_the_quick_course_takes_few_steps_on_many_examples() -> None:
    small, medium, large = (Course.for_size(n, 800) for n in (40, 2000, 30_000))
    assert (small.batch_size, small.epochs, small.shortness) == (40, 80, 50)
    assert (medium.batch_size, medium.epochs, medium.shortness) == (2000, 100, 40)
    assert (large.batch_size, large.epochs) == (2000, 100)  # 15 batches each
    assert not small.dense_finish
    assert Course.for_size(40, 800, posterior="dense").dense_finish
    assert small.noise_step(40) > large.noise_step(30_000)


def test_the_thorough_course_follows_the_number_of_examples() -> None:
    large, small, brief = (Course.for_size(n, 800, effort="thorough") for n in (455, 200, 40))
    assert (large.batch_size, large.epochs, large.shortness) == (32, 267, pytest.approx(1, abs=0.01))
    assert small.epochs * 7 < 4000
    assert small.shortness > 1
    assert brief.epochs * 2 == 200
    assert large.dense_finish
    assert not Course.for_size(455, 20_000, effort="thorough").dense_finish
    assert Course.for_size(30_000, 800, effort="thorough").batch_size == 512


def test_the_distribution_function_belongs_to_the_density() -> None:
    model = BayesianMLPRegressor(**BRIEF).fit(X, 10 + 3 * Y)
    grid = np.linspace(-30, 50, 4001)
    row = np.repeat(NEW[:1], len(grid), axis=0)
    density = np.exp(model.log_likelihood(row, grid))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (grid[1] - grid[0])])
    np.testing.assert_allclose(model.predict_cdf(row, grid) - model.predict_cdf(row[:1], grid[:1]), mass, atol=1e-4)


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import noisynat; import noisynat.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "noisynat[sklearn]"' in done.stderr.splitlines()[-1]
