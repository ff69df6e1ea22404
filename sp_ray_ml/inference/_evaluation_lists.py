"""Ranked lists and what users then chose, from tables of any size: brought together by user, and measured.

Both tables pass through once, as codes. A few million rows stay in memory; more go to files, cut by ranges of users.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data._columns import plain
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._external import Limits, Partitions, Spool
from sp_ray_ml.graph._ingest import ahead
from sp_ray_ml.graph._row_kernels import count_into, group
from sp_ray_ml.inference._evaluation_ids import Ids

if TYPE_CHECKING:
    from sp_ray_ml.inference.evaluators import Ranking

__all__ = ["ListInputs", "Lists", "Part", "columns_of"]

TRUTH = np.nan
"""The key of a test item among rows: in files both kinds lie together."""

_IN_MEMORY = 1 << 23  # rows, 16 bytes each
_CHUNK = 1 << 18
_TYPES: list[np.dtype[Any]] = [np.dtype(np.int32), np.dtype(np.int32), np.dtype(np.float64)]

_Rows = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class ListInputs:
    """What `evaluate_predictions` was given for a `Ranking`, under the names that it has there."""

    settings: Ranking
    predictions: Source
    truth: Source | None
    items: Source | None
    users: Source | None
    by: list[str]
    bootstrap: int
    seed: int
    units: str | os.PathLike[str] | None


@dataclass(frozen=True)
class Part:
    """The rows of a range of users.

    Attributes:
        first: Code of the first user.
        indptr: int64 [users + 1], where each user's predictions begin.
        items: int32 [predictions], codes.
        keys: float64 [predictions], ascending in the list.
        truth_indptr: int64 [users + 1], where each user's test items begin.
        truth: int32 [test items], codes.
    """

    first: int
    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    keys: NDArray[np.float64]
    truth_indptr: NDArray[np.int64]
    truth: NDArray[np.int32]


class Lists:
    """All rows as codes, in memory or in files.

    Args:
        small: As in `Ids`.
        folder: For the files.
    """

    def __init__(self, small: bool, folder: Path) -> None:
        self.users, self.items = Ids(small), Ids(small, counted=True)
        self.predictions = self.truth = 0
        self._folder = folder
        self._chunks: list[_Rows] = []
        self._spool: Spool | None = None
        self._rows = 0

    def add(self, pool: Executor, source: Source, settings: Ranking, *, truth: bool) -> None:
        """Take the rows of a table.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: An id, a rank or a score is missing.
        """
        columns = require_columns(source.schema, columns_of(settings, truth=truth), source.name)
        key = None if truth else columns[-1]
        for block in ahead(source.select(columns).blocks(_CHUNK)):
            codes = partial(self.users.codes, pool, block.column(0), f"{source.name}.{settings.user}")
            # A table of ids works in the pool's threads itself.
            coming = pool.submit(codes) if self.users.small else None
            item = self.items.codes(pool, block.column(1), f"{source.name}.{settings.item}")
            if key is None:
                keys = np.full(len(item), TRUTH)
            else:
                keys = _numbers(block.column(2), f"{source.name}.{key}")
                keys = keys if settings.score is None else -keys
            user = codes() if coming is None else coming.result()
            self._append((user, item, keys))
            self.truth, self.predictions = (
                self.truth + truth * len(user),
                self.predictions + (not truth) * len(user),
            )

    def _append(self, rows: _Rows) -> None:
        self._rows += len(rows[0])
        if self._spool is None and self._rows > _IN_MEMORY:
            self._spool = Spool(self._folder / "rows", _TYPES)
            for chunk in self._chunks:
                self._spool.append(chunk)
            self._chunks = []
        if self._spool is None:
            self._chunks.append(rows)
        else:
            self._spool.append(rows)

    def parts(self, pool: Executor, threads: int) -> Iterator[Part]:
        """The rows by ranges of users, in the order of their codes."""
        end = self.users.end
        if self._spool is None:
            kinds = [[chunk for chunk in self._chunks if _is_truth(chunk) == kind] for kind in (False, True)]
            yield _part(pool, 0, end, *(_together(pool, chunks) for chunks in kinds))
            return
        counts = np.zeros(end, np.int64)
        for number in range(len(self._spool.rows)):
            count_into(self._spool.chunk(number)[0], counts)
        limits = Limits(_CHUNK, max(self._rows >> 7, 1 << 20), threads)
        partitions = Partitions(self._folder, counts, _TYPES, limits)
        spool = self._spool
        partitions.fill(pool, (partial(spool.chunk, number) for number in range(len(spool.rows))))
        spool.remove()
        for number in range(len(partitions)):
            first, last = partitions.begins[number : number + 2].tolist()
            rows = partitions.read(number)
            of_truth = np.isnan(rows[2])
            both = [tuple(column[mask] for column in rows) for mask in (~of_truth, of_truth)]
            yield _part(pool, first, last, *both)
        partitions.remove()


def columns_of(settings: Ranking, *, truth: bool) -> list[str]:
    """The columns that are read of the test items, or of the predictions: the last is then the rank or score."""
    key = settings.rank if settings.score is None else settings.score
    return [settings.user, settings.item, *([] if truth else [key])]


def _is_truth(rows: _Rows) -> bool:
    """Of a chunk, which is of one table."""
    return bool(np.isnan(rows[2][:1]).any())


def _together(pool: Executor, chunks: list[_Rows]) -> _Rows:
    if not chunks:
        return tuple(np.zeros(0, kind) for kind in _TYPES)
    return tuple(
        pool.map(lambda i: np.concatenate([chunk[i] for chunk in chunks]), reversed(range(len(_TYPES))))
    )[::-1]


def _part(pool: Executor, first: int, last: int, predictions: _Rows, truth: _Rows) -> Part:
    coming = pool.submit(_by_user, first, last, *truth[:2])
    indptr, items, keys = _by_user(first, last, *predictions)
    truth_indptr, of_truth = coming.result()
    return Part(first, indptr, items, keys, truth_indptr, of_truth)


def _by_user(first: int, last: int, user: NDArray[Any], *columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Where each user's rows begin, and the columns user by user; the rows of one user as they came."""
    if (user[1:] >= user[:-1]).all():  # as predictions are written
        begins = np.searchsorted(user, np.arange(first, last + 1, dtype=user.dtype))
        return begins.astype(np.int64), *columns
    indptr, order = np.zeros(last - first + 1, np.int64), np.empty(len(user), np.int64)
    group(user, first, indptr, order)
    return indptr, *(column[order] for column in columns)


def _numbers(column: pa.Array, where: str) -> NDArray[np.float64]:
    values = plain(column)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"ranks and scores must be numbers, this column is {values.type}", where=where)
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if missing := int(np.isnan(numbers).sum()):
        raise DataError(f"{missing:,} of {len(numbers):,} rows have no rank or score", where=where)
    return numbers  # type: ignore[no-any-return]
