"""`RankingMetrics`: values worked out by hand, a slow reference, and sums that no order of the work changes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.metrics import RankingMetrics

NAMES = ("recall", "ndcg", "precision", "hit_rate", "mrr")


def matrix(sets: Sequence[set[int]], num_items: int) -> csr_array:
    dense = np.zeros((len(sets), num_items), dtype=bool)
    for row, items in enumerate(sets):
        dense[row, list(items)] = True
    return csr_array(dense)


def test_values_by_hand() -> None:
    # Six items, of which 4 and 5 have no training event (cold). Four users:
    #   A  recommended 0 1 2, test items {0, 2}       warm user
    #   B  recommended 3 4 0, test items {4, 5, 1}    warm user
    #   C  recommended 1 2 3, test items {} and two that are in no index    cold user
    #   D  recommended 5 1 0, test items {}           does not count
    recommended = np.array([[0, 1, 2], [3, 4, 0], [1, 2, 3], [5, 1, 0]], np.int32)
    truth = matrix([{0, 2}, {4, 5, 1}, set(), set()], 6)
    warm_items = np.array([1, 1, 1, 1, 0, 0], bool)
    metrics = RankingMetrics([2, 3], 6, warm_items)
    metrics.update(
        recommended, truth, warm_users=np.array([1, 1, 0, 0], bool), unknown=np.array([0, 0, 2, 0])
    )
    result = metrics.finish()

    second, third = 1 / math.log2(3), 1 / math.log2(4)  # discounts: 1, 0.6309, 0.5
    expected = {
        "users": 3,
        # A finds 1 of 2 in two and 2 of 2 in three; B 1 of 3 (item 4, second); C 0 of 2.
        "recall@2": (1 / 2 + 1 / 3 + 0) / 3,
        "recall@3": (2 / 2 + 1 / 3 + 0) / 3,
        "precision@2": (1 / 2 + 1 / 2 + 0) / 3,
        "precision@3": (2 / 3 + 1 / 3 + 0) / 3,
        "hit_rate@2": (1 + 1 + 0) / 3,
        "hit_rate@3": (1 + 1 + 0) / 3,
        # First hits: A at 1, B at 2, C none.
        "mrr@2": (1 + 1 / 2 + 0) / 3,
        "mrr@3": (1 + 1 / 2 + 0) / 3,
        # A: hits at 1 and 3, ideal of two items; B: hit at 2, ideal of min(k, 3) items.
        "ndcg@2": (1 / (1 + second) + second / (1 + second) + 0) / 3,
        "ndcg@3": ((1 + third) / (1 + second) + second / (1 + second + third) + 0) / 3,
        # A, B and C are shown 0 1 3 4 and 2 in two, no more in three; D does not count.
        "coverage@2": 5 / 6,
        "coverage@3": 5 / 6,
        # Warm test items: A {0, 2}, B {1}; C has none.
        "users/warm_items": 2,
        "recall@2/warm_items": (1 / 2 + 0) / 2,
        "recall@3/warm_items": (2 / 2 + 0) / 2,
        "ndcg@3/warm_items": ((1 + third) / (1 + second) + 0) / 2,
        "mrr@2/warm_items": (1 + 0) / 2,
        "coverage@2/warm_items": 4 / 4,
        # Cold test items: B {4, 5}, found is 4 at place 2; C two that are in no index.
        "users/cold_items": 2,
        "recall@2/cold_items": (1 / 2 + 0) / 2,
        "precision@2/cold_items": (1 / 2 + 0) / 2,
        "ndcg@2/cold_items": (second / (1 + second) + 0) / 2,
        "mrr@3/cold_items": (1 / 2 + 0) / 2,
        "coverage@3/cold_items": 1 / 2,
        # Users with training events: A and B. They are shown 0 1 3 4, and 2 as well in three.
        "users/warm_users": 2,
        "recall@2/warm_users": (1 / 2 + 1 / 3) / 2,
        "ndcg@2/warm_users": (1 / (1 + second) + second / (1 + second)) / 2,
        "coverage@2/warm_users": 4 / 6,
        "coverage@3/warm_users": 5 / 6,
        "users/cold_users": 1,
        "recall@2/cold_users": 0,
        "coverage@2/cold_users": 2 / 6,
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    assert len(result) == 5 * (6 * 2 + 1)


def test_a_perfect_list_scores_exactly_one() -> None:
    metrics = RankingMetrics([10], 40)
    sets = [set(range(n)) for n in range(1, 31)]
    metrics.update(np.tile(np.arange(10, dtype=np.int32), (30, 1)), matrix(sets, 40))
    assert metrics.finish()["ndcg@10"] == 1.0


def test_a_group_of_nobody_has_a_count_and_no_means() -> None:
    metrics = RankingMetrics([1], 2, np.array([True, True]))
    metrics.update(np.array([[0]], np.int32), matrix([{0}], 2), np.array([True]))
    result = metrics.finish()
    assert result["users/cold_users"] == result["users/cold_items"] == 0
    assert "recall@1/cold_users" not in result
    assert "recall@1/cold_items" not in result


def test_groups_appear_only_when_asked_for() -> None:
    metrics = RankingMetrics([1], 2)
    metrics.update(np.array([[0]], np.int32), matrix([{0}], 2))
    assert set(metrics.finish()) == {f"{name}@1" for name in (*NAMES, "coverage")} | {"users"}


def brute_force(
    k: int, recommended: np.ndarray, sets: list[set[int]], unknown: np.ndarray
) -> dict[str, float]:
    rows = []
    shown: set[int] = set()
    for items, chosen, missing in zip(recommended.tolist(), sets, unknown.tolist(), strict=True):
        size = len(chosen) + missing
        if not size:
            continue
        gains = [1 if item in chosen else 0 for item in items[:k]]
        dcg = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, size)))
        first = next((1 / (place + 1) for place, gain in enumerate(gains) if gain), 0.0)
        rows.append((sum(gains) / size, dcg / ideal, sum(gains) / k, float(any(gains)), first))
        shown |= {item for item in items[:k] if item >= 0}
    if not rows:
        return {"users": 0.0}
    means = {
        f"{name}@{k}": sum(values) / len(rows)
        for name, values in zip(NAMES, zip(*rows, strict=True), strict=True)
    }
    return {**means, "users": float(len(rows)), f"coverage@{k}": float(len(shown))}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    num_items, users = draw(st.integers(4, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    recommended = np.stack([rng.permutation(num_items)[:4] for _ in range(users)]).astype(np.int32)
    for row in recommended[rng.random(users) < 0.2]:
        row[2:] = -1
    sets = [set(np.flatnonzero(rng.random(num_items) < 0.25).tolist()) for _ in range(users)]
    return {
        "num_items": num_items,
        "recommended": recommended,
        "sets": sets,
        "unknown": rng.integers(0, 2, users),
        "warm_users": rng.random(users) < 0.5,
        "warm_items": rng.random(num_items) < 0.6,
        "cuts": sorted(rng.integers(0, users + 1, draw(st.integers(0, 4))).tolist()),
        "order": rng,
    }


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_all_groups_agree_with_a_slow_reference(case: dict) -> None:
    sets, unknown, warm = case["sets"], case["unknown"], set(np.flatnonzero(case["warm_items"]).tolist())
    metrics = RankingMetrics([1, 3, 4], case["num_items"], case["warm_items"])
    metrics.update(case["recommended"], matrix(sets, case["num_items"]), case["warm_users"], case["unknown"])
    try:
        result = metrics.finish()
    except DataError:
        assert not any(sets)
        assert not unknown.any()
        return
    everyone = np.ones(len(sets), bool)
    catalogue = case["num_items"]
    groups = {
        "": (everyone, sets, unknown, catalogue),
        "/warm_users": (case["warm_users"], sets, unknown, catalogue),
        "/cold_users": (~case["warm_users"], sets, unknown, catalogue),
        "/warm_items": (everyone, [s & warm for s in sets], 0 * unknown, len(warm)),
        "/cold_items": (everyone, [s - warm for s in sets], unknown, catalogue - len(warm)),
    }
    for suffix, (members, chosen, missing, size) in groups.items():
        picked = [c for c, member in zip(chosen, members, strict=True) if member]
        for k in (1, 3, 4):
            expected = brute_force(k, case["recommended"][members], picked, missing[members])
            covered = expected.pop(f"coverage@{k}", None)
            for name, value in expected.items():
                assert result[f"{name}{suffix}"] == pytest.approx(value, abs=1e-11), name + suffix
            if covered is not None and "items" not in suffix:
                assert result[f"coverage@{k}{suffix}"] == covered / size


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_no_partition_or_order_changes_a_bit(case: dict) -> None:
    truth = matrix(case["sets"], case["num_items"])
    users = len(case["sets"])

    def new() -> RankingMetrics:
        return RankingMetrics([1, 3], case["num_items"], case["warm_items"])

    def add(metrics: RankingMetrics, rows: np.ndarray) -> None:
        metrics.update(
            case["recommended"][rows], truth[rows], case["warm_users"][rows], case["unknown"][rows]
        )

    def result(metrics: RankingMetrics) -> dict[str, float] | str:
        try:
            return metrics.finish()
        except DataError as error:
            return str(error)

    whole = new()
    add(whole, np.arange(users))
    parts = np.split(case["order"].permutation(users), case["cuts"])
    one_after_the_other, merged = new(), new()
    for rows in parts:
        add(one_after_the_other, rows)
        part = new()
        add(part, rows)
        part.merge(new())
        merged.merge(part)
    assert result(whole) == result(one_after_the_other) == result(merged)


def test_sums_of_many_users_do_not_overflow() -> None:
    metrics = RankingMetrics([1], 1)
    metrics.update(np.zeros((1000, 1), np.int32), csr_array(np.ones((1000, 1), bool)))
    for _ in range(30):  # 10^12 users
        other = RankingMetrics([1], 1)
        other.merge(metrics)
        metrics.merge(other)
    result = metrics.finish()
    assert result["users"] == 1000 * 2**30
    assert result["recall@1"] == 1.0


def test_nobody_to_evaluate_is_an_error() -> None:
    metrics = RankingMetrics([1], 3, np.ones(3, bool))
    metrics.update(np.zeros((2, 1), np.int32), csr_array((2, 3), dtype=bool))
    with pytest.raises(DataError, match="no user has a test item"):
        metrics.finish()


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="k = 4 is larger than the catalogue, which has 3 items"):
        RankingMetrics([1, 4], 3)
    with pytest.raises(ConfigError, match="at least 1"):
        RankingMetrics([0], 3)
    with pytest.raises(DataError, match="warm_items"):
        RankingMetrics([1], 3, np.ones(2, bool))
    metrics = RankingMetrics([2], 3)
    truth = matrix([{0}], 3)
    with pytest.raises(DataError, match="recommended has shape"):
        metrics.update(np.zeros((1, 1), np.int32), truth)
    with pytest.raises(DataError, match="truth has shape"):
        metrics.update(np.zeros((2, 2), np.int32), truth)
    with pytest.raises(DataError, match="item index 3"):
        metrics.update(np.array([[3, 0]], np.int32), truth)
    with pytest.raises(DataError, match="unknown has shape"):
        metrics.update(np.array([[1, 0]], np.int32), truth, unknown=np.zeros(2, int))
    with pytest.raises(DataError, match="cannot be merged"):
        metrics.merge(RankingMetrics([1], 3))
    with pytest.raises(DataError, match="cannot be merged"):
        metrics.merge(RankingMetrics([2], 3, np.ones(3, bool)))


def test_accumulator_from_shared_memory_takes_others():
    """As Ray hands them out: their arrays are read-only."""
    recommended, truth = np.array([[0, 1], [2, 3]], np.int32), csr_array(np.eye(2, 4))
    parts = []
    for row in (slice(0, 1), slice(1, 2)):
        part = RankingMetrics([1, 2], 4)
        part.update(recommended[row], truth[row])
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(part, protocol=5, buffer_callback=buffers.append)
        parts.append(pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers]))
    assert not parts[0]._best_rank[""].flags.writeable
    whole = RankingMetrics([1, 2], 4)
    whole.update(recommended, truth)
    parts[0].merge(parts[1])
    assert parts[0].finish() == whole.finish()
