"""Queries a second of exact nearest neighbours, beside plain NumPy; and of the approximate ones, with their recall."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

NAME = "neighbors"
TARGET = 1.0
VECTORS, WIDTH, K = 200_000, 64, 10


def main(quick: bool) -> dict[str, object]:
    """The 10 nearest by cosine of 200,000 vectors of 64 numbers, for 2,048 of them, each not itself.

    NumPy has the vectors' lengths 1 beforehand, multiplies 256 queries at once with all vectors (200 MB of products) and
    takes the largest by `argpartition` and `argsort`; both use two threads for the products. Rounds take turns, and the
    claim is the median of their ratios. The vectors are 2,000 centres with as much noise as makes neighbours.

    Args:
        quick: 20,000 vectors, 512 queries and one round, instead of three.
    """
    import numpy as np

    from sp_ray_ml.graph import NearestIndex, nearest

    count, asked, rounds = (20_000, 512, 1) if quick else (VECTORS, 2_048, 3)
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(20, count // 100), WIDTH), dtype=np.float32)
    noise = random.standard_normal((count, WIDTH), dtype=np.float32)
    vectors = centres[random.integers(0, len(centres), count)] + 0.7 * noise
    chosen = np.sort(random.choice(count, asked, replace=False))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def plain() -> Any:
        found = np.empty((asked, K), np.int64)
        for first in range(0, asked, 256):
            some = chosen[first : first + 256]
            scores = unit[some] @ unit.T
            scores[np.arange(len(some)), some] = -np.inf
            best = np.argpartition(-scores, K, axis=1)[:, :K]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
            found[first : first + 256] = np.take_along_axis(best, order, axis=1)
        return found

    def ours() -> Any:
        return nearest(vectors[chosen], vectors, K, exclude=chosen)[0]

    ours()  # compiled code is read
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        exact, expected = _timed(ours, times["ours"]), _timed(plain, times["plain"])
    same = float((exact == expected).mean())
    ratios = [other / mine for mine, other in zip(times["ours"], times["plain"], strict=True)]
    rate = {name: asked / statistics.median(seconds) for name, seconds in times.items()}
    print(
        f"{count:,} vectors of {WIDTH}, {asked:,} queries, {K} nearest each; {same:.2%} of places have the same vector"
    )
    print(
        f"exact: {rate['ours']:,.0f} queries/s; NumPy: {rate['plain']:,.0f}; ratios {', '.join(f'{r:.2f}' for r in ratios)}"
    )
    built: list[float] = []
    searched: list[float] = []
    index = _timed(lambda: NearestIndex.build(vectors), built)
    found = [_timed(lambda: index.search(vectors[chosen], K, exclude=chosen)[0], searched) for _ in range(3)][
        -1
    ]
    recall = float((found[:, :, None] == exact[:, None, :]).any(axis=2).mean())
    print(
        f"approximate: built in {built[0]:.1f} s, {index.probes} lists looked through, "
        f"{asked / statistics.median(searched):,.0f} queries/s, recall@{K} {recall:.4f} (of its own sample {index.recall:.4f})"
    )
    ratio = statistics.median(ratios)
    return {
        "name": NAME,
        "ours": round(rate["ours"]),
        "peer": round(rate["plain"]),
        "unit": "queries/s",
        "ratio": round(ratio, 3),
        "target": TARGET,
        "holds": ratio >= TARGET and same > 0.999 and recall >= 0.9,
    }


def _timed(run: Callable[[], Any], seconds: list[float]) -> Any:
    began = time.perf_counter()
    found = run()
    seconds.append(time.perf_counter() - began)
    return found
