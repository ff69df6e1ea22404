"""Ids of users and items as codes: small whole numbers as they are, all others by a hash table."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.data._columns import is_text, plain, plain_type
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._id_table import SHARDS, IdTable, ids_of

__all__ = ["Ids", "NotSmallError", "check_kinds", "unit_numbers"]

SMALL = 1 << 24
"""Whole numbers from 0 to below it are codes themselves."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_ANY_TIME = np.zeros(1, np.int64)


def check_kinds(columns: Sequence[str], a: pa.Schema, b: pa.Schema, where: str) -> None:
    """Refuse ids that are the same only once one of them is made into the other: the text "01" and the number 1.

    Args:
        columns: The ids.
        a: Of one table.
        b: Of the other.
        where: Of the error.

    Raises:
        DataError: A column is of different kinds.
    """
    for name in columns:
        kinds = [plain_type(schema.field(name).type) for schema in (a, b)]
        if _kind(kinds[0]) != _kind(kinds[1]):
            raise DataError(
                f"the ids {name!r} are {kinds[0]} in one table and {kinds[1]} in the other, so that nobody knows "
                "which are the same",
                where=where,
                hint="Cast them to one type",
            )


def _kind(kind: pa.DataType) -> str:
    if is_text(kind):
        return "text"
    return "whole number" if pa.types.is_integer(kind) else str(kind)


def unit_numbers(columns: list[pa.Array], where: str) -> NDArray[np.uint64]:
    """64 bits of each row that are a function of its ids alone; of one whole number they are that number."""
    found: NDArray[np.uint64] | None = None
    for column in columns:
        rows, text = ids_of(pa.chunked_array([column]), where, _ANY_TIME, text=None)
        if text:
            numbers = np.empty(len(rows), np.uint64)
            numbers[rows.order] = rows.hashes
        else:
            numbers = plain(column).cast(pa.int64()).to_numpy().astype(np.uint64)
        found = numbers if found is None else found * _ODD ^ numbers
    assert found is not None
    return found


class NotSmallError(Exception):
    """An id is no small whole number: all must be read again, with tables."""


class Ids:
    """Codes for the ids of one kind.

    Args:
        small: Whether the ids are hoped to be small whole numbers, which costs nothing.
        counted: Whether `known` or `known_codes` will be asked for.
    """

    def __init__(self, small: bool, *, counted: bool = False) -> None:
        self.small, self._counted = small, counted
        self.end = 0
        self._table = IdTable()
        self._hashes = np.zeros(0, np.uint64)
        self._seen = np.zeros(0, np.bool_)

    @property
    def known(self) -> int:
        """How many ids there were."""
        return int(self._seen.sum()) if self.small else len(self._table)

    def known_codes(self) -> NDArray[np.int64]:
        """The codes of all ids that there were."""
        return np.flatnonzero(self._seen) if self.small else np.arange(len(self._table))

    def codes(self, pool: Executor, column: pa.Array, where: str) -> NDArray[np.int32]:
        """The codes of some ids, int32 `[rows]`; unknown ones get the next.

        Raises:
            NotSmallError: One is no small whole number, and `small` was hoped for.
            DataError: One is missing, or neither text nor a whole number.
        """
        if self.small:
            return self._as_they_are(column, where)
        if len(column) > 1:
            runs = pc.run_end_encode(column) if not pa.types.is_run_end_encoded(column.type) else column
            if 2 * len(runs.values) < len(column):  # predictions come user by user
                lengths = np.diff(runs.run_ends.to_numpy(), prepend=0)
                return np.repeat(self._by_table(pool, runs.values, where), lengths)
        return self._by_table(pool, column, where)

    def _as_they_are(self, column: pa.Array, where: str) -> NDArray[np.int32]:
        values = plain(column)
        if not pa.types.is_integer(values.type):
            raise NotSmallError
        if values.null_count:
            raise DataError(f"{values.null_count:,} of {len(values):,} rows have no id", where=where)
        numbers = values.to_numpy()
        low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)
        if low < 0 or high >= SMALL:
            raise NotSmallError
        if self._counted and high >= len(self._seen):
            longer = np.zeros(max(high + 1, 3 * len(self._seen) // 2), np.bool_)
            longer[: len(self._seen)] = self._seen
            self._seen = longer
        if self._counted:
            self._seen[numbers] = True
        self.end = max(self.end, high + 1)
        return numbers.astype(np.int32)  # type: ignore[no-any-return]

    def _by_table(self, pool: Executor, column: pa.Array, where: str) -> NDArray[np.int32]:
        rows, text = ids_of(pa.chunked_array([column]), where, _ANY_TIME, text=self._table.text)
        self._table.text = text
        codes = np.empty(len(rows), np.int64)
        list(pool.map(lambda shard: self._table.visit(shard, rows, codes), range(SHARDS)))
        self.end = self._table.end
        if self.end > np.iinfo(np.int32).max:
            raise DataError(f"{self.end:,} distinct ids are more than can be evaluated at once", where=where)
        if len(self._hashes) < self.end:
            longer = np.zeros(max(self.end, 3 * len(self._hashes) // 2), np.uint64)
            longer[: len(self._hashes)] = self._hashes
            self._hashes = longer
        self._hashes[codes[rows.order]] = rows.hashes
        return codes.astype(np.int32)

    def units(self, codes: NDArray[np.int64]) -> NDArray[np.uint64]:
        """64 bits that are a function of the id alone, uint64 `[codes]`: of whole numbers they are the number."""
        if self.small:
            return codes.astype(np.uint64)
        if self._table.text is False:
            return self._table.ids(codes).to_numpy().astype(np.uint64)  # type: ignore[no-any-return]
        return self._hashes[codes]

    def ids(self, codes: NDArray[np.int64]) -> pa.Array:
        """The original ids of some codes."""
        return pa.array(codes) if self.small else self._table.ids(codes)

    def sort_keys(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers that sort as the ids do, `[codes]`."""
        if self.small:
            return codes.astype(np.int64)
        ranks = np.empty(len(codes), np.int64)
        ranks[pc.array_sort_indices(self.ids(codes)).to_numpy()] = np.arange(len(codes))
        return ranks
