"""`rank`: the same bits for a user whoever else is asked for, nothing seen, bounded blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.metrics.rank import canonical_batch, rank


class Embeddings:
    """A matrix product in float32, whose last bits depend on the shape of the batch and the place in it."""

    def __init__(self, users: np.ndarray, items: np.ndarray) -> None:
        self.users, self.items, self.num_items = users, items, len(items)
        self.batches: list[int] = []

    def score(self, users: np.ndarray) -> np.ndarray:
        self.batches.append(len(users))
        return self.users[users] @ self.items.T


@pytest.fixture(scope="module")
def model() -> Embeddings:
    rng = np.random.default_rng(0)
    return Embeddings(
        rng.standard_normal((1000, 64), dtype=np.float32), rng.standard_normal((3001, 64), dtype=np.float32)
    )


@pytest.fixture(scope="module")
def seen() -> csr_array:
    return csr_array(np.random.default_rng(1).random((1000, 3001)) < 0.01)


def collect(*arguments: object, **options: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items, scores = zip(*rank(*arguments, **options), strict=True)
    return np.concatenate(users), np.concatenate(items), np.concatenate(scores)


def test_a_user_alone_gets_the_bits_of_a_user_in_a_crowd(model: Embeddings, seen: csr_array) -> None:
    everyone, items, scores = collect(model, np.arange(1000), 20, seen)
    np.testing.assert_array_equal(everyone, np.arange(1000))
    rng = np.random.default_rng(2)
    crowds = [np.array([user]) for user in (0, 7, 37, 255, 256, 999)]
    crowds += [rng.choice(1000, 7, replace=False), rng.permutation(1000), np.array([5, 5, 261, 5])]
    for users in crowds:
        same_users, same_items, same_scores = collect(model, users, 20, seen)
        np.testing.assert_array_equal(same_users, users)
        np.testing.assert_array_equal(same_items, items[users])
        assert same_scores.tobytes() == scores[users].tobytes()


def test_every_batch_has_the_one_size(model: Embeddings) -> None:
    model.batches.clear()
    collect(model, np.arange(300), 5)
    assert set(model.batches) == {canonical_batch(3001)}


def test_the_block_of_scores_is_bounded_and_depends_on_the_model_alone() -> None:
    assert canonical_batch(1_682) == 256
    assert canonical_batch(100_000) == 64
    for num_items in (1, 50_000, 100_000, 999_999, 8_000_000):
        assert canonical_batch(num_items) * num_items * 4 <= 64 << 20
    assert canonical_batch(50_000_000) == 1


@settings(max_examples=100, deadline=None)
@given(
    users=st.lists(st.integers(0, 39), max_size=60),
    batch=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_gets_the_best_of_what_it_has_not_seen(users: list[int], batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers: the product is exact, and full of ties.
    model = Embeddings(
        rng.integers(-3, 4, (40, 3)).astype(np.float32), rng.integers(-3, 4, (30, 3)).astype(np.float32)
    )
    history = rng.random((40, 30)) < 0.3
    ranked = list(rank(model, np.array(users, dtype=int), 4, csr_array(history), batch=batch))
    rows = [(u, i.tolist()) for us, items, _ in ranked for u, i in zip(us.tolist(), items, strict=True)]
    assert [user for user, _ in rows] == users
    for user, items in rows:
        scores = np.where(history[user], -np.inf, model.users[user] @ model.items.T)
        assert items == np.argsort(-scores, kind="stable")[:4].tolist()


def test_a_user_who_has_seen_nearly_all_gets_a_padded_list(model: Embeddings) -> None:
    history = np.ones((1000, 3001), dtype=bool)
    history[:, [3, 9]] = False
    _, items, scores = collect(model, np.array([4]), 3, csr_array(history))
    assert sorted(items[0, :2]) == [3, 9]
    assert items[0, 2] == -1
    assert scores[0, 2] == -np.inf


def test_nobody_asked_gives_nothing(model: Embeddings) -> None:
    assert list(rank(model, np.array([], dtype=int), 3)) == []


def test_k_above_the_catalogue_is_an_error_before_anything_is_scored(model: Embeddings) -> None:
    with pytest.raises(ConfigError, match="k = 4000 is larger than the catalogue, which has 3001 items"):
        rank(model, np.arange(3), 4000)


def test_scores_that_cannot_be_ranked_are_named() -> None:
    model = Embeddings(np.ones((5, 2), np.float32), np.ones((6, 2), np.float32))
    model.users[3] = np.nan
    list(rank(model, np.array([0, 1]), 2))
    with pytest.raises(DataError, match=r"score of user 3 for item 0 .* is not a number"):
        list(rank(model, np.arange(5), 2))
    with pytest.raises(DataError, match="seen has 7 items, the model 6"):
        rank(model, np.arange(5), 2, csr_array((5, 7)))
    with pytest.raises(DataError, match="users 0 to 4 were asked for, and seen has 4"):
        rank(model, np.arange(5), 2, csr_array((4, 6)))
    model.num_items = 7
    with pytest.raises(DataError, match="scores have shape"):
        list(rank(model, np.array([0]), 2))
