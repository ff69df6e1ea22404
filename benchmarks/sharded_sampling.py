"""Edges sampled a second of a graph in four local actors, beside the same sampler in this process."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._sampling_graph import BATCH, FANOUTS, made
from sp_ray_ml.graph._shard_part import keep_memory

NAME = "sharded_sampling"
TARGET, SHARDS, TOGETHER, THREADS = 0.5, 4, 64, 3


def main(quick: bool) -> dict[str, object]:
    """An epoch in batches of 1,024 seeds with [15, 10] neighbours, as PyG's loader gets them, the same to the bit from both.

    Ours has 192 batches on their way to the actors and back, as `NeighborLoader` has: three threads with 64 each. The
    peer is the sampler in this process, on one thread and on two; the claim is the ratio to the faster of them. Runs of
    a round follow one another. The sources of this graph are uniform, so that there are no hot nodes: nothing is cached.
    The last run is the floor: other actors send as many bytes there and back in as many calls, and compute nothing.

    Args:
        quick: 50,000 nodes, 1 million edges and three rounds, instead of 500,000, 10 million and seven.
    """
    import ray
    import torch
    from torch_geometric.data import Data

    from sp_ray_ml.graph import NeighborSampler, ShardedGraph

    nodes, edges, rounds = (50_000, 1_000_000, 3) if quick else (500_000, 10_000_000, 7)
    indptr, indices, order = made(nodes, edges)
    destination = np.repeat(np.arange(nodes), np.diff(indptr))
    data = Data(edge_index=torch.from_numpy(np.stack([indices, destination])), num_nodes=nodes)
    del destination
    whole = NeighborSampler(data, FANOUTS)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            ShardedGraph(data, SHARDS, folder=Path(folder) / "parts", cache=0) as graph,
        ):
            parts = NeighborSampler(graph, FANOUTS)
            _same(whole, parts, order)
            some = range(nodes // BATCH)
            _run(parts, order, some, THREADS, TOGETHER)
            alone = _time_alone(parts, order)
            ways = {
                "sharded": (parts, THREADS, TOGETHER),
                "one thread": (whole, 1, 1),
                "two threads": (whole, 2, 1),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            moved = dict.fromkeys(graph.moved, 0)
            seconds: dict[str, float] = {}
            actors = [shard.place[2] for shard in graph._shards if shard.place]
            for number in range(rounds):
                for name in list(ways) if number % 2 else reversed(ways):
                    before, here, there = graph.moved, time.process_time(), _cpu(actors)
                    sampler, threads, together = ways[name]
                    rates[name].append(_run(sampler, order, some, threads, together))
                    seconds[name] = (time.process_time() - here) / len(some)
                    if name == "sharded":
                        seconds["actors"] = (_cpu(actors) - there) / len(some)
                        moved = {key: value - before[key] for key, value in graph.moved.items()}
            print(
                f"CPU time of a batch: {seconds['sharded'] * 1e3:.1f} ms here and {seconds['actors'] * 1e3:.1f} in the "
                f"actors; in this process {seconds['one thread'] * 1e3:.1f}",
                flush=True,
            )
            edges_a_batch = _tell_bytes(whole, order, some, moved, nodes)
            _tell_floor(moved, len(some), edges_a_batch)
    finally:
        ray.shutdown()
    middle = {name: statistics.median(values) / 1e6 for name, values in rates.items()}
    peer = max(("one thread", "two threads"), key=lambda name: middle[name])
    ratios = [ours / other for ours, other in zip(rates["sharded"], rates[peer], strict=True)]
    ratio = statistics.median(ratios)
    one = middle["sharded"] / middle["one thread"]
    print(
        f"{middle['sharded']:.1f} million edges/s from {SHARDS} actors with {THREADS * TOGETHER} batches on their way, in this "
        f"process {middle['one thread']:.1f} on one thread (ratio {one:.2f}), {middle['two threads']:.1f} on two; "
        f"one batch at a time takes {alone * 1e3:.0f} ms",
        flush=True,
    )
    print(f"ratio to {peer}: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return {
        "name": NAME,
        "ours": round(middle["sharded"], 1),
        "peer": round(middle[peer], 1),
        "unit": "million edges/s",
        "ratio": round(ratio, 2),
        "target": TARGET,
        "holds": ratio >= TARGET,
    }


def _sampled(sampler: Any, order: np.ndarray, number: int) -> Any:
    import torch
    from torch_geometric.sampler import NodeSamplerInput

    seeds = torch.from_numpy(order[number * BATCH : (number + 1) * BATCH])
    return sampler.sample_from_nodes(NodeSamplerInput(None, seeds))


def _run(sampler: Any, order: np.ndarray, numbers: range, threads: int, together: int) -> float:
    from sp_ray_ml.graph._sample_rows import Seeds

    def sample(first: int) -> int:
        some = range(first, min(first + together, numbers.stop))
        seeds = [Seeds({"": order[number * BATCH : (number + 1) * BATCH]}) for number in some]
        return sum(len(sampler.output(finish()).row) for finish in sampler.sample_together(seeds))

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        edges = sum(pool.map(sample, numbers[::together]))
        return edges / (time.perf_counter() - began)


def _cpu(processes: list[int]) -> float:
    """Seconds of CPU time that processes have used."""
    fields = (Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in processes)
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def _time_alone(sampler: Any, order: np.ndarray) -> float:
    seconds = []
    for number in range(8):
        began = time.perf_counter()
        _sampled(sampler, order, number)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _same(whole: Any, parts: Any, order: np.ndarray) -> None:
    """Both have the same sample; or the figures mean nothing."""
    first, second = _sampled(whole, order, 0), _sampled(parts, order, 0)
    for name in ("node", "row", "col"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise AssertionError(f"{name} differs")
    if not np.array_equal(whole.edge_permutation[first.edge], second.edge):
        raise AssertionError("the edges' ids differ")


def _tell_bytes(whole: Any, order: np.ndarray, numbers: range, moved: dict[str, int], nodes: int) -> float:
    """Beside the least that says the same: the rows' ids, and each edge's source, in whole bits. Return edges a batch."""
    rows, edges, batches = 0, 0, len(numbers)
    for number in numbers:
        out = _sampled(whole, order, number)
        rows += sum(out.num_sampled_nodes[:-1])
        edges += len(out.row)
    bits = max(nodes - 1, 1).bit_length()
    least = (rows + edges) * bits / 8
    total = moved["sent"] + moved["received"]
    print(
        f"one batch: {rows / batches:,.0f} rows, {edges / batches:,.0f} edges; {moved['calls'] / batches:.1f} calls, "
        f"{moved['sent'] / batches / 1e3:,.0f} kB there, {moved['received'] / batches / 1e3:,.0f} kB back: "
        f"{total / edges:.1f} bytes an edge. Sources and rows alone, in {bits} bits each: {least / batches / 1e3:,.0f} kB "
        f"({total / least:.1f} times less)",
        flush=True,
    )
    return edges / batches


class _Echo:
    """An actor that sends bytes back, and computes nothing."""

    def __init__(self, size: int) -> None:
        keep_memory()
        self._bytes = np.ones(size, np.uint8)

    def process(self) -> int:
        return os.getpid()

    def answer(self, _: np.ndarray) -> list[np.ndarray]:
        return [self._bytes]


def _tell_floor(moved: dict[str, int], batches: int, edges: float) -> None:
    """What Ray alone takes for as many calls, of as many bytes each there and back, from as many threads."""
    import ray

    calls = moved["calls"]
    echoes = [ray.remote(_Echo).options(num_cpus=0).remote(moved["received"] // calls) for _ in range(SHARDS)]
    processes = ray.get([echo.process.remote() for echo in echoes])

    def ask(_: int) -> None:
        request = np.ones(moved["sent"] // calls, np.uint8)
        for answer in [echo.answer.remote(request) for echo in echoes]:
            ray.get(answer)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(2):  # the first warms it up
            here, there, began = time.process_time(), _cpu(processes), time.perf_counter()
            list(pool.map(ask, range(calls // SHARDS)))
            seconds = time.perf_counter() - began
    here, there = time.process_time() - here, _cpu(processes) - there
    print(
        f"bare Ray, moving the same bytes in as many calls: {here / batches * 1e3:.1f} ms of CPU time a batch here and "
        f"{there / batches * 1e3:.1f} in the actors, {batches * edges / seconds / 1e6:.0f} million edges/s",
        flush=True,
    )


if __name__ == "__main__":
    import argparse
    import json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(main(parser.parse_args().quick)))
