"""How the splits are made: whole arrays at a time, sorted once, and the check that nothing leaks."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION, SplitAssignment
from sp_ray_ml.errors import DataError, LeakageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.data.splits import RandomSplit, Split, TableSplit, TimeSplit

    Codes = NDArray[np.integer[Any]]
    Times = NDArray[np.int64]

__all__ = ["as_given", "at_random", "by_time", "check_no_leakage", "per_user"]

_MISSING = np.iinfo(np.int64).min


def by_time(split: TimeSplit, user: Codes, item: Codes, time: Times | None) -> SplitAssignment:
    """One cut for all events."""
    time = _times(user, item, time, "a time split")
    order = _order(user, item, time)
    ordered = time[order]
    first, last, n = int(ordered[0]), int(ordered[-1]), len(ordered)
    given, duration = split.cut_ns(), split.test_ns()
    if given is not None:
        cut = given
    elif duration is not None:
        cut = last - duration + 1  # "the last day" of daily data is one day, not two
    else:
        cut = int(ordered[min(_floor(1 - _fraction(float(split.test)), n), n - 1)])
    trained = int(np.searchsorted(ordered, cut, side="left"))
    span = f"the events are from {_text(first)} to {_text(last)}, the cut is at {_text(cut)}"
    if trained == 0:
        why = " (all have one time)" if first == last else ""
        raise DataError(
            f"the time split leaves no training events: all {n:,} are at or after the cut{why}; {span}",
            hint="Set split.cut, or a smaller split.test",
        )
    if trained == n:
        raise DataError(
            f"the time split leaves no test events: all {n:,} are before the cut; {span}",
            hint="Set split.cut to an earlier moment, or use split.test",
        )
    ordered_label = np.full(n, TEST, dtype=np.int8)
    ordered_label[:trained] = TRAIN
    held = _floor(_fraction(split.validation), trained)
    if held:
        start = int(np.searchsorted(ordered, ordered[trained - held], side="left"))
        if start == 0:  # so many at the first moment: validation is what comes after them
            start = int(np.searchsorted(ordered, ordered[0], side="right"))
        ordered_label[min(start, trained) : trained] = VALIDATION
    return _assignment(order, ordered_label, cut, "global")


def per_user(
    split: Split,
    user: Codes,
    item: Codes,
    time: Times | None,
    *,
    train: float | None = None,
    last: int | None = None,
) -> SplitAssignment:
    """Each user's events parted by their place in the user's own order; either `train` or `last` is given."""
    time = _times(user, item, time, "a split by each user's time")
    order = _order(user, item, time)
    by_user, count, start = _by_user(user, order)
    if train is not None:
        trained = _ceil(_fraction(train), count)
        said = f"the first {train:.0%} of each user's"
    else:
        trained = np.where(count > 0, np.maximum(count - (last or 0), 1), 0)
        said = f"all but each user's last {last}"
    _require_test(int(count.sum()), int(trained.sum()), int((count > 0).sum()), said)
    held = np.minimum(_floor(_fraction(split.validation), trained), np.maximum(trained - 1, 0))
    place = np.arange(len(by_user)) - np.repeat(start, count)
    label = np.full(len(by_user), TRAIN, dtype=np.int8)
    label[place >= np.repeat(trained - held, count)] = VALIDATION
    label[place >= np.repeat(trained, count)] = TEST
    result = np.empty_like(label)
    result[by_user] = label
    return SplitAssignment(result, None, order, "user")


def at_random(
    split: RandomSplit, user: Codes, item: Codes, time: Times | None, *, seed: int
) -> SplitAssignment:
    """A draw over the events in an order of their own, so that the order of the table does not matter."""
    _lengths(user, item, time)
    n = len(user)
    if n == 0:
        raise DataError("there are no events to split")
    order = _order(user, item, time)
    trained = int(_ceil(_fraction(split.train), n))
    _require_test(n, trained, len(np.unique(user)), f"{split.train:.0%} of the")
    held = min(_floor(_fraction(split.validation), trained), trained - 1)
    drawn = np.random.default_rng([seed, 0x5EED]).permutation(n)
    label = np.full(n, TEST, dtype=np.int8)
    label[drawn[:trained]] = TRAIN
    label[drawn[trained - held : trained]] = VALIDATION
    return _assignment(order, label, None, None)


def as_given(
    split: TableSplit,
    user: Codes,
    item: Codes,
    time: Times | None,
    given: NDArray[np.bool_] | None,
    *,
    seed: int,
) -> SplitAssignment:
    """The test events as they are given; of each user's others a share is drawn, however the table is sorted."""
    _lengths(user, item, time)
    if given is None or len(given) != len(user):
        raise DataError(
            f"the test events of {split.test} are not marked among the {len(user):,} events",
            hint="Use this split in a pipeline, or pass assign(…, given=MASK)",
        )
    if not given.any():
        raise DataError(f"the split leaves no test events: {split.test} has none", where="split.test")
    if given.all():
        raise DataError(f"the split leaves no training events of {len(user):,}")
    order = _order(user, item, time)
    trained = order[~given[order]]
    mixed = trained[np.random.default_rng([seed, 0x91BE]).permutation(len(trained))]
    by_user, count, start = _by_user(user, mixed)
    held = np.minimum(_floor(_fraction(split.validation), count), np.maximum(count - 1, 0))
    label = np.full(len(user), TEST, dtype=np.int8)
    place = np.arange(len(by_user)) - np.repeat(start, count)
    label[by_user] = np.where(place < np.repeat(held, count), VALIDATION, TRAIN)
    return SplitAssignment(label, None, order, None)


