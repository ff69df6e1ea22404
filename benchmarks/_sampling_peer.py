"""The peers of `sampling`, in an environment of their own: the graph from a folder, commands from a pipe."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch


def graphbolt(folder: Path, fanouts: list[int]):
    """DGL's GraphBolt: a hop is sampled, then made compact, without its data pipeline, which only adds to the time."""
    import dgl.graphbolt as gb

    # With int32 sources it is faster, as ours is.
    graph = gb.fused_csc_sampling_graph(
        torch.from_numpy(np.load(folder / "indptr.npy")),
        torch.from_numpy(np.load(folder / "indices.npy").astype(np.int32)),
    )

    def sample(seeds: np.ndarray) -> int:
        nodes, edges = torch.from_numpy(seeds.astype(np.int32)), 0
        for fanout in fanouts:
            found = graph.sample_neighbors(nodes, torch.LongTensor([fanout]))
            nodes, compact = gb.unique_and_compact_csc_formats(found.sampled_csc, nodes)
            edges += len(compact.indices)
        return edges

    return sample


def torch_sparse(folder: Path, fanouts: list[int]):
    """PyG's own sampler on torch-sparse, what its NeighborLoader samples with."""
    from torch_geometric.sampler import NeighborSampler, NodeSamplerInput

    sampler = NeighborSampler(_data(folder), fanouts)

    def sample(seeds: np.ndarray) -> int:
        return len(sampler.sample_from_nodes(NodeSamplerInput(None, torch.from_numpy(seeds))).row)

    return sample


def every_neighbor(folder: Path, peer: str) -> list[list[int]]:
    """Source, destination of every edge of a batch in which all neighbours of two hops are taken, sorted."""
    seeds = np.load(folder / "order.npy")[:3]
    pairs: set[tuple[int, int]] = set()
    if peer == "torch-sparse":
        from torch_geometric.sampler import NeighborSampler, NodeSamplerInput

        found = NeighborSampler(_data(folder), [-1, -1]).sample_from_nodes(
            NodeSamplerInput(None, torch.from_numpy(seeds))
        )
        return sorted(torch.stack([found.node[found.row], found.node[found.col]]).t().tolist())
    import dgl.graphbolt as gb

    graph = gb.fused_csc_sampling_graph(
        *(torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("indptr", "indices"))
    )
    nodes = torch.from_numpy(seeds)
    for _ in range(2):
        found = graph.sample_neighbors(nodes, torch.LongTensor([-1]))
        nodes, compact = gb.unique_and_compact_csc_formats(found.sampled_csc, nodes)
        of = torch.repeat_interleave(torch.arange(len(compact.indptr) - 1), compact.indptr.diff())
        pairs |= {*zip(nodes[compact.indices].tolist(), nodes[of].tolist(), strict=True)}
    return sorted(map(list, pairs))


def _data(folder: Path):
    from torch_geometric.data import Data

    indptr, source = np.load(folder / "indptr.npy"), np.load(folder / "indices.npy")
    destination = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return Data(edge_index=torch.from_numpy(np.stack([source, destination])), num_nodes=len(indptr) - 1)


def main(peer: str, threads: int, folder: Path, fanouts: list[int], batch: int) -> None:
    torch.set_num_threads(threads)
    order = np.load(folder / "order.npy")
    sample = graphbolt(folder, fanouts) if peer == "graphbolt" else torch_sparse(folder, fanouts)
    sample(order[:batch])
    print("ready", flush=True)
    for line in sys.stdin:
        first, count = json.loads(line)
        began, edges = time.perf_counter(), 0
        for number in range(first, first + count):
            edges += sample(order[number * batch : (number + 1) * batch])
        print(json.dumps(edges / (time.perf_counter() - began)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "every":
        print(json.dumps(every_neighbor(Path(sys.argv[3]), sys.argv[2])))
    else:
        main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]), int(sys.argv[5]))
