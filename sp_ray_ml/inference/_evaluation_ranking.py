"""What a `Ranking` measures: the values of each user, their means, and how lists spread over the catalogue."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_groups import Found, Segments, functions_of_means
from sp_ray_ml.inference._evaluation_items import Catalogue, catalogue_of
from sp_ray_ml.inference._evaluation_lists import Lists, Part, read_lists
from sp_ray_ml.inference._evaluation_units import TEST_ITEMS, UnitWriter, lists_header
from sp_ray_ml.inference.evaluators import Ranking
from sp_ray_ml.metrics._lists_kernel import measure_lists, pairwise_distance
from sp_ray_ml.metrics.exposure import coverage, entropy, gini
from sp_ray_ml.metrics.means import Means

__all__ = ["evaluate_lists"]

_ACCURACY = ("recall", "ndcg", "precision", "hit_rate", "mrr", "map")
_POPULARITY = ("popularity", "novelty", "tail")
_RANGE = 1 << 15  # users that are measured at a time


@dataclass(frozen=True)
class _Range:
    """What was measured of some users, those who count: values [metrics × k, users], lists [users, depth], codes, sizes."""

    values: NDArray[np.float64]
    lists: NDArray[np.int32]
    users: NDArray[np.int64]
    test_items: NDArray[np.int64]


class _Groups:
    """Means of users and how often each item is shown, in all and in each segment; and room for the kernel."""

    def __init__(
        self,
        names: Sequence[str],
        ks: NDArray[np.int64],
        labels: Sequence[str],
        num_items: int,
        replicates: int,
        seed: int,
    ) -> None:
        self.labels = labels
        self.means = [Means(names, replicates, seed) for _ in labels]
        self.shown = np.zeros((len(labels), len(ks), num_items), np.int64)
        self.met, self.wanted = np.zeros(num_items, np.int64), np.zeros(num_items, np.int64)

    def merge(self, other: _Groups) -> None:
        """Take the users of another one."""
        for mine, theirs in zip(self.means, other.means, strict=True):
            mine.merge(theirs)
        self.shown += other.shown


def evaluate_lists(
    settings: Ranking,
    predictions: Source,
    truth: Source | None,
    items: Source | None,
    users: Source | None,
    by: list[str],
    replicates: int,
    seed: int,
    units: str | os.PathLike[str] | None,
) -> Found:
    """As `evaluate_predictions`.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: Nobody to measure, a value that is missing, or an item twice in a list.
    """
    if by and users is None:
        raise DataError(
            "segments of users need a table of users", where="by", hint="Give `users`, with their columns"
        )
    threads = len(os.sched_getaffinity(0))
    tables = [(predictions, False), *([] if truth is None else [(truth, True)])]
    with (
        tempfile.TemporaryDirectory(prefix="sp-ray-evaluation-") as folder,
        ThreadPoolExecutor(threads) as pool,
    ):
        lists = read_lists(settings, tables, Path(folder), pool)
        segments = Segments.of(users, by) if users is not None else Segments({})
        of_user = _segments_of(lists, pool, users, segments, settings)
        catalogue = catalogue_of(settings, items, lists.items, pool)
        measured = _Measured(
            settings, catalogue, lists, segments, of_user, truth is not None, replicates, seed, threads
        )
        header = lists_header(settings, [settings.user], measured.names)
        with nullcontext() if units is None else UnitWriter(Path(units), header) as writer:
            for part in lists.parts(pool, threads):
                for found in measured.measure(part, pool):
                    if writer is not None:
                        writer.write(measured.unit_rows(found, settings.user))
        return measured.finish()


def _segments_of(
    lists: Lists, pool: Executor, users: Source | None, segments: Segments, settings: Ranking
) -> list[NDArray[np.int16]]:
    """By column of the segments: the place of each user's value, [users]; -1 for none."""
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


