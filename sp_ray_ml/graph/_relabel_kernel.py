"""The machine code that numbers sampled nodes by when they were first met, and copies rows of features.

A node's number is kept as `base + number`. Each batch has a base above all numbers of the one before, so that a number
below it is one of an earlier batch: nothing has to be cleared between batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, int64, uint8, uint32, uint64
from numba import types as t

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import helper, prefetch, read, write
from sp_ray_ml.graph._sampling_kernel import GOLDEN

__all__ = [
    "copy_rows",
    "find",
    "find_hashed",
    "insert",
    "insert_hashed",
    "number",
    "number_hashed",
    "word_of",
]

_AHEAD = 24


@compiled(int64(write(int64), int64, write(int32), int64, write(int64), int64))
def number(source: Any, at: Any, table: Any, base: Any, nodes: Any, count: Any) -> Any:
    """Replace nodes from `at` on by their numbers; new ones are added to `nodes`, which has `count`. Return that."""
    last = source.shape[0]
    for e in range(at, last):
        if e + _AHEAD < last:
            prefetch(table, source[e + _AHEAD])
        node = source[e]
        known = np.int64(table[node]) - base
        # Both ways are computed and one is chosen: the processor cannot guess which, and a wrong guess costs more.
        new = known < 0
        mine = count if new else known
        nodes[count] = node
        table[node] = np.int32(base + mine)
        source[e] = mine
        count += np.int64(new)
    return count


@helper
def _slot(node: Any, tree: Any, shift: Any) -> Any:
    mixed = (np.uint64(node) ^ (np.uint64(tree) << np.uint64(40)) ^ np.uint64(tree)) * GOLDEN
    return np.int64(mixed >> shift)


@compiled(
    int64(
        write(int64),
        int64,
        read(int64),
        read(int64),
        write(int64, 2),
        write(int32),
        uint64,
        int64,
        write(int64),
        write(int64),
        int64,
    )
)
def number_hashed(
    source: Any, at: Any, owner: Any, owner_tree: Any, keys: Any, table: Any, shift: Any, base: Any, nodes: Any, trees: Any, count: Any
) -> Any:  # fmt: skip
    """As `number`, by (tree, node) in a hash table: for disjoint trees, and for more nodes than a table should hold.

    The tree of an edge is its owner's, `owner_tree[owner]`; with an empty `owner_tree` there is one tree.
    """
    mask = np.int64(table.shape[0] - 1)
    last = source.shape[0]
    for e in range(at, last):
        if e + _AHEAD < last:
            ahead = owner_tree[owner[e + _AHEAD]] if owner_tree.shape[0] else 0
            prefetch(table, _slot(source[e + _AHEAD], ahead, shift))
        node = source[e]
        tree = owner_tree[owner[e]] if owner_tree.shape[0] else 0
        slot = _slot(node, tree, shift)
        while table[slot] >= base and (keys[slot, 0] != node or keys[slot, 1] != tree):
            slot = (slot + 1) & mask
        if table[slot] < base:
            keys[slot, 0], keys[slot, 1] = node, tree
            table[slot] = np.int32(base + count)
            nodes[count] = node
            if trees.shape[0]:
                trees[count] = tree
            count += 1
        source[e] = np.int64(table[slot]) - base
    return count


@compiled(t.void(read(int64), write(int32), int64))
def insert(nodes: Any, table: Any, base: Any) -> None:
    """Give nodes their places as numbers; one that is there twice has its first."""
    for i in range(nodes.shape[0]):
        if table[nodes[i]] < base:
            table[nodes[i]] = np.int32(base + i)


@compiled(t.void(read(int64), read(int64), write(int64, 2), write(int32), uint64, int64))
def insert_hashed(nodes: Any, trees: Any, keys: Any, table: Any, shift: Any, base: Any) -> None:
    """As `insert`, by (tree, node)."""
    mask = np.int64(table.shape[0] - 1)
    for i in range(nodes.shape[0]):
        tree = trees[i] if trees.shape[0] else 0
        slot = _slot(nodes[i], tree, shift)
        while table[slot] >= base and (keys[slot, 0] != nodes[i] or keys[slot, 1] != tree):
            slot = (slot + 1) & mask
        if table[slot] < base:
            keys[slot, 0], keys[slot, 1] = nodes[i], tree
            table[slot] = np.int32(base + i)


def _find_signature(index: Any) -> Any:
    return int64(
        read(index), read(int64), read(int64), read(int32), int64, write(int64), write(int64), write(int64)
    )


@compiled(_find_signature(int32), _find_signature(int64))
def find(
    indices: Any, start: Any, degree: Any, table: Any, base: Any, position: Any, source: Any, owner: Any
) -> Any:
    """All edges of the rows whose source has a number: return how many; fill positions, numbers, rows if there is room."""
    at = 0
    for i in range(start.shape[0]):
        for e in range(start[i], start[i] + degree[i]):
            known = np.int64(table[indices[e]]) - base
            if known >= 0:
                if at < position.shape[0]:
                    position[at], source[at], owner[at] = e, known, i
                at += 1
    return at


def _find_hashed_signature(index: Any) -> Any:
    return int64(
        read(index), read(int64), read(int64), read(int64), read(int64, 2), read(int32), uint64, int64,
        write(int64), write(int64), write(int64),
    )  # fmt: skip


@compiled(_find_hashed_signature(int32), _find_hashed_signature(int64))
def find_hashed(
    indices: Any, start: Any, degree: Any, trees: Any, keys: Any, table: Any, shift: Any, base: Any, position: Any, source: Any, owner: Any
) -> Any:  # fmt: skip
    """As `find`, by (tree, node); an edge's source must be in its row's own tree."""
    mask = np.int64(table.shape[0] - 1)
    at = 0
    for i in range(start.shape[0]):
        tree = trees[i] if trees.shape[0] else 0
        for e in range(start[i], start[i] + degree[i]):
            node = np.int64(indices[e])
            slot = _slot(node, tree, shift)
            while table[slot] >= base and (keys[slot, 0] != node or keys[slot, 1] != tree):
                slot = (slot + 1) & mask
            if table[slot] >= base:
                if at < position.shape[0]:
                    position[at], source[at], owner[at] = e, np.int64(table[slot]) - base, i
                at += 1
    return at


def _copy_signature(word: Any) -> Any:
    return t.void(read(word, 2), read(int64), write(word, 2))


@compiled(_copy_signature(uint8), _copy_signature(uint32), _copy_signature(uint64))
def copy_rows(table: Any, rows: Any, out: Any) -> None:
    """`out[i] = table[rows[i]]`; of each row the first lines are asked for ahead, the processor finds the others."""
    count, width = rows.shape[0], table.shape[1]
    step = 64 // table.itemsize
    for i in range(count):
        if i + 8 < count:
            base = rows[i + 8] * width
            for j in range(0, min(width, 8 * step), step):
                prefetch(table, base + j)
        row = rows[i]
        for j in range(width):
            out[i, j] = table[row, j]


def word_of(width: int) -> type[np.unsignedinteger[Any]]:
    """The largest word that rows of so many bytes are made of: rows are copied by words, whatever they hold."""
    return np.uint64 if width % 8 == 0 else np.uint32 if width % 4 == 0 else np.uint8
