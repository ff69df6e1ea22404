"""`evaluate` and `evaluate_all`: what is ranked, who counts, and baselines that cannot run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.inference import Ease, Popularity
from sp_ray_ml.inference.evaluate import evaluate, evaluate_all


class Table:
    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = np.array(scores, np.float32)
        self.num_items = self.scores.shape[1]

    def score(self, users: np.ndarray) -> np.ndarray:
        return self.scores[users]


SCORES = Table([[9, 5, 4, 1], [1, 2, 3, 4], [4, 3, 2, 1]])
SEEN = csr_array(np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]))
TRUTH = csr_array(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))


def test_items_of_the_history_are_not_ranked() -> None:
    # The first user's best item is in its history, so item 1 comes first; the second's list is 3, 1, 0.
    result = evaluate(SCORES, TRUTH, SEEN, [1, 3])
    assert result["users"] == 2
    assert result["recall@1"] == (1 + 0) / 2
    assert result["mrr@3"] == pytest.approx((1 + 1 / 3) / 2)


def test_a_test_item_of_the_history_does_not_count() -> None:
    again = csr_array(np.array([[1, 1, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0]]))
    result = evaluate(SCORES, again, SEEN, [1])
    assert result["users"] == 1
    assert result["recall@1"] == 1


def test_items_without_an_index_stay_in_the_denominator() -> None:
    result = evaluate(SCORES, TRUTH, SEEN, [1], unknown=np.array([1, 0, 3]))
    assert result["users"] == 3
    assert result["recall@1"] == pytest.approx((1 / 2 + 0 + 0) / 3)


def test_groups_are_those_of_the_training_history() -> None:
    result = evaluate(SCORES, TRUTH, SEEN, [1], unknown=np.array([0, 0, 1]))
    assert result["users/cold_users"] == 1  # the third user
    assert result["users/warm_items"] == 1  # item 0, held out of the second; item 1 has no training event
    assert result["users/cold_items"] == 2


def test_users_done_are_reported() -> None:
    done: list[int] = []
    evaluate(SCORES, TRUTH, SEEN, [1], progress=done.append)
    assert sum(done) == 2


def test_all_are_evaluated_on_the_same_users_and_the_impossible_is_skipped() -> None:
    scorers = {"model": SCORES, "popularity": Popularity(), "ease": Ease(), "capped": Ease(max_items=3)}
    table = evaluate_all(scorers, TRUTH, SEEN, [1])
    assert list(table) == list(scorers)
    assert table["model"] == evaluate(SCORES, TRUTH, SEEN, [1])
    assert table["popularity"]["users"] == table["ease"]["users"] == 2
    assert list(table["capped"]) == ["skipped"]
    assert "capped at 3 items" in str(table["capped"]["skipped"])


def test_nobody_with_test_items_is_an_error() -> None:
    with pytest.raises(DataError, match="no user has a test item"):
        evaluate(SCORES, csr_array((3, 4)), SEEN, [1])


def test_one_user_is_enough() -> None:
    one = evaluate(Table([[1, 2]]), csr_array([[0, 1]]), csr_array([[1, 0]]), [1])
    assert one["users"] == one["recall@1"] == 1


def test_k_above_the_catalogue_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match="k = 20 is larger than the catalogue, which has 4 items"):
        evaluate(SCORES, TRUTH, SEEN, [1, 20])


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="truth has shape"):
        evaluate(SCORES, csr_array((3, 5)), SEEN, [1])
    with pytest.raises(DataError, match="seen has shape"):
        evaluate(SCORES, TRUTH, csr_array((2, 4)), [1])
