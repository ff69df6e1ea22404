"""What a `Ranking` measures of users: their values, the means of these, and how often each item is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_groups import Segments
from sp_ray_ml.inference._evaluation_ids import NotSmallError
from sp_ray_ml.inference._evaluation_items import Catalogue, catalogue_of
from sp_ray_ml.inference._evaluation_lists import Lists, Part
from sp_ray_ml.inference._evaluation_units import RECOMMENDED, TEST_DIGEST, TEST_ITEMS, digests, lists_column
from sp_ray_ml.inference.evaluators import Ranking
from sp_ray_ml.metrics._lists_kernel import measure_lists, pairwise_distance
from sp_ray_ml.metrics.means import Means

__all__ = ["Groups", "Measured", "Range", "lengths_of", "read_tables"]

_ACCURACY = ("recall", "ndcg", "precision", "hit_rate", "mrr", "map")
_POPULARITY = ("popularity", "novelty", "tail")
_RANGE = 1 << 15  # users that are measured at a time


@dataclass(frozen=True)
class Range:
    """What was measured of some users, those who count.

    Attributes:
        values: float64 [metrics × k, users].
        lists: int32 [users, depth], items by code, -1 where a list ends.
        users: int64 [users], codes.
        units: uint64 [users], what the bootstrap draws by.
        groups: int64 [columns, users], the segments that they are in; -1 for none.
        test_items: int64 [users], how many they have.
        digests: uint64 [users], of these; empty where nothing is kept.
    """

    values: NDArray[np.float64]
    lists: NDArray[np.int32]
    users: NDArray[np.int64]
    units: NDArray[np.uint64]
    groups: NDArray[np.int64]
    test_items: NDArray[np.int64]
    digests: NDArray[np.uint64]


class Groups:
    """Means of users, and how often each item is shown, in all and in each segment.

    Attributes:
        labels: Of the groups.
        means: Of each.
        shown: int64 [groups, k, items], lists that have an item between one length and the next.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: int,
        labels: Sequence[str],
        num_items: int,
        replicates: int,
        seed: int,
    ) -> None:
        self.labels = labels
        self.means = [Means(names, replicates, seed) for _ in labels]
        self.shown = np.zeros((len(labels), lengths, num_items), np.int64)

    def merge(self, other: Groups, codes: NDArray[np.int64] | None = None) -> None:
        """Take the users of another one.

        Args:
            other: The other.
            codes: What its items are here, where they are numbered in another way.
        """
        for mine, theirs in zip(self.means, other.means, strict=True):
            mine.merge(theirs)
        if codes is None:
            self.shown += other.shown
            return
        if (end := int(codes.max(initial=-1)) + 1) > self.shown.shape[2]:
            self.fit(max(end, 3 * self.shown.shape[2] // 2))
        self.shown[:, :, codes] += other.shown

    def fit(self, num_items: int) -> None:
        """Make room for so many items, and no more."""
        kept = self.shown[:, :, :num_items]
        self.shown = np.zeros((*kept.shape[:2], num_items), np.int64)
        self.shown[:, :, : kept.shape[2]] = kept


def lengths_of(settings: Ranking) -> NDArray[np.int64]:
    """The lengths of the list, ascending."""
    return np.array(sorted(set(settings.k)), np.int64)


class Read(NamedTuple):
    """All tables, with one code for each id.

    Attributes:
        lists: Predictions and test items.
        named: Codes of the items in these.
        of_user: By column of the segments: the place of each user's value, [users]; -1 for none.
        catalogue: Of items.
    """

    lists: Lists
    named: NDArray[np.int64]
    of_user: list[NDArray[np.int16]]
    catalogue: Catalogue


def read_tables(
    settings: Ranking,
    tables: Sequence[tuple[Source, bool]],
    users: Source | None,
    items: Source | None,
    segments: Segments,
    folder: Path,
    pool: Executor,
) -> Read:
    """Read tables of predictions and (True) of test items, and those of users and items.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: A value is missing, or an item twice in its table.
    """
    for small in (True, False):
        lists = Lists(small, folder)
        try:
            for source, truth in tables:
                lists.add(pool, source, settings, truth=truth)
            named = lists.items.known_codes()
            of_user = _segments_of(lists, pool, users, segments, settings)
            return Read(lists, named, of_user, catalogue_of(settings, items, lists.items, pool))
        except NotSmallError:
            continue
    raise AssertionError("unreachable: tables of ids take all")


def _segments_of(
    lists: Lists, pool: Executor, users: Source | None, segments: Segments, settings: Ranking
) -> list[NDArray[np.int16]]:
    if users is None or not segments.values:
        return []
    require_columns(users.schema, [settings.user], users.name)
    parts = []
    for batch in users.select([settings.user, *segments.values]).batches():
        codes = lists.users.codes(pool, batch.column(0), f"{users.name}.{settings.user}")
        parts.append((codes, segments.members(batch)[1:]))
    found, at = [], 0
    for values in segments.values.values():
        place = np.full(lists.users.end, -1, np.int16)
        for codes, members in parts:
            for number in range(len(values)):
                place[codes[members[at + number]]] = number
        at += len(values)
        found.append(place)
    return found


class Measured:
    """Measures parts in threads, each with accumulators of its own: they add up to the same bits in any order.

    With `keep`, `unit_rows` has what `compare` needs.
    """

    def __init__(
        self,
        settings: Ranking,
        catalogue: Catalogue,
        lists: Lists,
        segments: Segments,
        of_user: list[NDArray[np.int16]],
        replicates: int,
        seed: int,
        threads: int,
        *,
        has_truth: bool,
        keep: bool,
    ) -> None:
        self._catalogue, self._lists, self._of_user = catalogue, lists, of_user
        self._has_truth, self._keep, self._user = has_truth, keep, settings.user
        self._ks = lengths_of(settings)
        discounts = 1 / np.log2(np.arange(self._ks[-1]) + 2)
        self._discounts, self._ideal = discounts, np.cumsum(discounts)
        kinds = [
            *(_ACCURACY if has_truth else ()),
            *(_POPULARITY if len(catalogue.facts) else ()),
            *(("diversity",) if len(catalogue.vectors) else ()),
        ]
        self.names = [f"{kind}@{k}" for kind in kinds for k in self._ks.tolist()]
        labels, end = segments.labels(), lists.items.end
        self._idle = [
            (
                Groups(self.names, len(self._ks), labels, end, replicates, seed),
                np.zeros(end, np.int64),
                np.zeros(end, np.int64),
            )
            for _ in range(threads)
        ]
        self._segments = segments
        sizes = [len(values) for values in segments.values.values()]
        begins = np.cumsum([1, *sizes])[:-1].tolist()
        self._places = list(zip(begins, sizes, strict=True))
        """By column: the group of its first value, and how many values it has."""

    def _groups_of(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """The segments that users are in, [columns, users]."""
        found = np.full((len(self._of_user), len(users)), -1, np.int64)
        for row, column, (begin, _) in zip(found, self._of_user, self._places, strict=True):
            of = column[users]
            row[:] = np.where(of >= 0, of + begin, -1)
        return found

    def measure(self, part: Part, pool: Executor) -> Iterator[Range]:
        """Measure the users of a part.

        Raises:
            DataError: An item is twice in a list.
        """
        ends = [*range(0, len(part.indptr) - 1, _RANGE), len(part.indptr) - 1]
        yield from pool.map(lambda ends: self._measure(part, *ends), pairwise(ends))

    def _measure(self, part: Part, first: int, last: int) -> Range:
        mine = self._idle.pop()
        try:
            found, means = self._values(part, first, last, *mine), mine[0].means
            means[0].update(found.values, found.units)
            for of, (begin, count) in zip(found.groups, self._places, strict=True):
                for group in range(begin, begin + count):
                    members = np.flatnonzero(of == group)
                    if len(members):
                        values = np.take(found.values, members, axis=1)
                        means[group].update(values, found.units[members])
        finally:
            self._idle.append(mine)
        return found

    def _values(
        self,
        part: Part,
        first: int,
        last: int,
        mine: Groups,
        met: NDArray[np.int64],
        wanted: NDArray[np.int64],
    ) -> Range:
        catalogue = self._catalogue
        users, depth = last - first, int(self._ks[-1])
        values = np.zeros((len(_ACCURACY) + len(_POPULARITY), len(self._ks), users))
        lists, counted = np.empty((users, depth), np.int32), np.empty(users, np.int64)
        groups = self._groups_of(np.arange(part.first + first, part.first + last))
        twice = measure_lists(
            part.indptr, part.items, part.keys, part.truth_indptr, part.truth, part.first, first, last, self._ks,
            self._discounts, self._ideal, catalogue.facts, self._has_truth, groups, met, wanted, values, mine.shown,
            lists, counted,
        )  # fmt: skip
        if twice >= 0:
            user = self._lists.users.ids(np.array([part.first + twice]))[0].as_py()
            raise DataError(f"an item is twice in the list of user {user}", where="predictions")
        who = np.flatnonzero(counted)
        end = len(_ACCURACY)
        measured = values[0 if self._has_truth else end : len(values) if len(catalogue.facts) else end]
        kept = np.take(measured.reshape(-1, users), who, axis=1)
        lists = lists[who]
        if len(catalogue.vectors):
            diversity = np.empty((len(self._ks), len(who)))
            pairwise_distance(lists, catalogue.vectors, self._ks, diversity)
            kept = np.concatenate([kept, diversity])
        codes = who + part.first + first
        digest = np.zeros(0, np.uint64)
        if self._keep:
            begins = part.truth_indptr[first : last + 1]
            numbers = self._lists.items.units(part.truth[begins[0] : begins[-1]].astype(np.int64))
            digest = digests(begins - begins[0], numbers)[who]
        units = self._lists.users.units(codes)
        return Range(kept, lists, codes, units, groups[:, who], counted[who] - 1, digest)

    def unit_rows(self, found: Range) -> pa.Table:
        """What `compare` needs of some users."""
        columns = {self._user: self._lists.users.ids(found.users), TEST_ITEMS: pa.array(found.test_items)}
        columns[TEST_DIGEST] = pa.array(found.digests)
        named = zip(found.groups, self._places, self._segments.values.items(), strict=True)
        for of, (begin, _), (column, values) in named:
            columns[column] = pa.array(values, pa.string()).take(pa.array(of - begin, mask=of < 0))
        columns[RECOMMENDED] = lists_column(found.lists, self._lists.items.ids)
        columns |= {name: pa.array(values) for name, values in zip(self.names, found.values, strict=True)}
        return pa.table(columns)

    def groups(self) -> Groups:
        """All that was measured."""
        found = self._idle[0][0]
        for other, _, _ in self._idle[1:]:
            found.merge(other)
        return found
