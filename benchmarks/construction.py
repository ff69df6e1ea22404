"""A graph on disk from 10 million events with text ids, beside Arrow's dictionaries of both columns and SciPy's CSR."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "construction"
TARGET = 1.5


def main(quick: bool) -> dict[str, object]:
    """One process, in turns, all CPUs for ours; the floor's two calls use one by themselves.

    A million users, drawn uniformly, 200,000 items, drawn as `rand()**2`, in the order of time. Ours gives the
    canonical order of nodes, edges by source and by destination with weights and times, and writes all of it with
    checksums; the floor gives codes and one matrix, in memory.

    Args:
        quick: 500,000 events.
    """
    events, rounds = (500_000, 3) if quick else (10_000_000, 5)
    table = _events(events)
    ours: list[float] = []
    floor: list[float] = []
    for turn in range(rounds + 1):
        for run, found in ((_ours, ours), (_floor, floor)) if turn % 2 else ((_floor, floor), (_ours, ours)):
            begin = time.perf_counter()
            run(table)
            if turn:  # the first reads machine code from disk
                found.append(time.perf_counter() - begin)
    mine, least = statistics.median(ours), statistics.median(floor)
    for name, seconds in (("ours", ours), ("floor", floor)):
        print(
            f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{events / statistics.median(seconds) / 1e6:.2f} million events/s"
        )
    return {
        "name": NAME,
        "ours": round(mine, 3),
        "peer": round(least, 3),
        "unit": "s",
        "ratio": round(mine / least, 3),
        "target": TARGET,
        "holds": mine / least <= TARGET,
    }


def _events(count: int) -> Any:
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    users = pa.array([f"user-{number:08x}" for number in rng.permutation(count // 10)])
    items = pa.array([f"item-{number:06}" for number in rng.permutation(count // 50)])
    return pa.table(
        {
            "user": users.take(pa.array((rng.random(count) * len(users)).astype(np.int64))),
            "item": items.take(pa.array((rng.random(count) ** 2 * len(items)).astype(np.int64))),
            "time": np.sort(rng.integers(16 * 10**17, 17 * 10**17, count)).astype("datetime64[ns]"),
        }
    )


def _ours(table: Any) -> None:
    from sp_ray_ml.graph import EdgeTable, construct_graph

    events = EdgeTable(table=table, source="user", destination="item", time="time")
    with tempfile.TemporaryDirectory() as folder:
        construct_graph(Path(folder) / "graph", {("user", "to", "item"): events})


def _floor(table: Any) -> None:
    import numpy as np
    import scipy.sparse

    user, item = (table[name].combine_chunks().dictionary_encode() for name in ("user", "item"))
    ones = np.ones(len(user), np.float32)
    codes = (user.indices.to_numpy(), item.indices.to_numpy())
    shape = (len(user.dictionary), len(item.dictionary))
    scipy.sparse.csr_array(scipy.sparse.coo_array((ones, codes), shape=shape))
