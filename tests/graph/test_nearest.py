"""Nearest vectors: what brute force finds, in whatever blocks, for whoever asks beside."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph import _nearest, nearest

METRICS = ["cosine", "dot", "l2"]


def brute(queries, vectors, k, metric, excluded=()):
    """Every score in float64, sorted; `excluded` has pairs."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    scores = -np.linalg.norm(q[:, None] - v[None], axis=2) if metric == "l2" else q @ v.T
    if metric == "cosine":
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(v, axis=1)
        scores = np.divide(scores, lengths, where=lengths > 0, out=np.zeros_like(scores))
    for query, vector in excluded:
        scores[query, vector] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    order[np.isneginf(best)] = -1
    return order, -best if metric == "l2" else best


def integers(seed, rows, width):
    """Small whole numbers: many ties, and products that are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, (rows, width)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
def test_the_nearest_are_those_of_brute_force(metric, data):
    queries = integers(data.draw(st.integers(0, 99)), data.draw(st.integers(0, 90)), 3)
    vectors = integers(data.draw(st.integers(0, 99)), data.draw(st.integers(1, 300)), 3)
    k = data.draw(st.integers(1, len(vectors)))
    pairs = sorted({(i % len(queries), 7 * i % len(vectors)) for i in range(40)}) if len(queries) else []
    left_out = scipy.sparse.csr_array(
        (np.ones(len(pairs)), tuple(np.array(pairs, int).reshape(-1, 2).T)), (len(queries), len(vectors))
    )
    with pytest.MonkeyPatch.context() as patch:  # several blocks and windows, also of few vectors
        patch.setattr(_nearest, "_COLUMNS", 64)
        patch.setattr(_nearest, "_WINDOW", 1)
        found, scores = nearest(queries, vectors, k, metric=metric, exclude=left_out)
    expected, best = brute(queries, vectors, k, metric, pairs)
    np.testing.assert_allclose(scores, best, rtol=1e-6, atol=1e-6)
    if (
        metric == "cosine"
    ):  # quotients are rounded, so that ties of brute force may be none: by the scores then
        assert (np.where(found < 0, np.inf, 0) == np.where(expected < 0, np.inf, 0)).all()
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
    else:
        np.testing.assert_array_equal(found, expected)


def test_equally_near_ones_rank_by_the_lower_index_also_across_blocks(monkeypatch):
    monkeypatch.setattr(_nearest, "_COLUMNS", 64)
    vectors = np.tile(integers(0, 1, 4), (300, 1))
    found, _ = nearest(vectors[:1], vectors, 200)
    np.testing.assert_array_equal(found[0], np.arange(200))


@pytest.mark.parametrize("metric", METRICS)
def test_copies_of_a_vector_are_equally_near_wherever_they_lie(metric):
    random = np.random.default_rng(2)
    vectors = np.tile(random.standard_normal(37, dtype=np.float32), (5_000, 1))
    queries = np.tile(random.standard_normal(37, dtype=np.float32), (150, 1))
    found, scores = nearest(queries, vectors, 300, metric=metric)
    assert len(np.unique(scores)) == 1
    np.testing.assert_array_equal(found, np.tile(np.arange(300), (150, 1)))


@pytest.mark.parametrize("metric", METRICS)
def test_a_query_finds_the_same_to_the_bit_whoever_else_asks(metric):
    random = np.random.default_rng(1)
    vectors = random.standard_normal((9_000, 37), dtype=np.float32)
    queries = random.standard_normal((150, 37), dtype=np.float32)
    found, scores = nearest(queries, vectors, 9, metric=metric)
    for some in (slice(3, 4), slice(7, 80), slice(149, None, -1)):
        again, others = nearest(queries[some], vectors, 9, metric=metric)
        np.testing.assert_array_equal(again, found[some])
        np.testing.assert_array_equal(others, scores[some])


def test_vectors_are_read_from_files_in_blocks(tmp_path):
    vectors = integers(2, 20_000, 8)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    found, _ = nearest(mapped[:5], mapped, 3, metric="l2", exclude=np.arange(5))
    pairs = [(i, i) for i in range(5)]
    np.testing.assert_array_equal(found, brute(vectors[:5], vectors, 3, "l2", pairs)[0])


def test_near_copies_far_from_zero_are_told_apart_by_distance():
    vectors = (1000 + np.arange(8)[:, None] * 1e-3 * np.ones(16)).astype(np.float32)
    found, distance = nearest(vectors, vectors, 8, metric="l2")
    _, exact = brute(vectors, vectors, 8, "l2")
    np.testing.assert_allclose(distance, exact, atol=2e-5)
    np.testing.assert_array_equal(found[:, 0], np.arange(8))


def test_no_queries_find_nothing():
    found, scores = nearest(np.empty((0, 3), np.float32), integers(0, 5, 3), 2)
    assert found.shape == scores.shape == (0, 2)


def test_a_vector_of_zeros_is_as_near_as_what_is_at_right_angles():
    vectors = np.array([[0, 0], [0, 2], [1, 0]], np.float32)
    found, cosine = nearest(vectors[2:], vectors, 3)
    np.testing.assert_array_equal(found, [[2, 0, 1]])
    np.testing.assert_array_equal(cosine, [[1, 0, 0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k must be at least 1"),
        ({"k": 6}, ConfigError, "k = 6, and there are 5 vectors"),
        ({"vectors": integers(0, 5, 4)}, DataError, "queries have width 3, the vectors 4"),
        ({"vectors": np.empty((0, 3))}, ConfigError, "there are 0 vectors"),
        ({"vectors": np.zeros(3)}, DataError, "expected numbers"),
        ({"queries": np.array([["a"]])}, DataError, "expected numbers"),
        ({"queries": np.array([[1, 2, np.nan]])}, DataError, "query 0 has a number that is NaN"),
        ({"vectors": np.array([[1, 2, 3], [1, np.inf, 2]])}, DataError, "vector 1 has a number"),
        ({"metric": "cosinus"}, ConfigError, "none of cosine, dot, l2"),
        ({"method": "guess"}, ConfigError, "none of exact, approximate"),
        ({"exclude": np.array([5, 0])}, DataError, "indices 0 to 5 of 5"),
        ({"exclude": np.array([0.5, 0])}, DataError, "one index for each"),
        ({"exclude": scipy.sparse.csr_array((2, 4))}, DataError, "shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_refused(change, error, message):
    arguments = {"queries": integers(0, 2, 3), "vectors": integers(0, 5, 3), "k": 2, **change}
    with pytest.raises(error, match=message):
        nearest(**arguments)