class _Measured:
    """Measures parts in threads, each with accumulators of its own: they add up to the same bits in any order."""

    def __init__(
        self,
        settings: Ranking,
        catalogue: Catalogue,
        lists: Lists,
        segments: Segments,
        of_user: list[NDArray[np.int16]],
        has_truth: bool,
        replicates: int,
        seed: int,
        threads: int,
    ) -> None:
        self._catalogue, self._lists, self._of_user = catalogue, lists, of_user
        self._has_truth = has_truth
        self._ks = np.array(sorted(set(settings.k)), np.int64)
        discounts = 1 / np.log2(np.arange(self._ks[-1]) + 2)
        self._discounts, self._ideal = discounts, np.cumsum(discounts)
        self._kinds = [
            *(_ACCURACY if has_truth else ()),
            *(_POPULARITY if len(catalogue.facts) else ()),
            *(("diversity",) if len(catalogue.vectors) else ()),
        ]
        self.names = [f"{kind}@{k}" for kind in self._kinds for k in self._ks.tolist()]
        labels = segments.labels()
        self._idle = [
            _Groups(self.names, self._ks, labels, lists.items.end, replicates, seed) for _ in range(threads)
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

    def measure(self, part: Part, pool: Executor) -> Iterator[_Range]:
        """Measure the users of a part."""
        ends = [*range(0, len(part.indptr) - 1, _RANGE), len(part.indptr) - 1]
        yield from pool.map(lambda ends: self._measure(part, *ends), pairwise(ends))

    def _measure(self, part: Part, first: int, last: int) -> _Range:
        mine = self._idle.pop()
        try:
            found = self._values(part, first, last, mine)
            units = self._lists.users.units(found.users)
            mine.means[0].update(found.values, units)
            for column, (begin, count) in zip(self._of_user, self._places, strict=True):
                of = column[found.users]
                for number in range(count):
                    members = np.flatnonzero(of == number)
                    if len(members):
                        values = np.take(found.values, members, axis=1)
                        mine.means[begin + number].update(values, units[members])
        finally:
            self._idle.append(mine)
        return found

    def _values(self, part: Part, first: int, last: int, mine: _Groups) -> _Range:
        catalogue = self._catalogue
        users, depth = last - first, int(self._ks[-1])
        values = np.zeros((len(_ACCURACY) + len(_POPULARITY), len(self._ks), users))
        lists, counted = np.empty((users, depth), np.int32), np.empty(users, np.int64)
        groups = self._groups_of(np.arange(part.first + first, part.first + last))
        twice = measure_lists(
            part.indptr, part.items, part.keys, part.truth_indptr, part.truth, part.first, first, last, self._ks,
            self._discounts, self._ideal, catalogue.facts, self._has_truth, groups, mine.met, mine.wanted, values,
            mine.shown, lists, counted,
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
        return _Range(kept, lists, who + part.first + first, counted[who] - 1)

    def unit_rows(self, found: _Range, user: str) -> pa.Table:
        """What `compare` needs of some users."""
        columns = {user: self._lists.users.ids(found.users), TEST_ITEMS: pa.array(found.test_items)}
        for place, (column, values) in zip(self._of_user, self._segments.values.items(), strict=True):
            of = place[found.users]
            columns[column] = pa.array(values, pa.string()).take(pa.array(of, mask=of < 0))
        columns |= {name: pa.array(values) for name, values in zip(self.names, found.values, strict=True)}
        return pa.table(columns)

    def finish(self) -> Found:
        """The metrics and their intervals.

        Raises:
            DataError: Nobody counts, or an item is shown that is not in the catalogue.
        """
        groups = self._idle[0]
        for other in self._idle[1:]:
            groups.merge(other)
        if not groups.means[0].units:
            raise DataError(
                "there is nothing to evaluate: no user has a test item"
                if self._has_truth
                else "there is no prediction",
                hint="Check that both tables name users in the same way",
            )
        shown = groups.shown.cumsum(axis=1)
        self._catalogue.check(shown[0, -1] > 0, self._lists.items)
        found = Found()
        for label, means, of_group in zip(groups.labels, groups.means, shown, strict=True):
            if means.units:
                found.add(*functions_of_means(lambda values: values, means), label)
                for k, counts in zip(self._ks.tolist(), of_group, strict=True):
                    spread = {
                        f"coverage@{k}": coverage(counts, self._catalogue.size),
                        f"gini@{k}": gini(counts, self._catalogue.size),
                        f"entropy@{k}": entropy(counts),
                    }
                    found.add(spread, {}, label)
            found.add({"users": float(means.units)}, {}, label)
        return found
