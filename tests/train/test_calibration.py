"""Items without history: their bias comes from how often held-out events name such items."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from sp_ray_ml.graph import build_graph
from sp_ray_ml.graph.construct import distinct_pairs
from sp_ray_ml.graph.settings import GraphSettings
from sp_ray_ml.train._gnn_loop import calibrated, share_of_new
from sp_ray_ml.train._renewal import History, Renewal


def mass(user: np.ndarray, item: np.ndarray, bias: np.ndarray, new: np.ndarray, seen: np.ndarray) -> float:
    scores = np.where(seen, -np.inf, user @ item.T + bias)
    share = np.exp(scores - scores.max(axis=1, keepdims=True))
    return float((share[:, new].sum(axis=1) / share.sum(axis=1)).mean())


@pytest.mark.parametrize("share", [0.001, 0.2, 0.9])
def test_users_give_new_items_the_share_that_held_out_events_do(share: float) -> None:
    random = np.random.default_rng(0)
    user, item = (
        random.normal(size=(50, 4)).astype(np.float32),
        random.normal(size=(30, 4)).astype(np.float32),
    )
    bias = random.normal(size=30).astype(np.float32)
    new = np.arange(30) >= 24
    seen = (random.random((50, 30)) < 0.2) & ~new
    known = {"user": np.ones(50, bool), "item": ~new}
    after = calibrated(user, item, bias, known, share, scipy.sparse.csr_array(seen.astype(float)))
    assert mass(user, item, after, new, seen) == pytest.approx(share, rel=1e-3)
    assert np.array_equal(after[~new], bias[~new])
    assert np.ptp((after - bias)[new]) < 1e-5


def test_without_new_items_nothing_is_shifted() -> None:
    known = {"user": np.ones(2, bool), "item": np.ones(3, bool)}
    bias = np.arange(3, dtype=np.float32)
    vectors = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    assert np.array_equal(calibrated(*vectors, bias, known, 0.5, scipy.sparse.csr_array((2, 3))), bias)


def test_the_share_counts_held_out_pairs_whose_item_had_no_event() -> None:
    graph = build_graph(np.array([0, 1]), np.array([0, 1]), num_users=2, num_items=3)
    held_out = scipy.sparse.csr_array(np.array([[0, 1, 1], [1, 0, 0]]))
    assert share_of_new(held_out, graph) == pytest.approx(1.5 / 4)
    assert share_of_new(None, graph) is None


@pytest.mark.parametrize(
    ("share", "is_set", "pairs", "expected"),
    [
        (0.01, False, 600, 0.01),  # nothing came
        (0.01, False, 500, (60 + 100 * 0.01) / (100 + 100)),
        (0.2, True, 500, 0.2),
        (None, False, 500, 60.5 / 101),
        (None, False, 600, None),
        (
            0.01,
            False,
            590,
            (60 + 100 * 0.01) / (60 + 100),
        ),  # of a node that is gone: no fewer than those of new items
    ],
)
def test_what_came_since_the_training_says_how_often_new_items_are_wanted_unless_it_was_set(
    share: float | None, is_set: bool, pairs: int, expected: float | None
) -> None:
    user, item = (each.ravel() for each in np.divmod(np.arange(600), 10))
    known = np.arange(10) < 9  # the last item is of 60 pairs
    if pairs == 600:
        known[9] = True
    nothing = np.zeros(0, np.int32)
    renewal = Renewal(
        history=History(nothing, nothing),
        known={},
        weights={},
        preprocessors={},
        graph=GraphSettings(),
        network=None,
        trained={},
        new_share=share,
        share_is_set=is_set,
        pairs=pairs,
        middle=0.0,
        complete_before=None,
    )
    assert renewal.share_now(distinct_pairs(user, item, (60, 10)), known) == expected
