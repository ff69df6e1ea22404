"""Settings of the splits into training, validation and test events. Imports no heavy library until one is assigned.

A split is made once, over all events, and everything downstream (graph, features, fits) takes its training part
from it. Validation is held out of fitting only: scoring uses the whole history, training and validation.
"""

from __future__ import annotations

import datetime as dt
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from sp_ray_ml.config import Family, Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "LastNSplit",
    "PerUserSplit",
    "RandomSplit",
    "Split",
    "SplitAssignment",
    "SplitField",
    "TableSplit",
    "TimeSplit",
    "check_no_leakage",
]

TRAIN, VALIDATION, TEST = 0, 1, 2

_Share = Annotated[float, pydantic.Field(gt=0, lt=1)]


@dataclass(frozen=True)
class SplitAssignment:
    """Which part each event is in.

    Attributes:
        label: int8 `[events]`, in the events' own order: TRAIN (0), VALIDATION (1) or TEST (2).
        cut: For a global time split, nanoseconds since 1970 UTC: every event at or after it is TEST, every other
            is not. None for the other splits.
        order: int64 `[events]`: positions of the events by time, then item, then user (without times: by item,
            then user). The order of equal events does not depend on how the table was sorted.
        chronological: Whether a held-out event is never older than a training event: of all (`"global"`), of the
            same user (`"user"`), or not promised (None).
    """

    label: NDArray[np.int8]
    cut: int | None
    order: NDArray[np.int64]
    chronological: Literal["global", "user"] | None = None

    @property
    def train(self) -> NDArray[np.bool_]:
        """Events to fit on."""
        mask: NDArray[np.bool_] = self.label == TRAIN
        return mask

    @property
    def validation(self) -> NDArray[np.bool_]:
        """Events held out of fitting, to choose settings and when to stop."""
        mask: NDArray[np.bool_] = self.label == VALIDATION
        return mask

    @property
    def test(self) -> NDArray[np.bool_]:
        """Events held out of everything but the final figures."""
        mask: NDArray[np.bool_] = self.label == TEST
        return mask

    @property
    def history(self) -> NDArray[np.bool_]:
        """All that is known when test events are ranked: training and validation."""
        mask: NDArray[np.bool_] = self.label != TEST
        return mask

    def counts(self) -> dict[str, int]:
        """How many events each part has."""
        return {
            "train": int(self.train.sum()),
            "validation": int(self.validation.sum()),
            "test": int(self.test.sum()),
        }


class Split(Settings):
    """Base of the splits: a subclass says how in `assign`."""

    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Share of the training events held out of fitting, the latest ones where the split is chronological."""

    @abstractmethod
    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,
    ) -> SplitAssignment:
        """Put every event into a part.

        Args:
            user: `[events]` codes from 0 of the users; their order is the order of the ids.
            item: `[events]` codes of the items, likewise. Events at the same time are ordered by them.
            time: `[events]` nanoseconds since 1970 UTC; the smallest int64 stands for a missing time.
            seed: For splits that draw.

        Raises:
            DataError: A time is needed and missing, or no event would be left to train or to test on.
        """


_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d|w)$")
_UNIT_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9, "w": 7 * 86_400 * 10**9}


def _share_or_duration(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    if isinstance(value, str) and (found := _DURATION.match(value.strip())) and float(found[1]) > 0:
        return value.strip()
    raise ValueError(f'expected a share between 0 and 1, or a duration such as "14d", got {value!r}')


class TimeSplit(Split):
    """One moment for all: what happens at or after it is tested on. Nearest to what a job in production sees."""

    test: Annotated[
        float | str,
        pydantic.BeforeValidator(_share_or_duration),
        pydantic.WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                    {"type": "string", "pattern": _DURATION.pattern},
                ]
            }
        ),
    ] = 0.2
    """The latest share of the events, or how long a time up to the last one (`14d`; s, m, h, d, w)."""
    cut: dt.datetime | None = None
    """The moment itself, instead of `test`; without a zone it is UTC."""

    @pydantic.model_validator(mode="after")
    def _one_of_test_and_cut(self) -> TimeSplit:
        if self.cut is not None and "test" in self.model_fields_set and self.test != 0.2:
            raise ValueError("give `test` or `cut`, not both")
        return self

    def cut_ns(self) -> int | None:
        """`cut` in nanoseconds since 1970 UTC."""
        if self.cut is None:
            return None
        moment = self.cut if self.cut.tzinfo else self.cut.replace(tzinfo=dt.UTC)
        since = moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        return (since // dt.timedelta(microseconds=1)) * 1_000

    def test_ns(self) -> int | None:
        """`test` in nanoseconds, where it is a duration."""
        found = _DURATION.match(self.test) if isinstance(self.test, str) else None
        return round(float(found[1]) * _UNIT_NS[found[2]]) if found else None

    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,  # noqa: ARG002
    ) -> SplitAssignment:
        """See `Split.assign`. Events of one moment are never parted: neither the cut nor validation's start
        falls between them."""
        from sp_ray_ml.data import _splitting

        return _splitting.by_time(self, user, item, time)


class PerUserSplit(Split):
    """Each user's first share of events trains, the rest tests."""

    train: _Share = 0.8
    """Share of a user's events, in order of time and then item; the number is rounded up."""

    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,  # noqa: ARG002
    ) -> SplitAssignment:
        """See `Split.assign`."""
        from sp_ray_ml.data import _splitting

        return _splitting.per_user(self, user, item, time, train=self.train)


