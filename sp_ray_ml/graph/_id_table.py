"""`IdTable`: from the original ids of one node type to dense codes, and from codes to the canonical order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from sp_ray_ml.data._columns import is_text, plain
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._id_kernels import SHARD_BITS, by_shard, find, hash_rows, rehash, visit, words_of

__all__ = ["SHARDS", "IdTable", "Rows", "ids_of", "order_by", "places"]

SHARDS = 1 << SHARD_BITS
_FIRST_SLOTS = 64


@dataclass(frozen=True)
class Rows:
    """Ids as bytes, hashed and brought together by shard: those of shard `s` are `indptr[s]:indptr[s + 1]`.

    Attributes:
        data: The i-th is `data[begins[i]:begins[i] + lengths[i]]`.
        begins: int64 [rows].
        lengths: int64 [rows].
        hashes: uint64 [rows].
        time: int64 [rows].
        order: int32 [rows], which row of the column it was.
        indptr: int64 [shards + 1].
    """

    data: NDArray[np.uint8]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    time: NDArray[np.int64]
    order: NDArray[np.int32]
    indptr: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hashes)


def ids_of(
    column: pa.ChunkedArray, where: str, time: NDArray[np.int64], *, text: bool | None
) -> tuple[Rows, bool]:
    """The ids of a column, and whether they are text.

    Args:
        column: Text or whole numbers.
        where: For messages.
        time: Of each row, [rows], or one for all, [1].
        text: What the ids of this node type were before; None if there were none.

    Raises:
        DataError: An id is missing, beyond int64, or neither text nor a whole number; or text and numbers are mixed.
    """
    values = plain(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0))
    if values.null_count:
        raise DataError(f"{values.null_count:,} of {len(values):,} rows have no id", where=where)
    mine = is_text(values.type)
    if not mine and not pa.types.is_integer(values.type):
        raise DataError(f"ids must be text or whole numbers, these are {values.type}", where=where)
    if text is not None and text != mine:
        kinds = {True: "text", False: "whole numbers"}
        raise DataError(
            f"the ids are {kinds[mine]}, those of other columns of this node type {kinds[text]}",
            where=where,
            hint="Cast one of the columns in its query",
        )
    if mine:
        data, offsets = _text(values)
    else:
        data, offsets = _numbers(values, where)
    return _by_shard(data, offsets, time), mine


def _by_shard(data: NDArray[np.uint8], offsets: NDArray[np.int64], time: NDArray[np.int64]) -> Rows:
    count, words = len(offsets) - 1, words_of(data)
    hashes, indptr = np.empty(count, np.uint64), np.zeros(SHARDS + 1, np.int64)
    hash_rows(data, words, offsets, hashes, indptr)
    rows = Rows(
        data,
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(count, np.uint64),
        np.empty(count, np.int64),
        np.empty(count, np.int32),
        indptr,
    )
    by_shard(offsets, hashes, time, indptr, rows.order, rows.begins, rows.lengths, rows.hashes, rows.time)
    return rows


def _text(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    width = np.int64 if pa.types.is_large_string(values.type) else np.int32
    _, ends, text = values.buffers()
    offsets = np.frombuffer(ends, width)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    # Arrow leaves the buffer out where every text is empty.
    return np.frombuffer(text or b"", np.uint8), offsets


def _numbers(values: pa.Array, where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        numbers = values.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"an id is beyond int64: {error}", where=where, hint="Cast the column to text in its query"
        ) from None
    return np.ascontiguousarray(numbers).view(np.uint8), np.arange(0, 8 * len(numbers) + 1, 8)


def order_by(
    first: NDArray[np.int64], sortable: Callable[[NDArray[np.int64]], NDArray[Any]]
) -> NDArray[np.int64]:
    """The canonical order of nodes: by first event's time, then by id.

    Args:
        first: First event's time of each node, [nodes].
        sortable: From some nodes to something that sorts as their ids do; asked only for nodes of one time.

    Returns:
        Nodes in canonical order, [nodes].
    """
    order = np.argsort(first, kind="stable")
    times = first[order]
    same = np.zeros(len(order), dtype=bool)
    same[1:] = times[1:] == times[:-1]
    tied = same.copy()
    tied[:-1] |= same[1:]
    nodes = order[tied]
    if len(nodes):
        by_id = np.empty(len(nodes), np.int64)
        by_id[np.argsort(sortable(nodes), kind="stable")] = np.arange(len(nodes))
        order[tied] = nodes[np.lexsort((by_id, times[tied]))]
    return order


class _Shard:
    """The ids of one shard: a hash table, their bytes one after the other, and each one's first time."""

    def __init__(self) -> None:
        self.slots = np.zeros(_FIRST_SLOTS, np.uint64)
        self.known = np.zeros(_FIRST_SLOTS // 2 + 1, np.int64)
        self.data = np.empty(_FIRST_SLOTS * 8, np.uint8)
        self.first = np.empty(_FIRST_SLOTS // 2, np.int64)
        self.count = np.zeros(1, np.int64)

    def grow(self, room: int) -> None:
        """Room for more ids, one of them `room` bytes long."""
        count = int(self.count[0])
        if 2 * count >= len(self.slots):
            slots = np.zeros(2 * len(self.slots), np.uint64)
            rehash(self.slots, slots)
            self.slots = slots
        if count == len(self.first):
            self.first = _longer(self.first, 3 * count // 2)
            self.known = _longer(self.known, len(self.first) + 1)
        used = int(self.known[count])
        if used + room > len(self.data):
            self.data = _longer(self.data, max(3 * len(self.data) // 2, used + room))


def _longer(array: NDArray[Any], length: int) -> NDArray[Any]:
    result = np.empty(length, array.dtype)
    result[: len(array)] = array
    return result


class IdTable:
    """The ids of one node type. A code is an id's number within its shard, times `SHARDS`, plus the shard."""

    def __init__(self) -> None:
        self.text: bool | None = None
        self._shards = [_Shard() for _ in range(SHARDS)]

    def __len__(self) -> int:
        return sum(int(shard.count[0]) for shard in self._shards)

    @property
    def end(self) -> int:
        """Above every code. Shards differ in size by chance: a few codes have no id."""
        return max(int(shard.count[0]) for shard in self._shards) * SHARDS

    def visit(self, shard: int, rows: Rows, codes: NDArray[np.int64]) -> None:
        """Fill the codes of those rows that belong to a shard; unknown ids are added. A shard takes one thread.

        Args:
            shard: Which.
            rows: Ids and times.
            codes: Filled, [rows].
        """
        mine, words = self._shards[shard], words_of(rows.data)
        row, end = rows.indptr[shard : shard + 2].tolist()
        while True:
            row = visit(
                row, end, rows.hashes, rows.data, words, rows.begins, rows.lengths, rows.time, rows.order,
                mine.slots, mine.known, mine.data, words_of(mine.data), mine.first, mine.count, shard, codes,
            )  # fmt: skip
            if row == end:
                return
            mine.grow(int(rows.lengths[row]))

    def find(self, shard: int, rows: Rows, codes: NDArray[np.int64]) -> None:
        """As `visit`, but nothing is added: unknown ids get -1. Any number of threads or processes may."""
        mine = self._shards[shard]
        row, end = rows.indptr[shard : shard + 2].tolist()
        find(
            row, end, rows.hashes, rows.data, words_of(rows.data), rows.begins, rows.lengths, rows.order,
            mine.slots, mine.known, mine.data, words_of(mine.data), shard, codes,
        )  # fmt: skip

    def in_order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Codes in the canonical order, and the first event's time of each, both [ids]."""
        counts = [int(shard.count[0]) for shard in self._shards]
        codes = np.concatenate([(np.arange(count) << SHARD_BITS) | i for i, count in enumerate(counts)])
        first = np.concatenate(
            [shard.first[:count] for shard, count in zip(self._shards, counts, strict=True)]
        )
        order = order_by(first, lambda nodes: _sortable(self.ids(codes[nodes])))
        return codes[order], first[order]

    def ids(self, codes: NDArray[np.int64]) -> pa.Array:
        """The original ids of some codes: large strings, or int64."""
        shard, number = codes & (SHARDS - 1), codes >> SHARD_BITS
        bases = np.cumsum([0, *(int(each.count[0]) for each in self._shards)])
        return self._all().take(pa.array(bases[shard] + number))

    def _all(self) -> pa.Array:
        ends, parts, used = [np.zeros(1, np.int64)], [], 0
        for shard in self._shards:
            count = int(shard.count[0])
            known = shard.known[: count + 1]
            parts.append(shard.data[: known[-1]])
            ends.append(known[1:] + used)
            used += int(known[-1])
        data = np.concatenate(parts)
        if self.text is False:
            return pa.array(data.view(np.int64))
        offsets = np.concatenate(ends)
        return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _sortable(ids: pa.Array) -> NDArray[np.int64]:
    rank = np.empty(len(ids), np.int64)
    rank[pc.array_sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return rank


def places(order: NDArray[np.int64], end: int, kind: DTypeLike) -> NDArray[Any]:
    """From codes to their places in an order, [end]; -1 for what is not in it."""
    place = np.full(end, -1, kind)
    place[order] = np.arange(len(order))
    return place
