"""Peak memory of the vectors of all nodes, layer by layer, beside the whole graph's forward pass."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

NAME = "layerwise"
TARGET = 0.5
WIDTH, BATCH = 128, 1_024


def main(quick: bool) -> dict[str, object]:
    """Two layers of GraphSAGE, 128 features, 128 hidden, from features alone, of the graph of `epoch`.

    Each way in a process of its own: `embed_nodes` from a graph on disk; the same module's forward pass over the whole
    graph; and batches of 1,024 nodes with all neighbours of both hops, of which only some are run, and the time of all
    is worked out. Memory is what the process itself holds (RssAnon, looked at every 5 ms), without the files that it
    maps, the vectors and the graph of the first way, which the system may drop at any time.

    Args:
        quick: 50,000 nodes and 1 million edges, instead of 500,000 and 10 million.
    """
    nodes, edges = (50_000, 1_000_000) if quick else (500_000, 10_000_000)
    with tempfile.TemporaryDirectory() as folder:
        _run("made", folder, nodes, edges)
        found = {way: _run(way, folder, nodes, edges) for way in ("layers", "whole", "batches")}
        differ = _run("compared", folder, nodes, edges)["differ"]
    print(
        f"{nodes:,} nodes, {edges:,} edges, two threads; the largest difference between two vectors' entries is {differ:.1e}"
    )
    for way, text in (
        ("layers", "layer by layer"),
        ("whole", "the whole graph"),
        ("batches", "whole neighborhoods"),
    ):
        one = found[way]
        guess = f" by what {one['share']:.1%} of the nodes took" if one["share"] < 1 else ""
        print(
            f"{text}: {one['seconds']:.1f} s{guess}, {one['gib']:.2f} GiB beside {one['before']:.2f} of libraries and data"
        )
    ours, peer = (
        found["layers"]["gib"] + found["layers"]["before"],
        found["whole"]["gib"] + found["whole"]["before"],
    )
    ratio = ours / peer
    return {
        "name": NAME,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "unit": "GiB",
        "ratio": round(ratio, 3),
        "target": TARGET,
        "holds": ratio <= TARGET and differ < 1e-4,
    }


def _run(way: str, folder: str, nodes: int, edges: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.layerwise", way, folder, str(nodes), str(edges)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


class _Peak:
    """The most memory of its own that this process holds within the block, in GiB."""

    def __enter__(self) -> _Peak:
        self._end = threading.Event()
        self.before = self.most = _own()
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.005):
            self.most = max(self.most, _own())

    def figures(self, share: float = 1.0) -> dict[str, float]:
        """Seconds for all, and memory."""
        return {
            "seconds": self.seconds / share,
            "gib": self.most - self.before,
            "before": self.before,
            "share": share,
        }


def _own() -> float:
    with Path("/proc/self/status").open() as file:
        [line] = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) / 2**20


def _module(width: int) -> Any:
    import torch
    from torch_geometric.data import HeteroData

    from sp_ray_ml.graph import GraphSAGE

    shape = HeteroData()
    shape["node"].x = torch.empty(1, width)
    shape["node", "to", "node"].edge_index = torch.empty(2, 0, dtype=torch.long)
    torch.manual_seed(0)
    return GraphSAGE(dim=WIDTH, layers=2, ids=False).build(shape).eval()


def _child(way: str, folder: Path, nodes: int, edges: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from sp_ray_ml.graph import EdgeTable, Graph, NeighborLoader, NodeTable, construct_graph, embed_nodes

    if way == "made":
        import pyarrow as pa

        from benchmarks._sampling_graph import made

        indptr, source, _ = made(nodes, edges)
        table = pa.table({"from": source, "to": np.repeat(np.arange(nodes), np.diff(indptr))})
        features = np.random.default_rng(1).standard_normal(nodes * WIDTH, dtype=np.float32)
        rows = pa.table(
            {"id": np.arange(nodes), "x": pa.FixedSizeListArray.from_arrays(pa.array(features), WIDTH)}
        )
        construct_graph(
            folder / "graph",
            {
                ("node", "to", "node"): EdgeTable(
                    table=table, source="from", destination="to", duplicates="keep"
                )
            },
            {"node": NodeTable(table=rows, id="id", features=("x",))},
        )
        return {}
    if way == "compared":
        one, other = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("layers", "whole"))
        assert one.shape == other.shape == (nodes, WIDTH)
        assert np.abs(other[:1_000]).mean() > 0.01
        return {
            "differ": float(
                max(
                    np.abs(one[i : i + 50_000] - other[i : i + 50_000]).max() for i in range(0, nodes, 50_000)
                )
            )
        }
    torch.set_num_threads(2)
    module = _module(WIDTH)
    if way == "layers":
        with _Peak() as peak:
            vectors = embed_nodes(module, folder / "graph", folder / "vectors", threads=2)
        np.save(folder / "layers.npy", vectors["node"])
        return peak.figures()
    graph = Graph.load(folder / "graph")
    with torch.inference_mode():
        if way == "whole":
            with _Peak() as peak:
                found = module(graph.to_pyg())["node"]
            np.save(folder / "whole.npy", found.numpy())
            return peak.figures()
        some = np.random.default_rng(2).permutation(nodes)[: max(2, nodes // BATCH // 50) * BATCH]
        loader = NeighborLoader(graph, [-1, -1], ("node", torch.from_numpy(some)), batch_size=BATCH)
        with _Peak() as peak:
            for batch in loader:
                module(batch)
        return peak.figures(len(some) / nodes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("way")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sizes", type=int, nargs=2)
    given = parser.parse_args()
    print(json.dumps(_child(given.way, given.folder, *given.sizes)))
