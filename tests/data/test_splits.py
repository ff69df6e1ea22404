"""Splits: the parts are what they say, the same however the table is sorted, and a planted leak is caught."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_ray_ml.data import (
    LastNSplit,
    PerUserSplit,
    RandomSplit,
    Split,
    SplitAssignment,
    TableSplit,
    TimeSplit,
    check_no_leakage,
)
from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION, SplitField
from sp_ray_ml.errors import ConfigError, DataError, LeakageError

DAY = 86_400 * 10**9
ALL: list[Split] = [TimeSplit(), TimeSplit(test="3d"), PerUserSplit(), LastNSplit(n=2), RandomSplit()]
EVERY = pytest.mark.parametrize("split", ALL, ids=lambda split: f"{type(split).__name__}")


def world(n: int = 2_000, users: int = 50, moments: int = 400, seed: int = 0) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    user, item = random.integers(0, users, n), random.integers(0, 80, n)
    return user, item, random.integers(0, moments, n) * (DAY // 10)


def assign(split: Split, user: Any, item: Any, time: Any, seed: int = 0) -> SplitAssignment:
    as_time = None if time is None else np.asarray(time, dtype=np.int64)
    return split.assign(np.asarray(user), np.asarray(item), as_time, seed=seed)


# --- each split is what it says -----------------------------------------------------------------------------------


def test_per_user_trains_on_the_first_share_rounded_up() -> None:
    user = [0] * 7 + [1] + [2] * 5
    item = list(range(13))
    found = assign(PerUserSplit(train=0.8, validation=0), user, item, range(13, 0, -1))
    # ceil(5.6) = 6 and ceil(0.8) = 1 and ceil(4) = 4 train; times run backwards
    assert found.label.tolist() == [TEST] + [TRAIN] * 6 + [TRAIN] + [TEST] + [TRAIN] * 4


def test_shares_are_exact() -> None:
    # 0.55 * 100 is 55.00000000000001 to a float
    found = assign(PerUserSplit(train=0.55, validation=0.2), [0] * 100, range(100), range(100))
    assert found.counts() == {"train": 44, "validation": 11, "test": 45}


def test_ties_in_time_go_by_item() -> None:
    found = assign(PerUserSplit(train=0.5, validation=0), [0, 0, 0, 0], [3, 1, 2, 0], [5, 5, 5, 5])
    assert found.label.tolist() == [TEST, TRAIN, TEST, TRAIN]
    assert found.order.tolist() == [3, 1, 2, 0]


def test_validation_is_the_end_of_each_users_training() -> None:
    found = assign(PerUserSplit(train=0.8, validation=0.25), [0] * 10 + [1, 1], range(12), range(12))
    assert found.label[:10].tolist() == [TRAIN] * 6 + [VALIDATION] * 2 + [TEST] * 2
    assert found.label[10:].tolist() == [TRAIN, TRAIN]
    most = assign(PerUserSplit(train=0.8, validation=0.99), [0] * 10 + [1, 1], range(12), range(12))
    assert np.flatnonzero(most.train).tolist() == [0, 10]  # at least one each


def test_last_n_leaves_every_user_an_event_to_train_on() -> None:
    found = assign(LastNSplit(n=2, validation=0), [0, 0, 0, 1, 1, 2], range(6), range(6))
    assert found.label.tolist() == [TRAIN, TEST, TEST, TRAIN, TEST, TRAIN]


def test_time_split_by_share_never_parts_a_moment() -> None:
    time = [1, 1, 1, 1, 2, 2, 2, 2, 2, 3]
    found = assign(TimeSplit(test=0.3, validation=0), range(10), range(10), time)
    assert found.cut == 2
    assert found.label.tolist() == [TRAIN] * 4 + [TEST] * 6


def test_time_split_validation_never_parts_a_moment() -> None:
    time = [1, 1, 2, 2, 2, 2, 3, 9]
    found = assign(TimeSplit(test=0.1, validation=0.3), range(8), range(8), time)
    assert found.label.tolist() == [TRAIN] * 2 + [VALIDATION] * 5 + [TEST]
    one_moment = assign(TimeSplit(test=0.2, validation=0.5), range(5), range(5), [1, 1, 1, 1, 9])
    assert one_moment.label.tolist() == [TRAIN] * 4 + [TEST]


def test_time_split_by_duration_takes_the_last_days() -> None:
    time = np.arange(10) * DAY
    found = assign(TimeSplit(test="3d", validation=0), [0] * 10, range(10), time)
    assert found.label.tolist() == [TRAIN] * 7 + [TEST] * 3


def test_time_split_by_cut_takes_what_is_at_or_after_it() -> None:
    split = TimeSplit(cut="2024-01-02T00:00:00", validation=0)  # type: ignore[arg-type]
    moment = np.datetime64("2024-01-02", "ns").astype(np.int64)
    found = assign(split, [0, 0, 0], [0, 1, 2], [moment - 1, moment, moment + 1])
    assert found.cut == moment
    assert found.label.tolist() == [TRAIN, TEST, TEST]
    zoned = TimeSplit(cut="2024-01-02T01:00:00+01:00")  # type: ignore[arg-type]
    assert zoned.cut_ns() == moment


def test_random_split_is_the_seeds_and_needs_no_time() -> None:
    user, item, _ = world()
    one, two, other = (assign(RandomSplit(), user, item, None, seed=seed) for seed in (1, 1, 2))
    assert (one.label == two.label).all()
    assert (one.label != other.label).any()
    assert one.counts() == {"train": 1_440, "validation": 160, "test": 400}


def test_a_table_split_tests_on_what_is_given_and_holds_out_a_share_of_each_users_rest() -> None:
    user, item, _ = world()
    split, given = TableSplit(test="later", validation=0.3), np.arange(len(user)) % 5 == 0
    found = split.assign(user, item, None, seed=1, given=given)
    assert (found.test == given).all()
    rest, held = np.bincount(user[~given]), np.bincount(user[found.validation], minlength=50)
    assert held.tolist() == (rest * 3 // 10).tolist()
    shuffle = np.random.default_rng(2).permutation(len(user))
    other = split.assign(user[shuffle], item[shuffle], None, seed=1, given=given[shuffle])
    pairs = [set(zip(u[m], i[m], strict=True)) for u, i, m in ((user, item, found.validation), (user[shuffle], item[shuffle], other.validation))]  # fmt: skip
    assert pairs[0] == pairs[1]
    assert (split.assign(user, item, None, seed=2, given=given).label != found.label).any()


def test_a_table_split_leaves_every_user_an_event_to_train_on() -> None:
    split, given = TableSplit(test="later", validation=0.99), np.array([False, False, True, False])
    found = split.assign(np.array([0, 0, 0, 1]), np.arange(4), None, seed=0, given=given)
    assert np.bincount([0, 0, 0, 1], found.train).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "not marked"),
        ([True], "not marked"),
        ([False, False], "later has none"),
        ([True, True], "no training events"),
    ],
)
def test_a_table_split_without_events_to_train_or_test_on_is_an_error(given: Any, says: str) -> None:
    mask = None if given is None else np.array(given)
    with pytest.raises(DataError, match=says):
        TableSplit(test="later").assign(np.array([0, 1]), np.array([0, 1]), None, seed=0, given=mask)


@EVERY
def test_order_of_the_table_does_not_matter(split: Split) -> None:
    user, item, _ = world()
    time = np.random.default_rng(1).permutation(len(user)) * (DAY // 40)
    shuffle = np.random.default_rng(2).permutation(len(user))
    straight = assign(split, user, item, time)
    shuffled = assign(split, user[shuffle], item[shuffle], time[shuffle])
    assert (straight.label[shuffle] == shuffled.label).all()
    assert (time[straight.order] == np.sort(time)).all()
    assert (shuffle[shuffled.order] == straight.order).all()


@EVERY
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_split_leaks(split: Split, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 60))
    numbers = st.lists(st.integers(0, 6), min_size=n, max_size=n)
    user, item = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    time = np.array(data.draw(numbers), dtype=np.int64) * DAY
    try:
        found = assign(split, user, item, time)
    except DataError as error:
        assert "no test events" in error.message or "no training events" in error.message  # noqa: PT017
        return
    assert found.train.any()
    assert found.test.any()
    assert sorted(found.order.tolist()) == list(range(n))
    check_no_leakage(found, user, item, time, used=found.history)
    # the order of the definition, the slow way
    assert found.order.tolist() == sorted(range(n), key=lambda i: (time[i], item[i], user[i], i))


def test_wide_user_codes_are_grouped() -> None:
    user = np.array([70_000, 3, 70_000, 3, 70_000 + 65_536, 70_000 + 65_536])
    found = assign(LastNSplit(validation=0), user, np.arange(6), np.arange(6))
    assert found.label.tolist() == [TRAIN, TRAIN, TEST, TEST, TRAIN, TEST]


# --- what cannot be split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "time", "said"),
    [
        (TimeSplit(), [5] * 6, "no training events.*all have one time"),
        (TimeSplit(cut="1960-01-01"), range(6), "no training events: all 6"),  # type: ignore[arg-type]
        (TimeSplit(cut="2060-01-01"), range(6), "no test events: all 6 are before the cut"),  # type: ignore[arg-type]
        (TimeSplit(test="30d"), range(6), "no training events"),
        (TimeSplit(), None, "needs the time"),
        (PerUserSplit(), None, "needs the time"),
        (PerUserSplit(), [1, 2, np.iinfo(np.int64).min, 4, 5, 6], "1 of 6 events have no time"),
        (PerUserSplit(train=0.95), range(6), "no test events.*6 events of 3 users"),
        (RandomSplit(train=0.99), None, "no test events"),
    ],
)
def test_split_that_leaves_nothing_says_so(split: Split, time: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        assign(split, [0, 0, 1, 1, 2, 2], range(6), time)


def test_last_n_of_single_events_says_there_is_no_test() -> None:
    with pytest.raises(DataError, match=r"no test events.*3 events of 3 users"):
        assign(LastNSplit(), [0, 1, 2], [0, 1, 2], [1, 2, 3])


@EVERY
def test_no_events_at_all(split: Split) -> None:
    with pytest.raises(DataError, match="no events"):
        assign(split, np.array([], dtype=int), np.array([], dtype=int), [])


def test_one_user_splits() -> None:
    for split in (TimeSplit(), PerUserSplit(), LastNSplit(), RandomSplit()):
        found = assign(split, [0] * 10, range(10), range(10))
        assert found.test.sum() >= 1
        assert found.train.sum() >= 1


@pytest.mark.parametrize("values", [([0, 1], [0]), ([0, -1], [0, 1])])
def test_codes_that_are_none_are_refused(values: Any) -> None:
    with pytest.raises(DataError):
        assign(RandomSplit(), *values, None)


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeSplit(test=1.5),
        lambda: TimeSplit(test="fortnight"),
        lambda: TimeSplit(test="0d"),
        lambda: TimeSplit(test=True),
        lambda: TimeSplit(test="14d", cut="2024-01-01"),  # type: ignore[arg-type]
        lambda: PerUserSplit(train=1),
        lambda: PerUserSplit(train=0),
        lambda: LastNSplit(n=0),
        lambda: RandomSplit(validation=1),
    ],
)
def test_wrong_settings_are_one_problem(make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert len(caught.value.problems) == 1


def test_splits_are_named_by_kind() -> None:
    import pydantic

    found = pydantic.TypeAdapter(SplitField).validate_python({"kind": "per_user", "train": 0.7})
    assert found == PerUserSplit(train=0.7)
    with pytest.raises(TypeError):
        Split()  # type: ignore[abstract]


# --- the guard --------------------------------------------------------------------------------------------------


def planted(found: SplitAssignment, label: np.ndarray[Any, Any]) -> SplitAssignment:
    return dataclasses.replace(found, label=label.astype(np.int8))


@EVERY
def test_guard_passes_what_the_split_made(split: Split) -> None:
    user, item, time = world()
    check_no_leakage(assign(split, user, item, time), user, item, time)


@pytest.mark.parametrize("into", [TRAIN, VALIDATION])
def test_guard_catches_an_event_after_the_cut(into: int) -> None:
    user, item, time = world()
    found = assign(TimeSplit(), user, item, time)
    label = found.label.copy()
    label[np.flatnonzero(found.test)[7]] = into
    with pytest.raises(LeakageError, match=r"1 events at or after the cut \("):
        check_no_leakage(planted(found, label), user, item, time)


def test_guard_catches_an_event_at_the_cut_itself() -> None:
    found = assign(TimeSplit(test=0.5, validation=0), [0, 0, 0, 0], range(4), [1, 2, 3, 4])
    with pytest.raises(LeakageError, match="1 events at or after"):
        check_no_leakage(
            planted(found, np.array([0, 0, 0, 2])), np.zeros(4, int), np.arange(4), np.array([1, 2, 3, 4])
        )


@pytest.mark.parametrize("split", [PerUserSplit(), LastNSplit(n=3)])
def test_guard_catches_a_test_event_older_than_the_users_training(split: Split) -> None:
    user, item, time = world()
    time = np.arange(len(user)) * DAY
    found = assign(split, user, item, time)
    label = found.label.copy()
    mine = np.flatnonzero(user == 11)
    first, last = mine[0], mine[-1]
    label[first], label[last] = TEST, TRAIN
    with pytest.raises(LeakageError, match="older than a training event of the same user"):
        check_no_leakage(planted(found, label), user, item, time)


@pytest.mark.parametrize("split", [TimeSplit(), PerUserSplit()])
def test_guard_catches_validation_older_than_training(split: Split) -> None:
    user, item = np.zeros(100, int), np.arange(100)
    time = np.arange(100) * DAY
    found = assign(split, user, item, time)
    label = found.label.copy()
    label[0] = VALIDATION
    with pytest.raises(LeakageError, match="validation events are older"):
        check_no_leakage(planted(found, label), user, item, time)


@EVERY
def test_guard_catches_test_events_that_are_used(split: Split) -> None:
    user, item, time = world()
    found = assign(split, user, item, time)
    check_no_leakage(found, user, item, time, used=found.train)
    one_too_many = np.append(np.flatnonzero(found.train), np.flatnonzero(found.test)[0])
    with pytest.raises(LeakageError, match="1 test events would reach the graph"):
        check_no_leakage(found, user, item, time, used=one_too_many, what="the graph")
