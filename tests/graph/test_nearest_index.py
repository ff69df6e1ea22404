"""`NearestIndex`: as good as it says, the same when opened again, never opened where it is not whole."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse

from sp_ray_ml.errors import ConfigError, DataError, MissingDependencyError, StorageError
from sp_ray_ml.graph import NearestIndex, nearest

pytest.importorskip("faiss")


def vectors_of(seed, rows=4_000, width=16):
    """Around some centres, and of lengths that differ tenfold."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((60, width))
    points = centres[random.integers(0, 60, rows)] + 0.4 * random.standard_normal((rows, width))
    return (points * random.lognormal(0, 0.7, (rows, 1))).astype(np.float32)


def found_of(exact, found):
    return (found[:, :, None] == exact[:, None, :]).any(axis=2).mean()


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_it_finds_the_share_of_the_nearest_that_it_was_built_for(metric):
    vectors = vectors_of(0)
    index = NearestIndex.build(vectors, metric=metric, recall=0.9)
    asked = np.arange(0, 4_000, 7)
    exact, scores = nearest(vectors[asked], vectors, 10, metric=metric, exclude=asked)
    found, values = index.search(vectors[asked], 10, exclude=asked)
    assert found_of(exact, found) > 0.85
    assert index.recall >= 0.9
    assert index.probes < 60
    same = found == exact
    np.testing.assert_allclose(values[same], scores[same], rtol=1e-4, atol=1e-4)
    assert not (found == asked[:, None]).any()


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_with_all_lists_it_finds_what_is_exact(metric):
    vectors = vectors_of(1, 500)
    index = NearestIndex.build(vectors, metric=metric)
    index.probes = 125
    exact, _ = nearest(vectors[:50], vectors, 5, metric=metric)
    found, _ = index.search(vectors[:50], 5)
    assert found_of(exact, found) > 0.99


@pytest.mark.parametrize("place", ["{folder}/index", "memory://{folder}/index"])
def test_a_saved_index_finds_the_same(tmp_path, monkeypatch, place):
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    vectors = vectors_of(2)
    index = NearestIndex.build(vectors, metric="dot")
    index.save(place.format(folder=tmp_path))
    opened = NearestIndex.load(place.format(folder=tmp_path), verify=True)
    assert repr(opened) == repr(index)
    for one, other in zip(index.search(vectors[:99], 7), opened.search(vectors[:99], 7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_excluded_is_never_found(tmp_path):
    vectors = vectors_of(3, 300)
    index = NearestIndex.build(vectors)
    left_out = scipy.sparse.random_array((40, 300), density=0.5, rng=np.random.default_rng(0), format="csr")
    found, scores = index.search(vectors[:40], 200, exclude=left_out)
    allowed = left_out.toarray() == 0
    for row, index_of in enumerate(found):
        some = index_of[index_of >= 0]
        assert allowed[row, some].all()
        assert len(set(some)) == len(some) <= allowed[row].sum()
    assert np.isneginf(scores[found < 0]).all()


def test_nearest_takes_it_by_name():
    vectors = vectors_of(4, 600)
    found, _ = nearest(vectors[:40], vectors, 5, method="approximate")
    exact, _ = nearest(vectors[:40], vectors, 5)
    assert found_of(exact, found) > 0.8


def test_one_vector_is_an_index():
    index = NearestIndex.build(np.ones((1, 3)))
    assert index.search(np.ones((2, 3)), 1)[0].tolist() == [[0], [0]]
    assert index.search(np.empty((0, 3)), 1)[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recall": 0}, ConfigError, "no share"),
        ({"lists": 0}, ConfigError, "0 lists of 20 vectors"),
        ({"metric": "l1"}, ConfigError, "none of cosine"),
        ({"vectors": np.full((20, 2), np.nan)}, DataError, "NaN"),
        ({"vectors": np.empty((0, 2))}, ConfigError, "no vectors"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        NearestIndex.build(**{"vectors": np.ones((20, 2)), **arguments})


def test_a_damaged_index_is_not_opened(tmp_path):
    index = NearestIndex.build(vectors_of(5, 200))
    index.save(tmp_path / "index")
    with pytest.raises(StorageError):
        NearestIndex.load(tmp_path / "none")
    file = tmp_path / "index" / "lists.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(DataError, match="damaged"):
        NearestIndex.load(tmp_path / "index")
    np.save(file, np.full(200, 10**6, np.int32))  # as long as it was
    with pytest.raises(DataError, match="no index"):
        NearestIndex.load(tmp_path / "index")
    file.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(DataError, match="checksum"):
        NearestIndex.load(tmp_path / "index", verify=True)


def test_without_the_extra_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"sp_ray_ml\[ann\]"):
        NearestIndex.build(np.ones((20, 2)))
