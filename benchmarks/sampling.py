"""Edges sampled a second by `NeighborSampler`, beside DGL's GraphBolt or PyG's sampler on torch-sparse."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._sampling_graph import BATCH, FANOUTS, made

NAME = "sampling"
TARGET, AIM = 2.5, 4
PEERS = {
    "graphbolt": ["dgl==2.1.0", "torch==2.2.1", "torchdata<0.8", "numpy<2", "packaging", "pandas", "pyyaml", "pydantic"],
    # It has no wheel: built here for the torch that this environment gets, which takes 17 minutes of CPU time.
    "torch-sparse": ["torch==2.2.1", "numpy<2", "scipy", "torch-geometric", "setuptools", "wheel", "ninja"],
}  # fmt: skip


def main(quick: bool, peer: str = "graphbolt") -> dict[str, object]:
    """Batches of 1,024 seeds with [15, 10] neighbours, on one thread each and on two each, in turns.

    Ours is what PyG's loader gets: nodes, rows and columns by number, edge positions, as int64 tensors. The peer
    samples in a process of its own, on its own kind of threads; ours on two threads samples two batches at a time. A
    round's ratio is of runs that follow one another; the claim is the smaller of the two medians.

    Args:
        quick: 50,000 nodes, 1 million edges and three rounds, instead of 500,000, 10 million and nine.
        peer: `graphbolt`, or `torch-sparse`, as `python -m benchmarks.sampling --peer torch-sparse` asks for.
    """
    nodes, edges, rounds, batches = (50_000, 1_000_000, 3, 20) if quick else (500_000, 10_000_000, 9, 40)
    indptr, indices, order = made(nodes, edges)
    python = _environment(peer)
    ratios: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _same_when_all_are_taken(python, peer, Path(folder))
        for name, array in {"indptr": indptr, "indices": indices, "order": order}.items():
            np.save(Path(folder) / f"{name}.npy", array)
        sampler, data = _ours(indptr, indices, FANOUTS)
        _rate(sampler, order, 0, 4, threads=2)
        with _Peer(python, peer, 1, folder) as one, _Peer(python, peer, 2, folder) as two:
            others = {1: one, 2: two}
            for number in range(rounds):
                first = number * batches % (nodes // BATCH - batches)
                for threads in (1, 2) if number % 2 == 0 else (2, 1):
                    for who in ("ours", "peer") if number // 2 % 2 == 0 else ("peer", "ours"):
                        rate = (
                            _rate(sampler, order, first, batches, threads=threads)
                            if who == "ours"
                            else others[threads].rate(first, batches)
                        )
                        rates.setdefault(f"{who} {threads}", []).append(rate)
                    ratios[threads].append(rates[f"ours {threads}"][-1] / rates[f"peer {threads}"][-1])
    del data
    middle = {name: statistics.median(values) / 1e6 for name, values in rates.items()}
    found = {threads: statistics.median(values) for threads, values in ratios.items()}
    for threads, ratio in found.items():
        low, _, high = statistics.quantiles(ratios[threads], n=4)
        print(
            f"on {threads} thread{'s' * (threads > 1)}: ours {middle[f'ours {threads}']:.1f}, {peer} "
            f"{middle[f'peer {threads}']:.1f} million edges/s, ratio {ratio:.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )
    fewest = min(found, key=lambda threads: found[threads])
    return {
        "name": NAME,
        "ours": round(middle[f"ours {fewest}"], 1),
        "peer": round(middle[f"peer {fewest}"], 1),
        "unit": "million edges/s",
        "ratio": round(found[fewest], 2),
        "target": TARGET,
        "holds": found[fewest] >= TARGET,
    }


def _ours(indptr: np.ndarray, indices: np.ndarray, fanouts: list[int]) -> tuple[Any, Any]:
    import torch
    from torch_geometric.data import Data

    from sp_ray_ml.graph import NeighborSampler

    destination = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    data = Data(edge_index=torch.from_numpy(np.stack([indices, destination])), num_nodes=len(indptr) - 1)
    return NeighborSampler(data, fanouts), data


def _rate(sampler: Any, order: np.ndarray, first: int, count: int, *, threads: int) -> float:
    import torch
    from torch_geometric.sampler import NodeSamplerInput

    def sample(number: int) -> int:
        seeds = torch.from_numpy(order[number * BATCH : (number + 1) * BATCH])
        return len(sampler.sample_from_nodes(NodeSamplerInput(None, seeds)).row)

    numbers = range(first, first + count)
    if threads == 1:
        began = time.perf_counter()
        edges = sum(map(sample, numbers))
        return edges / (time.perf_counter() - began)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sample, numbers[:threads]))  # each thread has its tables
        began = time.perf_counter()
        edges = sum(pool.map(sample, numbers))
        return edges / (time.perf_counter() - began)


class _Peer:
    """A process that waits between its turns."""

    def __init__(self, python: str, peer: str, threads: int, folder: str) -> None:
        script = Path(__file__).with_name("_sampling_peer.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "DGLBACKEND": "pytorch"}
        self._process = subprocess.Popen(
            [python, str(script), peer, str(threads), folder, json.dumps(FANOUTS), str(BATCH)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> _Peer:
        assert self._process.stdout
        while (line := self._process.stdout.readline()).strip() != "ready":
            if not line:
                raise RuntimeError("the peer ended before it began")
        return self

    def rate(self, first: int, count: int) -> float:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([first, count]), file=self._process.stdin, flush=True)
        return float(json.loads(self._process.stdout.readline()))

    def __exit__(self, *_: object) -> None:
        self._process.communicate("", timeout=60)


def _same_when_all_are_taken(python: str, peer: str, folder: Path) -> None:
    """On a graph so small that every neighbour is taken, both have found the same edges; or the figures mean nothing."""
    import torch
    from torch_geometric.sampler import NodeSamplerInput

    indptr, indices, order = made(300, 1_500)
    pairs = np.stack([indices, np.repeat(np.arange(300), np.diff(indptr))])
    _, kept = np.unique(
        pairs, axis=1, return_index=True
    )  # where a pair has one edge, a set of pairs tells all
    indices, rows = pairs[0, np.sort(kept)], pairs[1, np.sort(kept)]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=300))])
    for name, array in {"indptr": indptr, "indices": indices, "order": order}.items():
        np.save(folder / f"{name}.npy", array)
    command = [python, str(Path(__file__).with_name("_sampling_peer.py")), "every", peer, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    theirs = json.loads(done.stdout.splitlines()[-1])
    sampler, _ = _ours(indptr, indices, [-1, -1])
    found = sampler.sample_from_nodes(NodeSamplerInput(None, torch.from_numpy(order[:3])))
    ours = sorted(torch.stack([found.node[found.row], found.node[found.col]]).t().tolist())
    if ours != theirs:
        raise AssertionError(f"{len(ours)} edges, {peer} has {len(theirs)}")
    print(f"all neighbours of two hops: the same {len(ours)} edges as {peer}", flush=True)


def _environment(peer: str) -> str:
    """The Python of the peer's environment, which is made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sp_ray_ml-benchmarks" / peer
    python = cache / "bin" / "python"
    if (cache / "complete").exists():
        return str(python)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", "3.11", str(cache)], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, *PEERS[peer]], check=True)
    if peer == "torch-sparse":
        subprocess.run([*install, "--no-build-isolation", "torch-scatter", "torch-sparse"], check=True)
    (cache / "complete").touch()
    return str(python)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", choices=list(PEERS), default="graphbolt")
    chosen = parser.parse_args()
    print(json.dumps(main(chosen.quick, chosen.peer)))
