"""`ScoreCounts`: scikit-learn's areas and DeLong's error, the same in memory and from files, however rows are cut."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.metrics import scores as module
from sp_ray_ml.metrics._calibration import quantile_calibration_error
from sp_ray_ml.metrics.scores import ScoreCounts, auc_difference


def rows(count: int, digits: int = 2, kind: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    truth = random.random(count) < 0.3
    return np.round(random.normal(truth * 0.7, 1.0), digits).astype(kind), truth


def counted(scores: np.ndarray, truth: np.ndarray, cuts: list[int] | None = None) -> ScoreCounts:
    total = ScoreCounts()
    ends = [0, *sorted(cuts or []), len(truth)]
    for begin, end in pairwise(ends):
        total.update(scores[begin:end], truth[begin:end])
    return total


def figures(counts: ScoreCounts) -> tuple[Any, ...]:
    return counts.auc(), counts.average_precision(), counts.auc_error()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("digits", [1, 7])
def test_areas_are_scikit_learns(digits: int, kind: Any) -> None:
    scores, truth = rows(3_000, digits, kind)
    counts = counted(scores, truth)
    assert counts.auc() == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores), rel=1e-12)
    expected = sklearn.metrics.average_precision_score(truth, scores)
    assert counts.average_precision() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_runs_on_disk_cuts_and_merges_change_no_bit(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    scores, truth = rows(4_000, 3, kind)
    scores[:5] = [np.inf, -np.inf, 0.0, -0.0, np.inf]
    whole = figures(counted(scores, truth))
    for name, value in (("_PENDING", 300), ("_IN_MEMORY", 50), ("_BLOCK", 64), ("_SAMPLE", 8)):
        monkeypatch.setattr(module, name, value)
    cut = counted(scores, truth, [1, 700, 700, 2_345])
    assert cut._of[0]._kept
    assert figures(cut) == whole
    first, second = counted(scores[:1_700], truth[:1_700]), counted(scores[1_700:], truth[1_700:])
    second.merge(pickle.loads(pickle.dumps(first)))
    assert figures(second) == whole


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_ties_and_few_rows_are_measured_as_by_scikit_learn(given_rows: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([s for s, _ in given_rows], np.float64), np.array([t for _, t in given_rows])
    counts = counted(scores, truth)
    if truth.all() or not truth.any():
        assert counts.auc() is None
        return
    assert counts.auc() == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores), rel=1e-12)
    expected = sklearn.metrics.average_precision_score(truth, scores)
    assert counts.average_precision() == pytest.approx(expected, rel=1e-12)


def test_both_widths_are_counted_together() -> None:
    scores, truth = rows(900, 2)
    mixed = ScoreCounts()
    mixed.update(scores[:400], truth[:400])
    mixed.update(scores[400:].astype(np.float64), truth[400:])
    assert figures(mixed) == figures(counted(scores.astype(np.float64), truth))


@pytest.mark.parametrize("digits", [1, 2, 12])
def test_quantile_bins_are_scikit_learns_also_from_files(
    monkeypatch: pytest.MonkeyPatch, digits: int
) -> None:
    scores, truth = rows(3_000, digits, np.float64)
    scores = np.clip(scores / 4 + 0.5, 0, 1)
    cuts = np.percentile(scores, np.linspace(0, 100, 8))
    place = np.searchsorted(cuts[1:-1], scores)
    sums = np.bincount(place, scores - truth, 7)
    share, mean = sklearn.calibration.calibration_curve(truth, scores, n_bins=7, strategy="quantile")
    sizes = np.bincount(place, minlength=7)
    assert np.abs(sums[sizes > 0] / sizes[sizes > 0]) == pytest.approx(np.abs(mean - share))
    whole = quantile_calibration_error(counted(scores, truth), 7)
    assert whole == pytest.approx(np.abs(sums).sum() / 3_000, rel=1e-9)
    for name, value in (("_PENDING", 300), ("_IN_MEMORY", 50), ("_BLOCK", 64), ("_SAMPLE", 8)):
        monkeypatch.setattr(module, name, value)
    assert quantile_calibration_error(counted(scores, truth, [10, 1_000]), 7) == whole


def delong(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Placements by comparing every positive with every negative."""
    up, down = scores[truth][:, None], scores[~truth][None, :]
    wins = (up > down) + 0.5 * (up == down)
    return wins.mean(axis=1), wins.mean(axis=0)


def test_errors_are_those_of_delong() -> None:
    scores, truth = rows(400, 1)
    v, w = delong(scores, truth)
    expected = np.sqrt(v.var(ddof=1) / len(v) + w.var(ddof=1) / len(w))
    assert counted(scores, truth).auc_error() == pytest.approx(expected, rel=1e-9)
    other = scores + np.random.default_rng(1).normal(0, 1, len(scores)).round(1)
    v2, w2 = delong(other, truth)
    found = auc_difference(scores, other, truth)
    assert found is not None
    assert found[0] == pytest.approx(v2.mean() - v.mean(), rel=1e-9)
    expected = np.sqrt((v2 - v).var(ddof=1) / len(v) + (w2 - w).var(ddof=1) / len(w))
    assert found[1] == pytest.approx(expected, rel=1e-9)
