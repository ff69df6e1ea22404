"""One layer's product of LightGCN on one thread, as many edges as Gowalla has, beside SciPy's."""

from __future__ import annotations

import statistics
import time

import numpy as np
import scipy.sparse
import torch

from sp_ray_ml.graph._sparse import SparseOperator

NAME = "propagation"
USERS, ITEMS, EDGES, WIDTH = 29_858, 40_981, 810_128, 64


def main(quick: bool) -> dict[str, object]:
    """Multiply both ways by turns, and compare the medians.

    Args:
        quick: Fewer rounds.
    """
    random = np.random.default_rng(0)
    # Items of very different popularity, as theirs are.
    item = (ITEMS * random.random(EDGES) ** 2).astype(np.int64)
    pairs = scipy.sparse.coo_array(
        (np.ones(EDGES, np.float32), (random.integers(0, USERS, EDGES), item)), shape=(USERS, ITEMS)
    )
    matrix = scipy.sparse.csr_array(pairs)
    turned = scipy.sparse.csr_array(matrix.T)
    users, items = (random.standard_normal((n, WIDTH)).astype(np.float32) for n in (USERS, ITEMS))
    operator = SparseOperator(matrix, torch.device("cpu"))
    both = torch.from_numpy(users), torch.from_numpy(items)
    before, ours, peer = torch.get_num_threads(), [], []
    torch.set_num_threads(1)
    try:
        for _ in range(5 if quick else 30):
            began = time.perf_counter()
            found = operator @ both[1], operator.transposed @ both[0]
            ours.append((time.perf_counter() - began) * 1e3 / 2)
            began = time.perf_counter()
            expected = matrix @ items, turned @ users
            peer.append((time.perf_counter() - began) * 1e3 / 2)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-3, atol=1e-3)
    mine, theirs = statistics.median(ours), statistics.median(peer)
    print(f"{matrix.nnz:,} edges, {WIDTH} columns: {mine:.1f} ms, SciPy {theirs:.1f} ms")
    return {
        "name": NAME,
        "ours": round(mine, 1),
        "peer": round(theirs, 1),
        "unit": "ms",
        "ratio": round(mine / theirs, 3),
        "target": 1.0,
        "holds": mine <= theirs,
    }