def _assignment(
    order: NDArray[np.int64],
    ordered_label: NDArray[np.int8],
    cut: int | None,
    chronological: Literal["global", "user"] | None,
) -> SplitAssignment:
    label = np.empty_like(ordered_label)
    label[order] = ordered_label
    return SplitAssignment(label, cut, order, chronological)


def _order(user: Codes, item: Codes, time: Times | None) -> NDArray[np.int64]:
    if time is None:
        return np.lexsort((user, item)).astype(np.int64, copy=False)
    # Event tables are mostly in order of time already: that sort is cheap, and only equal times need the other keys.
    order = np.argsort(time, kind="stable")
    ordered = time[order]
    same = ordered[1:] == ordered[:-1]
    tied = np.zeros(len(order), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    if tied.any():
        part = order[tied]
        order[tied] = part[np.lexsort((user[part], item[part], time[part]))]
    return order.astype(np.int64, copy=False)


def _by_user(
    user: Codes, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`order` regrouped by user, each user's count, and where each user's events begin."""
    codes = user[order]
    count = np.bincount(codes).astype(np.int64)
    # Stable sorts of 16 bits are radix sorts: two passes over any number of users, each linear.
    regrouped = order
    for shift in range(0, max(int(codes.max()).bit_length(), 1), 16):
        digit = ((user[regrouped] >> shift) & 0xFFFF).astype(np.uint16)
        regrouped = regrouped[np.argsort(digit, kind="stable")]
    return regrouped, count, np.cumsum(count) - count


# --- shares, exactly: 0.55 of 100 is 55, though 0.55 * 100 is more ------------------------------------------------


def _fraction(share: float) -> Fraction:
    return Fraction(str(share)).limit_denominator(1_000_000)


def _floor(share: Fraction, count: Any) -> Any:
    return count * share.numerator // share.denominator


def _ceil(share: Fraction, count: Any) -> Any:
    return -(-count * share.numerator // share.denominator)


# --- what cannot be split -------------------------------------------------------------------------------------


def _lengths(user: Codes, item: Codes, time: Times | None) -> None:
    if len(user) != len(item) or (time is not None and len(time) != len(user)):
        raise DataError(
            f"users, items and times are not of one length: {len(user)}, {len(item)}"
            + ("" if time is None else f", {len(time)}")
        )
    if len(user) and int(user.min()) < 0:
        raise DataError("user codes begin at 0")


def _times(user: Codes, item: Codes, time: Times | None, what: str) -> Times:
    _lengths(user, item, time)
    if len(user) == 0:
        raise DataError("there are no events to split")
    if time is None:
        raise DataError(
            f"{what} needs the time of each event",
            hint="Name its column in events.time, or use split: {kind: random}",
        )
    if missing := int((time == _MISSING).sum()):
        raise DataError(
            f"{missing:,} of {len(time):,} events have no time, which {what} needs",
            hint="Leave them out of the table, or use split: {kind: random}",
        )
    return time


def _require_test(events: int, trained: int, users: int, said: str) -> None:
    if trained >= events:
        raise DataError(
            f"the split leaves no test events: {said} events are all {events:,} events of {users:,} "
            f"{'user' if users == 1 else 'users'}",
            hint="Train on a smaller share, or keep only users with more events",
        )
    if trained == 0:
        raise DataError(f"the split leaves no training events of {events:,}")


def _text(ns: int) -> str:
    return f"{np.datetime_as_string(np.datetime64(ns, 'ns'), unit='s')}Z"


# --- the guard --------------------------------------------------------------------------------------------------


def check_no_leakage(
    assignment: SplitAssignment,
    user: Codes,
    item: Codes,
    time: Times | None,
    *,
    used: NDArray[Any] | None,
    what: str,
) -> None:
    """See `sp_ray_ml.data.splits.check_no_leakage`."""
    _lengths(user, item, time)
    label = assignment.label
    if len(label) != len(user):
        raise DataError(f"the split is of {len(label):,} events, there are {len(user):,}")
    if used is not None and (leaked := int((label[used] == TEST).sum())):
        raise LeakageError(f"{leaked:,} test events would reach {what}")
    if time is None:
        return
    if assignment.cut is not None:
        late = time >= assignment.cut
        if leaked := int((late & (label != TEST)).sum()):
            raise LeakageError(
                f"{leaked:,} events at or after the cut ({_text(assignment.cut)}) are in the training part"
            )
        if leaked := int((~late & (label == TEST)).sum()):
            raise LeakageError(
                f"{leaked:,} events before the cut ({_text(assignment.cut)}) are in the test part"
            )
    if assignment.chronological is None:
        return
    everyone = np.zeros(len(user), dtype=np.int64)
    group = everyone if assignment.chronological == "global" else user
    who = "" if assignment.chronological == "global" else " of the same user"
    for held, names in ((TEST, "test"), (VALIDATION, "validation")):
        leaked = _older(group, time, label == held, (label < held) if held == VALIDATION else (label != TEST))
        if leaked:
            raise LeakageError(f"{leaked:,} {names} events are older than a training event{who}")


def _older(group: Codes, time: Times, held: NDArray[np.bool_], trained: NDArray[np.bool_]) -> int:
    """How many of the held-out events are older than the latest training event of their group."""
    if not held.any() or not trained.any():
        return 0
    latest = np.full(int(group.max()) + 1, _MISSING, dtype=np.int64)
    np.maximum.at(latest, group[trained], time[trained])
    return int((time[held] < latest[group[held]]).sum())
