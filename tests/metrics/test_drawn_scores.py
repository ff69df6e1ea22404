"""`DrawnScores`: areas of each replicate as scikit-learn has them of weighted rows, the same from files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn.metrics

from sp_ray_ml.metrics import drawn_scores as module
from sp_ray_ml.metrics._room import Kept
from sp_ray_ml.metrics._weights_kernel import poisson_weights
from sp_ray_ml.metrics.drawn_scores import DrawnScores

ROWS, REPLICATES, SEED = 1_500, 6, 5


def rows(digits: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(digits)
    truth = random.random(ROWS) < 0.3
    scores = np.round(random.normal(truth * 0.7, 1.0), digits).astype(np.float32)
    return scores, truth, np.arange(ROWS, dtype=np.uint64) * np.uint64(7919)


@pytest.mark.parametrize("digits", [0, 1, 7])
def test_areas_of_replicates_are_those_of_rows_as_often_as_they_are_drawn(digits: int) -> None:
    scores, truth, units = rows(digits)
    drawn = DrawnScores(REPLICATES, SEED)
    drawn.update(scores, truth, units)
    weights = np.empty((REPLICATES, ROWS))
    poisson_weights(units, np.uint64(SEED), weights)
    for found, measure in zip(
        drawn.areas(), (sklearn.metrics.roc_auc_score, sklearn.metrics.average_precision_score), strict=True
    ):
        expected = [measure(truth, scores, sample_weight=each) for each in weights]
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("digits", [0, 7])
def test_runs_on_disk_cuts_and_merges_change_no_bit_of_replicates(
    monkeypatch: pytest.MonkeyPatch, digits: int
) -> None:
    scores, truth, units = rows(digits)
    scores[:3] = [np.inf, -np.inf, -0.0]
    whole = DrawnScores(REPLICATES)
    whole.update(scores, truth, units)
    for name, value in (("_IN_MEMORY", 200), ("_BLOCK", 64), ("_SAMPLE", 8), ("_DRAWN", 50)):
        monkeypatch.setattr(module, name, value)
    order = np.random.default_rng(1).permutation(ROWS)
    first, second = DrawnScores(REPLICATES), DrawnScores(REPLICATES)
    for into, part in ((first, order[:700]), (second, order[700:730]), (second, order[730:])):
        into.update(scores[part], truth[part], units[part])
    second.merge(pickle.loads(pickle.dumps(first)))
    assert any(isinstance(run, Kept) for run in second._runs)
    assert all(np.array_equal(a, b) for a, b in zip(second.areas(), whole.areas(), strict=True))


def test_a_replicate_without_rows_of_both_kinds_has_no_area() -> None:
    drawn = DrawnScores(40)
    drawn.update(np.array([0.2, 0.9]), np.array([False, True]), np.arange(2, dtype=np.uint64))
    aucs, precisions = drawn.areas()
    assert set(aucs[np.isfinite(aucs)]) == {1.0}
    assert np.isnan(aucs).any()
    assert np.isnan(precisions).sum() < np.isnan(aucs).sum()
