"""Machine code of `IdTable`: hashes of ids, and a table from ids to their codes. Compiled once, then read from disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import helper

__all__ = ["SHARD_BITS", "by_shard", "find", "hash_rows", "rehash", "visit", "words_of"]

SHARD_BITS = 6
"""A table is cut by the first bits of the hash: threads share none, and one of 64 stays in a core's cache longer."""

_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_TOP, _HALF, _BYTE, _ONE = np.uint64(64 - SHARD_BITS), np.uint64(32), np.uint64(8), np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)


def words_of(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 8 bytes from each byte on, as overlapping words: entry `i` is `data[i:i + 8]`. Nothing is copied."""
    return np.ndarray((max(0, len(data) - 7),), np.uint64, data, strides=(1,))


@helper
def _short(data: Any, at: int, end: int) -> Any:
    """Less than 8 bytes as one word."""
    word = np.uint64(0)
    for i in range(at, end):
        word = (word << _BYTE) | np.uint64(data[i])
    return word


@helper
def _mixed(value: Any, word: Any) -> Any:
    value = (value ^ word) * _SECOND
    return value ^ (value >> _HALF)


@compiled()
def _append(data: Any, at: int, length: int, to: Any, to_at: int) -> None:
    # Called, not inlined: what is done once an id stays out of the loop over all rows.
    for i in range(length):
        to[to_at + i] = data[at + i]


@compiled()
def hash_rows(data: Any, words: Any, offsets: Any, hashes: Any, indptr: Any) -> None:
    """64-bit hashes of byte strings: 8 bytes at a time, each multiplied and folded (as in MurmurHash).

    Args:
        data: uint8, the bytes.
        words: The same by `words_of`.
        offsets: int64 [rows + 1], where each begins.
        hashes: uint64 [rows], filled.
        indptr: int64 [shards + 1], zeros; filled: rows of the shards before each.
    """
    for i in range(len(hashes)):
        at, end = offsets[i], offsets[i + 1]
        value = np.uint64(end - at) * _FIRST
        if end - at < 8:
            value = _mixed(value, _short(data, at, end))
        else:
            while at + 8 < end:
                value = _mixed(value, words[at])
                at += 8
            # The last 8 bytes, which may overlap those before.
            value = _mixed(value, words[end - 8])
        value *= _FIRST
        value ^= value >> _HALF
        hashes[i] = value
        indptr[(value >> _TOP) + _ONE] += 1
    for shard in range(len(indptr) - 1):
        indptr[shard + 1] += indptr[shard]


@compiled()
def by_shard(
    offsets: Any,
    hashes: Any,
    time: Any,
    indptr: Any,
    order: Any,
    begins: Any,
    lengths: Any,
    out_hashes: Any,
    out_time: Any,
) -> None:
    """Bring rows together by shard: what is looked up in one small table is then read from one place."""
    at = indptr.copy()
    for i in range(len(hashes)):
        shard = hashes[i] >> _TOP
        to = at[shard]
        at[shard] = to + 1
        order[to] = i
        begins[to] = offsets[i]
        lengths[to] = offsets[i + 1] - offsets[i]
        out_hashes[to] = hashes[i]
        out_time[to] = time[0] if len(time) == 1 else time[i]


@compiled()
def rehash(slots: Any, new_slots: Any) -> None:
    """Move a shard's entries to a larger table."""
    mask = np.uint64(len(new_slots) - 1)
    for i in range(len(slots)):
        if slots[i]:
            at = (slots[i] >> _HALF) & mask
            while new_slots[at]:
                at = (at + _ONE) & mask
            new_slots[at] = slots[i]


@helper
def _same(
    data: Any, words: Any, at: int, length: int, known_data: Any, known_words: Any, known_at: int
) -> bool:
    if length < 8:
        return bool(_short(data, at, at + length) == _short(known_data, known_at, known_at + length))
    end, known_end = at + length - 8, known_at + length - 8
    while at < end:
        if words[at] != known_words[known_at]:
            return False
        at += 8
        known_at += 8
    return bool(words[end] == known_words[known_end])


@compiled()
def visit(
    begin: int,
    end: int,
    hashes: Any,
    data: Any,
    words: Any,
    begins: Any,
    lengths: Any,
    time: Any,
    order: Any,
    slots: Any,
    known: Any,
    known_data: Any,
    known_words: Any,
    first: Any,
    count: Any,
    shard: int,
    codes: Any,
) -> int:
    """Codes of the rows of one shard; unknown ids are added.

    Args:
        begin: The first of the rows.
        end: The last, and one.
        hashes: uint64 [rows], as all of the rows by `by_shard`.
        data: Bytes of the rows' ids.
        words: The same by `words_of`.
        begins: int64 [rows], where each row's id begins in `data`.
        lengths: int64 [rows], and how long it is.
        time: int64 [rows]; a node's earliest is kept in `first`.
        order: int32 [rows], where each row's code belongs.
        slots: uint64 [2^k], 32 bits of the hash, and the id's number within the shard + 1; 0 where there is none.
        known: int64 [ids + 1], where each known id begins in `known_data`.
        known_data: Bytes of the known ids.
        known_words: The same by `words_of`.
        first: int64 [ids].
        count: int64 [1], how many ids are known; changed.
        shard: Which shard.
        codes: int64 [rows], filled: (number within the shard) << SHARD_BITS | shard.

    Returns:
        The row that there was no room left for; `end` when all are done.
    """
    mask = np.uint64(len(slots) - 1)
    for i in range(begin, end):
        tag = hashes[i] & _LOW
        start, length = begins[i], lengths[i]
        at = tag & mask
        code = np.int64(-1)
        while True:
            slot = slots[at]
            if slot == 0:
                code = count[0]
                used = known[code]
                if 2 * code >= len(slots) or code == len(first) or used + length > len(known_data):
                    return i
                _append(data, start, length, known_data, used)
                known[code + 1] = used + length
                slots[at] = (tag << _HALF) | np.uint64(code + 1)
                first[code] = time[i]
                count[0] = code + 1
                break
            if slot >> _HALF == tag:
                number = np.int64(slot & _LOW) - 1
                known_at = known[number]
                if known[number + 1] - known_at == length and _same(
                    data, words, start, length, known_data, known_words, known_at
                ):
                    code = number
                    first[number] = min(first[number], time[i])
                    break
            at = (at + _ONE) & mask
        codes[order[i]] = (code << SHARD_BITS) | shard
    return end


@compiled()
def find(
    begin: int,
    end: int,
    hashes: Any,
    data: Any,
    words: Any,
    begins: Any,
    lengths: Any,
    order: Any,
    slots: Any,
    known: Any,
    known_data: Any,
    known_words: Any,
    shard: int,
    codes: Any,
) -> None:
    """As `visit`, of a table that is only read: unknown ids get -1."""
    mask = np.uint64(len(slots) - 1)
    for i in range(begin, end):
        tag = hashes[i] & _LOW
        length = lengths[i]
        at = tag & mask
        code = np.int64(-1)
        while slots[at]:
            number = np.int64(slots[at] & _LOW) - 1
            if (
                slots[at] >> _HALF == tag
                and known[number + 1] - known[number] == length
                and _same(data, words, begins[i], length, known_data, known_words, known[number])
            ):
                code = (number << SHARD_BITS) | shard
                break
            at = (at + _ONE) & mask
        codes[order[i]] = code
