"""`top_k`: the order, the ties, what is left out, and that its machine code is compiled once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.metrics import top_k
from sp_ray_ml.metrics.topk import check_k


def reference(scores: np.ndarray, k: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(scores), k), -1, np.int32)
    best_scores = np.full((len(scores), k), -np.inf, np.float32)
    for row, values in enumerate(scores):
        allowed = np.where(exclude[row], -np.inf, values)
        order = [item for item in np.argsort(-allowed, kind="stable") if allowed[item] > -np.inf][:k]
        best[row, : len(order)] = order
        best_scores[row, : len(order)] = values[order]
    return best, best_scores


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(0, 4),
    items=st.integers(0, 300),
    k=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 5, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_best_are_those_of_a_stable_sort(rows: int, items: int, k: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, (rows, items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    scores[rng.random(scores.shape) < 0.02] = np.inf
    exclude = rng.random(scores.shape) < rng.choice([0.0, 0.1, 0.9])
    best, best_scores = top_k(scores, k, csr_array(exclude))
    expected, expected_scores = reference(scores, k, exclude)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(best_scores, expected_scores)
    assert best.dtype == np.int32
    assert best_scores.dtype == np.float32


def test_rows_shared_among_threads_are_all_ranked() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 500, (301, 5_000)).astype(np.float32)
    exclude = rng.random(scores.shape) < 0.01
    best, _ = top_k(scores, 20, csr_array(exclude))
    np.testing.assert_array_equal(best, reference(scores, 20, exclude)[0])


def test_equal_scores_rank_by_the_lower_index() -> None:
    best, _ = top_k(np.zeros((1, 1_000), np.float32), 5)
    assert best.tolist() == [[0, 1, 2, 3, 4]]


def test_a_row_with_few_candidates_is_padded() -> None:
    best, scores = top_k(
        np.array([[1.0, 3.0, 2.0]], np.float32), 4, csr_array(np.array([[False, True, False]]))
    )
    assert best.tolist() == [[2, 0, -1, -1]]
    assert scores.tolist() == [[2.0, 1.0, -np.inf, -np.inf]]


def test_excluded_entries_need_no_order_and_no_value() -> None:
    exclude = csr_array((np.zeros(3), np.array([4, 0, 2]), np.array([0, 3])), shape=(1, 5))
    assert top_k(np.arange(5, dtype=np.float32)[None], 3, exclude)[0].tolist() == [[3, 1, -1]]
    assert exclude.indices.tolist() == [4, 0, 2]


@pytest.mark.parametrize("item", [0, 63, 64, 500, 998])
def test_nan_is_an_error_wherever_it_is(item: int) -> None:
    scores = np.linspace(1, 0, 3 * 999, dtype=np.float32).reshape(3, 999)
    scores[1, item] = np.nan
    exclude = np.zeros(scores.shape, dtype=bool)
    exclude[1, item] = True
    for left_out in (None, csr_array(exclude)):
        with pytest.raises(DataError, match=f"row 1, item {item} of 999 is not a number"):
            top_k(scores, 2, left_out)


def test_scores_in_any_layout_and_type_are_taken() -> None:
    scores = np.asfortranarray(np.random.default_rng(0).random((7, 50)))
    np.testing.assert_array_equal(top_k(scores, 3)[0], top_k(scores.astype(np.float32), 3)[0])
    np.testing.assert_array_equal(
        top_k(np.broadcast_to(scores[:1], (4, 50)), 3)[0][3], top_k(scores, 3)[0][0]
    )


def test_shapes_that_do_not_fit_are_errors() -> None:
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(DataError, match="expected \\[rows, items\\]"):
        top_k(scores[0], 1)
    with pytest.raises(DataError, match="exclude has shape"):
        top_k(scores, 1, csr_array((2, 4)))
    with pytest.raises(ConfigError, match="at least 1"):
        top_k(scores, 0)


def test_k_above_the_catalogue_names_both() -> None:
    check_k(3, 3)
    with pytest.raises(ConfigError, match="k = 20 is larger than the catalogue, which has 3 items"):
        check_k(20, 3)
