"""Metrics of predictions: those of scikit-learn, and the same bits however the rows are cut and merged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from sp_ray_ml.errors import DataError
from sp_ray_ml.metrics.supervised import ClassificationMetrics, RegressionMetrics, larger_is_better

_VALUES = st.floats(-1e4, 1e4, width=32)


def values(rows: int) -> st.SearchStrategy[list[float]]:
    return st.lists(_VALUES, min_size=rows, max_size=rows)


@st.composite
def regressions(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = draw(st.integers(1, 40))
    return np.array(draw(values(rows)), np.float32), np.array(draw(values(rows)), np.float32)


@st.composite
def classifications(draw: Any, most: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, among them 0, 1 and ties, and classes, not all of which need occur."""
    rows, classes = draw(st.integers(1, 40)), draw(st.integers(2, most))
    weights = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any),
            min_size=rows,
            max_size=rows,
        )
    )
    scores = np.array(weights, np.float64)
    truth = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32), np.array(truth, np.int64)


def cut(data: Any, rows: int) -> list[slice]:
    """Slices that cover the rows, some of them without any."""
    ends = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, rows], strict=True)]


def regression(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    metrics = RegressionMetrics()
    metrics.update(scores, truth)
    return metrics.finish()


def classification(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    metrics = ClassificationMetrics(scores.shape[1])
    metrics.update(scores, truth)
    return metrics.finish()


@given(regressions())
def test_regressions_are_measured_as_by_scikit_learn(rows: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = (part.astype(np.float64) for part in rows)
    found = regression(*rows)
    close = {"rel": 1e-9, "abs": 1e-300}
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, scores), **close)
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(truth, scores), **close)
    if truth.std() > 1e-2 * max(1.0, np.abs(truth).max()):
        assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(truth, scores), rel=1e-4, abs=1e-4)


@given(classifications())
def test_classifications_are_measured_as_by_scikit_learn(rows: tuple[np.ndarray, np.ndarray]) -> None:
    scores, truth = rows
    labels = np.arange(scores.shape[1])
    found = classification(scores, truth)
    predicted = scores.argmax(axis=1)
    close = {"rel": 1e-6, "abs": 1e-6}
    # As they come out of a network: scikit-learn's own clipping goes by the type of the numbers.
    own = np.clip(scores[np.arange(len(truth)), truth].astype(np.float64), np.finfo(np.float32).eps, 1)
    assert found["log_loss"] == pytest.approx(-np.log(own).mean(), **close)
    assert found["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(truth, scores, labels=labels), rel=1e-4, abs=1e-5
    )
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted), **close)
    assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"), **close)


@given(classifications(most=2))
def test_auc_is_scikit_learns_and_absent_where_there_is_one_class(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, truth = rows
    found = classification(scores, truth)
    if len(set(truth.tolist())) == 2:
        assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores[:, 1]), rel=1e-12)
    else:
        assert "auc" not in found


@given(regressions(), st.data())
def test_cuts_of_a_regression_change_no_bit(rows: tuple[np.ndarray, np.ndarray], data: Any) -> None:
    scores, truth = rows
    total = RegressionMetrics()
    for part in cut(data, len(truth)):
        one = RegressionMetrics()
        one.update(scores[part], truth[part])
        total.merge(one)
    assert total.finish() == regression(scores, truth)
    order = np.array(data.draw(st.permutations(range(len(truth)))))
    assert regression(scores[order], truth[order]) == regression(scores, truth)


@given(classifications(), st.data())
def test_cuts_of_a_classification_change_no_bit(rows: tuple[np.ndarray, np.ndarray], data: Any) -> None:
    scores, truth = rows
    total = ClassificationMetrics(scores.shape[1])
    for part in cut(data, len(truth)):
        one = ClassificationMetrics(scores.shape[1])
        one.update(scores[part], truth[part])
        total.merge(one)
    assert total.finish() == classification(scores, truth)
    order = np.array(data.draw(st.permutations(range(len(truth)))))
    assert classification(scores[order], truth[order]) == classification(scores, truth)


def test_large_numbers_and_many_rows_add_up_exactly() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(0, 1e6, 300_000).astype(np.float32)
    scores = (truth + random.normal(0, 10, len(truth))).astype(np.float32)
    found, back = regression(scores, truth), regression(scores[::-1], truth[::-1])
    assert found == back
    expected = math.sqrt(np.square(scores.astype(np.float64) - truth.astype(np.float64)).mean())
    assert found["rmse"] == pytest.approx(expected, rel=1e-9)


def test_the_largest_labels_have_finite_metrics() -> None:
    truth = np.array([3e38, -3e38], np.float32)
    found = regression(truth / 2, truth)
    assert found["rmse"] == pytest.approx(1.5e38, rel=1e-6)
    assert found["r2"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("shift", "scale"), [(0, 1e-6), (0, 1e-100), (0, 1e100), (1e6, 1), (1e8, 1), (1.7e9, 10), (-1e10, 1)]
)
def test_small_and_far_labels_are_measured_as_by_scikit_learn(shift: float, scale: float) -> None:
    random = np.random.default_rng(0)
    truth = shift + scale * random.random(20_000)
    scores = truth + scale * random.normal(0, 0.1, len(truth))
    found = regression(scores, truth)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, scores), rel=1e-9)
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(truth, scores), rel=1e-9)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(truth, scores), rel=1e-9)
    order = random.permutation(len(truth))
    assert regression(scores[order], truth[order]) == found


def test_labels_that_are_all_the_same_have_no_r2() -> None:
    truth = np.full(1_000, 1.7e9 + 0.1)
    assert set(regression(truth + 1, truth)) == {"rmse", "mae"}


def test_without_rows_there_is_nothing_to_measure() -> None:
    for metrics in (RegressionMetrics(), ClassificationMetrics(2)):
        with pytest.raises(DataError, match="there is no row to measure on"):
            metrics.finish()


@pytest.mark.parametrize(
    ("metric", "larger"),
    [("rmse", False), ("mae", False), ("log_loss", False), ("loss", False), ("validation/rmse", False),
     ("r2", True), ("accuracy", True), ("f1", True), ("auc", True), ("ndcg@20", True),
     # XGBoost's own
     ("validation/logloss", False), ("mlogloss", False), ("error@0.6", False), ("merror", False), ("rmsle", False),
     ("mape", False), ("mphe", False), ("poisson-nloglik", False), ("tweedie-nloglik@1.5", False),
     ("gamma-deviance", False), ("quantile", False), ("aucpr", True), ("ndcg@5-", True), ("map", True),
     ("interval-regression-accuracy", True),
     ("brier", False), ("ece", False), ("gini@10", False), ("coverage@10", True), ("pr_auc", True)],
)  # fmt: skip
def test_it_is_known_which_way_is_better(metric: str, larger: bool) -> None:
    assert larger_is_better(metric) is larger
