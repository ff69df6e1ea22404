"""The machine code that samples the in-edges of rows: which of a row's edges are taken, by a counter-based generator.

Everything drawn for a row comes from one key of 64 bits and a counter (`mix`, the finalizer of SplitMix64, Steele et
al. 2014): the key is that of the batch, the hop and the edge type, with the row's node and, where seeds have trees of
their own, the tree. So a row's sample does not depend on what other rows there are, on their order or on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, int64, uint16, uint64
from numba import types as t

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import helper, high_product, prefetch, read, trailing_zeros, write

__all__ = ["GOLDEN", "count_rows", "mix", "pick_rows", "unit"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TREE = np.uint64(0xD1342543DE82EF95)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ONE, _SIX, _WORD = np.uint64(1), np.int64(6), np.int64(64)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
# How many rows ahead memory is asked for: reading one row takes about 25 ns, a line from memory about 100.
_AHEAD = 12
# Up to this many edges taken of a longer row are kept in order by insertion; more are marked in a bitmap.
_INSERTED = 64


@helper
def mix(bits: Any) -> Any:
    """64 bits that look random, of 64 bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))


@helper
def unit(bits: Any) -> Any:
    """A float64 in (0, 1]."""
    return (np.float64(bits >> np.uint64(11)) + 1.0) * (1.0 / 9007199254740992.0)


@compiled(
    int64(
        read(int64),
        read(int64),
        int64,
        t.boolean,
        read(int64),
        read(int64),
        read(int64),
        write(int64),
        write(int64),
    )
)
def count_rows(
    indptr: Any,
    rows: Any,
    fanout: Any,
    replace: Any,
    time: Any,
    trees: Any,
    until: Any,
    start: Any,
    degree: Any,
) -> Any:
    """Fill each row's first edge and how many of its edges may be taken; return how many will be.

    With `until`, a tree's time, only edges up to it may be: those are the first ones, since rows are in the order of
    time then.
    """
    total = 0
    count = rows.shape[0]
    for i in range(count):
        if i + 2 * _AHEAD < count:
            prefetch(indptr, rows[i + 2 * _AHEAD])
        first, last = indptr[rows[i]], indptr[rows[i] + 1]
        if until.shape[0]:
            limit, low, high = until[trees[i]], first, last
            while low < high:
                middle = (low + high) >> 1
                if time[middle] <= limit:
                    low = middle + 1
                else:
                    high = middle
            last = low
        there = last - first
        start[i], degree[i] = first, there
        if fanout < 0 or (there < fanout and not replace):
            total += there
        elif there > 0:
            total += fanout
    return total


@helper
def _few(key: Any, there: Any, fanout: Any) -> Any:
    """`fanout` of at most 64 edges, as bits. Floyd's method (Bentley & Floyd 1987), on the smaller of both parts."""
    leave = there - fanout
    wanted = min(fanout, leave)
    bits = np.uint64(0)
    for j in range(there - wanted, there):
        one = high_product(mix(key + np.uint64(j) * GOLDEN), np.uint64(j + 1))
        one = np.uint64(j) if (bits >> one) & _ONE else one
        bits |= _ONE << one
    if leave < fanout:
        bits = ~bits & (_ALL >> np.uint64(_WORD - there))
    return bits


@helper
def _inserted(key: Any, base: Any, there: Any, fanout: Any, taken: Any, at: Any) -> None:
    """`fanout` of many edges in their order, by Floyd's method with insertion."""
    for size in range(fanout):
        j = there - fanout + size
        one = base + np.int64(high_product(mix(key + np.uint64(j) * GOLDEN), np.uint64(j + 1)))
        place = 0
        while place < size and taken[at + place] < one:
            place += 1
        if place < size and taken[at + place] == one:
            one, place = base + j, size  # larger than all before
        for k in range(size, place, -1):
            taken[at + k] = taken[at + k - 1]
        taken[at + place] = one


@helper
def _marked(key: Any, base: Any, there: Any, fanout: Any, taken: Any, at: Any) -> None:
    """`fanout` of many edges in their order, by Floyd's method with a bitmap, on the smaller of both parts."""
    leave = there - fanout
    wanted = min(fanout, leave)
    words = np.zeros((there + _WORD - 1) >> _SIX, np.uint64)
    for j in range(there - wanted, there):
        one = np.int64(high_product(mix(key + np.uint64(j) * GOLDEN), np.uint64(j + 1)))
        if (words[one >> _SIX] >> np.uint64(one & 63)) & _ONE:
            one = np.int64(j)
        words[one >> _SIX] |= _ONE << np.uint64(one & 63)
    for word in range(words.shape[0]):
        bits = words[word]
        if leave < fanout:
            bits = ~bits
            if word == words.shape[0] - 1 and there & 63:
                bits &= (_ONE << np.uint64(there & 63)) - _ONE
        while bits:
            taken[at] = base + (word << _SIX) + trailing_zeros(bits)
            at += 1
            bits &= bits - _ONE


