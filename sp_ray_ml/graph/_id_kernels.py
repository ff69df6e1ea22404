"""Machine code of `IdTable`: hashes of ids, and a table from ids to their codes. Compiled once, then read from disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["SHARD_BITS", "hash_rows", "rehash", "visit"]

SHARD_BITS = 4
"""A table is cut by the first bits of the hash: threads share none, and one of 16 fits a core's cache 16 times longer."""

_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_TOP = np.uint64(64 - SHARD_BITS)
_HALF, _TAIL, _BYTE = np.uint64(32), np.uint64(29), np.uint64(8)


@njit(nogil=True, cache=True)
def hash_rows(data: Any, offsets: Any, out: Any) -> None:
    """64-bit hashes of byte strings: 8 bytes at a time, each multiplied and folded (as in MurmurHash)."""
    for i in range(len(out)):
        at, end = offsets[i], offsets[i + 1]
        value = np.uint64(end - at) * _FIRST
        while at + 8 <= end:
            word = np.uint64(0)
            for k in range(8):
                word |= np.uint64(data[at + k]) << np.uint64(8 * k)
            value = (value ^ word) * _SECOND
            value ^= value >> _HALF
            at += 8
        word = np.uint64(0)
        while at < end:
            word = (word << _BYTE) | np.uint64(data[at])
            at += 1
        value = (value ^ word) * _FIRST
        value ^= value >> _HALF
        value *= _SECOND
        out[i] = value ^ (value >> _TAIL)


@njit(nogil=True, cache=True)
def rehash(slots: Any, hashes: Any, new_slots: Any, new_hashes: Any) -> None:
    """Move a shard's entries to a larger table."""
    mask = np.uint64(len(new_slots) - 1)
    for i in range(len(slots)):
        if slots[i]:
            at = hashes[i] & mask
            while new_slots[at]:
                at = (at + np.uint64(1)) & mask
            new_slots[at], new_hashes[at] = slots[i], hashes[i]


@njit(nogil=True, cache=True)
def visit(
    shard: int,
    begin: int,
    add: bool,
    row_hashes: Any,
    data: Any,
    offsets: Any,
    time: Any,
    slots: Any,
    slot_hashes: Any,
    known: Any,
    known_data: Any,
    first: Any,
    count: Any,
    codes: Any,
) -> int:
    """Codes of the rows of one shard from `begin` on; unknown ids are added, or get -1.

    Args:
        shard: Rows of other shards are passed over.
        begin: The row to start at.
        add: Whether unknown ids are added.
        row_hashes: uint64 [rows].
        data: Bytes of the rows' ids.
        offsets: int64 [rows + 1], where each row's id begins in `data`.
        time: int64 [rows] or one for all [1]; a node's earliest is kept in `first`.
        slots: int64 [2^k], number of the id + 1 within the shard, 0 where there is none.
        slot_hashes: uint64 [2^k].
        known: int64 [ids + 1], where each known id begins in `known_data`.
        known_data: Bytes of the known ids.
        first: int64 [ids].
        count: int64 [1], how many ids are known; changed.
        codes: int64 [rows], filled: (number within the shard) << SHARD_BITS | shard.

    Returns:
        The row at which there was no room left to add an id; `rows` when all are done.
    """
    mask = np.uint64(len(slots) - 1)
    mine = np.uint64(shard)
    same_time = len(time) == 1
    for i in range(begin, len(row_hashes)):
        value = row_hashes[i]
        if value >> _TOP != mine:
            continue
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        moment = time[0] if same_time else time[i]
        at = value & mask
        code = np.int64(-1)
        while True:
            slot = slots[at]
            if slot == 0:
                if not add:
                    break
                number = count[0]
                used = known[number]
                if (
                    2 * number >= len(slots)
                    or number == len(first)
                    or used + length > len(known_data)
                ):
                    return i
                for k in range(length):
                    known_data[used + k] = data[start + k]
                known[number + 1] = used + length
                slots[at], slot_hashes[at] = number + 1, value
                first[number] = moment
                count[0] = number + 1
                code = number
                break
            if slot_hashes[at] == value:
                number = slot - 1
                begins = known[number]
                same = known[number + 1] - begins == length
                k = 0
                while same and k < length:
                    same = known_data[begins + k] == data[start + k]
                    k += 1
                if same:
                    code = number
                    if add and moment < first[number]:
                        first[number] = moment
                    break
            at = (at + np.uint64(1)) & mask
        codes[i] = code if code < 0 else (code << SHARD_BITS) | shard
    return len(row_hashes)