class LastNSplit(Split):
    """Each user's last n events test, leaving every user at least one to train on."""

    n: Annotated[int, pydantic.Field(ge=1)] = 1
    """Events a user; one with no more than n events has all but the first in the test."""

    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,  # noqa: ARG002
    ) -> SplitAssignment:
        """See `Split.assign`."""
        from sp_ray_ml.data import _splitting

        return _splitting.per_user(self, user, item, time, last=self.n)


class RandomSplit(Split):
    """Events drawn at random, the same ones for the same seed however the table is sorted. Needs no time."""

    train: _Share = 0.8
    """Share of the events to train on; the number is rounded up."""

    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,
    ) -> SplitAssignment:
        """See `Split.assign`."""
        from sp_ray_ml.data import _splitting

        return _splitting.at_random(self, user, item, time, seed=seed)


class TableSplit(Split):
    """The test events are those of a table of their own, as published splits come; those of `events.table` train."""

    test: Annotated[str, pydantic.Field(min_length=1)]
    """Another table of the warehouse, or a query where it has SQL, with the same columns as `events.table`."""
    validation: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Share of each user's training events held out of fitting: drawn at random, rounded down, never all of them."""

    def assign(
        self,
        user: NDArray[np.integer[Any]],
        item: NDArray[np.integer[Any]],
        time: NDArray[np.int64] | None,
        *,
        seed: int,
        given: NDArray[np.bool_] | None = None,
    ) -> SplitAssignment:
        """See `Split.assign`.

        Args:
            user: As there.
            item: As there.
            time: As there.
            seed: As there.
            given: bool `[events]`, those that come from the table `test`.

        Raises:
            DataError: Nobody says which events these are, or no event would be left to train or to test on.
        """
        from sp_ray_ml.data import _splitting

        return _splitting.as_given(self, user, item, time, given, seed=seed)


SplitField = Annotated[
    Split,
    Family(
        "split",
        {
            "time": "sp_ray_ml.data.splits:TimeSplit",
            "per_user": "sp_ray_ml.data.splits:PerUserSplit",
            "last_n": "sp_ray_ml.data.splits:LastNSplit",
            "random": "sp_ray_ml.data.splits:RandomSplit",
            "table": "sp_ray_ml.data.splits:TableSplit",
        },
    ),
]
"""A setting that takes one of the splits."""


def check_no_leakage(
    assignment: SplitAssignment,
    user: NDArray[np.integer[Any]],
    item: NDArray[np.integer[Any]],
    time: NDArray[np.int64] | None,
    *,
    used: NDArray[Any] | None = None,
    what: str = "training",
) -> None:
    """Check that a split keeps its promise, and that what is about to be fitted uses training events only.

    Args:
        assignment: The split.
        user: `[events]` as given to `Split.assign`.
        item: `[events]` likewise.
        time: `[events]` likewise.
        used: The events that something is built from or fitted on: their positions, or a mask.
        what: What that is, for the message.

    Raises:
        LeakageError: Under a time split an event at or after the cut is not in the test part, or one before it
            is; under a chronological split a held-out event is older than a training event (of the same user,
            where the split goes by user), or a validation event older than a training event; or one of `used` is
            a test event.
    """
    from sp_ray_ml.data import _splitting

    _splitting.check_no_leakage(assignment, user, item, time, used=used, what=what)