@helper
def _weighted(
    key: Any, first: Any, base: Any, there: Any, fanout: Any, weight: Any, taken: Any, at: Any
) -> None:  # fmt: skip
    """`fanout` edges one after the other, each by weight among those left: the smallest of Exp(weight) waits.

    Efraimidis & Spirakis 2006, algorithm A-ES, with -ln(u) / w in place of u^(1/w). A heap has the longest on top.
    """
    waits = np.empty(fanout, np.float64)
    size = 0
    for j in range(there):
        wait = -np.log(unit(mix(key + np.uint64(j) * GOLDEN))) / np.float64(weight[first + j])
        if size < fanout:
            place = size
            size += 1
            while place > 0 and waits[(place - 1) >> 1] < wait:
                waits[place] = waits[(place - 1) >> 1]
                taken[at + place] = taken[at + ((place - 1) >> 1)]
                place = (place - 1) >> 1
        elif wait < waits[0]:
            place = 0
            while 2 * place + 1 < size:
                child = 2 * place + 1
                if child + 1 < size and waits[child + 1] > waits[child]:
                    child += 1
                if waits[child] <= wait:
                    break
                waits[place] = waits[child]
                taken[at + place] = taken[at + child]
                place = child
        else:
            continue
        waits[place] = wait
        taken[at + place] = base + j
    taken[at : at + fanout].sort()


@helper
def _again(
    key: Any, first: Any, base: Any, there: Any, fanout: Any, weight: Any, taken: Any, at: Any
) -> None:  # fmt: skip
    """`fanout` edges, each one of all: by weight where there are weights."""
    if weight.shape[0]:
        total = np.empty(there, np.float64)
        so_far = 0.0
        for j in range(there):
            so_far += np.float64(weight[first + j])
            total[j] = so_far
        for j in range(fanout):
            wanted = unit(mix(key + np.uint64(j) * GOLDEN)) * so_far
            low, high = 0, there - 1
            while low < high:
                middle = (low + high) >> 1
                if total[middle] < wanted:
                    low = middle + 1
                else:
                    high = middle
            taken[at + j] = base + low
    else:
        for j in range(fanout):
            taken[at + j] = base + np.int64(high_product(mix(key + np.uint64(j) * GOLDEN), np.uint64(there)))


def _signature(index: Any, position: Any, source: Any) -> Any:
    return t.void(
        read(index), read(float32), read(int64), read(int64), read(int64), read(int64), int64, t.boolean, t.boolean,
        read(uint64), read(int64), t.boolean, int64, write(position), write(source), write(int64), int64,
    )  # fmt: skip


@compiled(
    _signature(int32, int64, int64),
    _signature(int64, int64, int64),
    *(_signature(index, position, index) for index in (int32, int64) for position in (uint16, int32)),
)
def pick_rows(
    indices: Any, weight: Any, start: Any, degree: Any, nodes: Any, trees: Any, fanout: Any, replace: Any, newest: Any,
    keys: Any, ends: Any, relative: Any, column: Any, position: Any, source: Any, owner: Any, at: Any,
) -> None:  # fmt: skip
    """Take edges of every row, in their order; fill their positions, their sources and `column` + the row's number.

    Writes from `at` on. `start` and `degree` are those of `count_rows`. An empty `weight` is uniform, empty `trees`
    is one tree. `newest` takes the last of the edges that may be taken. Rows up to `ends[b]` are drawn by `keys[b]`.
    `relative` counts positions from `start`, and leaves out owners.
    """
    count = start.shape[0]
    before = 0
    for b in range(keys.shape[0]):
        for i in range(before, ends[b]):
            if i + _AHEAD < count:
                prefetch(indices, start[i + _AHEAD])
                prefetch(indices, start[i + _AHEAD] + min(degree[i + _AHEAD], 15))
            first, there = start[i], degree[i]
            base = 0 if relative else first
            back = first - base
            begin = at
            if there == 0:
                continue
            if (fanout < 0 or there <= fanout) and not (replace and fanout >= 0):
                for j in range(there):
                    position[at + j] = base + j
                    source[at + j] = indices[first + j]
                at += there
            elif newest:
                for j in range(fanout):
                    position[at + j] = base + there - fanout + j
                at += fanout
                for j in range(begin, at):
                    source[j] = indices[back + position[j]]
            else:
                mine = keys[b] + np.uint64(nodes[i]) * GOLDEN
                if trees.shape[0]:
                    mine += (np.uint64(trees[i]) + _ONE) * _TREE
                mine = mix(mine)
                if replace:
                    _again(mine, first, base, there, fanout, weight, position, at)
                elif weight.shape[0]:
                    _weighted(mine, first, base, there, fanout, weight, position, at)
                elif there <= _WORD:
                    bits = _few(mine, there, fanout)
                    place = at
                    while bits:
                        one = base + trailing_zeros(bits)
                        position[place] = one
                        source[place] = indices[back + one]
                        place += 1
                        bits &= bits - _ONE
                elif fanout <= _INSERTED:
                    _inserted(mine, base, there, fanout, position, at)
                else:
                    _marked(mine, base, there, fanout, position, at)
                at += fanout
                if replace or weight.shape[0] or there > _WORD:
                    for j in range(begin, at):
                        source[j] = indices[back + position[j]]
            if not relative:
                for j in range(begin, at):
                    owner[j] = column + i
        before = ends[b]
