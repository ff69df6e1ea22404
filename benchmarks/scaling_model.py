"""What 1 billion and 100 billion edges need, from costs measured here, and the model's guess beside a construction of 100 million events."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks._scaling import Assumed, Costs, construction_seconds, table

NAME = "scaling_model"
TARGET = 1.25
SHARDS, BATCHES, TOGETHER, WIDTH, LAYERS = 4, 96, 32, 128, 2


def main(quick: bool) -> dict[str, object]:
    """Construction of 10 million events gives the cost an event, from which that of 100 million is worked out and run.

    The ratio is that of the larger to the smaller of both times. Sampling and gathering are measured on the graph of
    `sampling` with 128 features, from four actors on this machine; inference layer by layer on it in this process.

    Args:
        quick: 1 million events and 3 million, 50,000 nodes and 1 million edges.
    """
    small, large = (1_000_000, 3_000_000) if quick else (10_000_000, 100_000_000)
    first = _constructed(small)
    second = _constructed(large)
    costs = Costs(
        build_events=large,
        build_cpu=second["cpu"] / large,
        build_growth=(second["cpu"] / large / (first["cpu"] / small)) ** (1 / math.log10(large / small)),
        build_wall=first["seconds"] / small,
        build_disk=first["disk_gb"] * 1e9 / first["edges"],
        build_node=(second["peak_gib"] - first["peak_gib"]) * 2**30 / (second["nodes"] - first["nodes"]),
        cores=len(os.sched_getaffinity(0)),
        **_sampled(quick),
    )
    predicted = construction_seconds(costs, large)
    print(
        f"{large:,} events: {predicted:.1f} s predicted, {second['seconds']:.1f} s measured; {second['cpu'] / large * 1e9:.0f} ns "
        f"of CPU an event, predicted {first['cpu'] / small * 1e9:.0f}; {second['disk_gb'] * 1e9 / second['edges']:.1f} bytes an edge on disk, "
        f"predicted {costs.build_disk:.1f}; peak {second['peak_gib']:.2f} GiB"
    )  # fmt: skip
    print(json.dumps(asdict(costs)))
    print(table(costs, Assumed()), flush=True)
    ratio = max(predicted / second["seconds"], second["seconds"] / predicted)
    return {
        "name": NAME,
        "ours": round(predicted, 1),
        "peer": round(second["seconds"], 1),
        "unit": "s",
        "ratio": round(ratio, 3),
        "target": TARGET,
        "holds": ratio <= TARGET,
        "costs": {name: _three(value) for name, value in asdict(costs).items()},
    }


def _three(value: float) -> float:
    return value if not value else round(value, 2 - math.floor(math.log10(abs(value))))


def _constructed(events: int) -> dict[str, float]:
    script = str(Path(__file__).with_name("construction_memory.py"))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, script, "events", folder, str(events)], check=True)
        run = subprocess.run([sys.executable, script, "construct", folder], check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _sampled(quick: bool) -> dict[str, float]:
    import numpy as np
    import ray
    import torch
    from torch_geometric.data import Data

    from benchmarks._sampling_graph import BATCH, FANOUTS, made
    from benchmarks.sharded_sampling import _cpu, _run
    from sp_ray_ml.graph import GraphSAGE, NeighborSampler, ShardedGraph, embed_nodes

    nodes, edges = (50_000, 1_000_000) if quick else (500_000, 10_000_000)
    batches = min(BATCHES, nodes // BATCH)
    indptr, indices, order = made(nodes, edges)
    destination = np.repeat(np.arange(nodes), np.diff(indptr))
    x = torch.zeros(nodes, WIDTH)
    data = Data(edge_index=torch.from_numpy(np.stack([indices, destination])), x=x, num_nodes=nodes)
    del destination
    whole = NeighborSampler(data, FANOUTS)
    samples = [whole.sample({"": order[i * BATCH : (i + 1) * BATCH]}) for i in range(8)]
    batch_edges = float(np.mean([len(one.edges["", "", ""].position) for one in samples]))
    batch_nodes = float(np.mean([len(one.nodes[""]) for one in samples]))
    here = time.process_time()
    _run(whole, order, range(batches), 1, 1)
    local = time.process_time() - here
    module = GraphSAGE(dim=WIDTH, layers=LAYERS, ids=False).build(data).eval()
    here = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        embed_nodes(module, data, Path(folder) / "vectors")
    inference = time.process_time() - here
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            ShardedGraph(data, SHARDS, folder=Path(folder) / "parts", cache=0) as graph,
        ):
            parts, features = NeighborSampler(graph, FANOUTS), graph.features()
            _run(parts, order, range(batches), 2, TOGETHER)
            actors = [shard.place[2] for shard in graph._shards if shard.place]
            here, there, before = time.process_time(), _cpu(actors), graph.moved
            _run(parts, order, range(batches), 2, TOGETHER)
            caller, remote = time.process_time() - here, _cpu(actors) - there
            moved = {name: value - before[name] for name, value in graph.moved.items()}
            here, there = time.process_time(), _cpu(actors)
            for one in samples:
                features.nodes("", one.nodes[""], ["x"])
            gathered = time.process_time() - here + _cpu(actors) - there
    finally:
        ray.shutdown()
    total = batch_edges * batches
    gathered_bytes = batch_nodes * len(samples) * WIDTH * 4
    return {
        "local_cpu": local / total,
        "caller_cpu": caller / total,
        "actor_cpu": remote / total,
        "sampled_bytes": (moved["sent"] + moved["received"]) / total,
        "calls": moved["calls"] / batches,
        "batch_edges": batch_edges,
        "batch_nodes": batch_nodes,
        "gather_cpu": gathered / gathered_bytes,
        "layer_cpu": inference / (edges * LAYERS),
    }


if __name__ == "__main__":
    print(json.dumps(main("--quick" in sys.argv[1:])))
