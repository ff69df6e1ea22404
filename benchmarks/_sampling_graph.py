"""The graph of `sampling` and `epoch`: uniform sources, skewed destinations, as edges by destination."""

from __future__ import annotations

import numpy as np

FANOUTS, BATCH = [15, 10], 1_024


def made(nodes: int, edges: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`indptr` [nodes + 1], sources [edges] by destination, and the nodes in a random order, which seeds are taken in."""
    random = np.random.default_rng(0)
    source = random.integers(0, nodes, edges)
    destination = (random.random(edges) ** 2 * nodes).astype(np.int64)
    order = np.argsort(destination, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(destination, minlength=nodes))])
    return indptr, source[order], random.permutation(nodes)
