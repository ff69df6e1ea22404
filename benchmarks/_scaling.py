"""The scaling model: from costs an edge and a byte, measured, to machines, memory, disk and network; pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Assumed", "Costs", "Need", "construction_seconds", "need", "table"]


@dataclass(frozen=True)
class Costs:
    """What one run measured.

    Attributes:
        build_events: The larger of both sizes that were constructed.
        build_cpu: CPU seconds an event of construction at that size.
        build_growth: The factor by which that grew for ten times as many events: tables of ids outgrow the caches.
        build_wall: Seconds an event on `cores`, at the smaller size.
        build_disk: Bytes on disk an edge.
        build_node: Bytes that the peak of memory grows by for a node, from the smaller size to the larger.
        cores: Of the machine.
        local_cpu: CPU seconds an edge sampled in one process.
        caller_cpu: CPU seconds an edge sampled from actors, in the caller.
        actor_cpu: The same in the actors.
        sampled_bytes: Bytes of arrays that move there and back for an edge sampled from actors.
        calls: Calls a batch.
        batch_edges: Edges of a batch.
        batch_nodes: Nodes of a batch, whose features are gathered.
        gather_cpu: CPU seconds a byte of features gathered from actors, both sides.
        layer_cpu: CPU seconds an edge of a layer of inference for all nodes, 128 wide, from features 128 wide.
    """

    build_events: float
    build_cpu: float
    build_growth: float
    build_wall: float
    build_disk: float
    build_node: float
    cores: int
    local_cpu: float
    caller_cpu: float
    actor_cpu: float
    sampled_bytes: float
    calls: float
    batch_edges: float
    batch_nodes: float
    gather_cpu: float
    layer_cpu: float


@dataclass(frozen=True)
class Assumed:
    """What is not measured but supposed: the graph's shape, the training and the machines."""

    edges_a_node: int = 20
    feature_bytes: int = 128 * 4
    seeds_share: float = 0.1
    epoch_seconds: float = 3600
    build_seconds: float = 4 * 3600
    cores: int = 16
    memory: float = 128 * 2**30
    memory_share: float = 0.5
    disk: float = 2e12
    network: float = 10e9 / 8
    network_share: float = 0.7
    cores_share: float = 0.5
    layers: int = 2
    cut: float = 0.3
    """The share of an edge-cut's edges that lead to another shard: it depends on the graph, from 0.05 to that of a hash."""


@dataclass(frozen=True)
class Need:
    """What a graph needs with one partition.

    Attributes:
        machines: The most of `by`.
        by: Machines by each resource; one machine's own memory, disk, processors and network.
        memory: Bytes of topology and features, held by the page cache.
        tables: Bytes on each machine for finding nodes: none with a hash.
        disk: Bytes of the graph and of its parts.
        build_hours: Of construction on those machines.
        build_memory: Bytes of the one process that holds the ids of all nodes then.
        epoch_traffic: Bytes over the network in an epoch.
        inference_hours: Of the vectors of all nodes, layer by layer, on all cores of those machines.
    """

    machines: int
    by: Mapping[str, int]
    memory: float
    tables: float
    disk: float
    build_hours: float
    build_memory: float
    epoch_traffic: float
    inference_hours: float


def construction_seconds(costs: Costs, events: float) -> float:
    """Seconds of construction of so many events on the machine that was measured, linearly from the smaller size."""
    return costs.build_wall * events


def need(edges: float, partition: str, costs: Costs, assumed: Assumed) -> Need:
    """What `edges` edges need with `hash` or `edge-cut`.

    Ids of nodes take 4 bytes below 2³¹ nodes and 8 above, ids of edges likewise; that is how the files are written.
    """
    nodes = edges / assumed.edges_a_node
    node_id, edge_id = (8 if count >= 2**31 else 4 for count in (nodes, edges))
    parts = edges * (node_id + edge_id) + nodes * (8 + node_id)
    features = nodes * assumed.feature_bytes
    memory = parts + features
    # The graph as constructed (both directions), the parts of one direction, features once in each.
    disk = edges * costs.build_disk * node_id / 4 + parts + 2 * features
    tables = nodes * (4 + node_id) if partition == "edge-cut" else 0.0
    usable = assumed.memory * assumed.memory_share - tables

    batches = nodes * assumed.seeds_share / 1024
    sampled = batches * costs.batch_edges
    gathered = batches * costs.batch_nodes * assumed.feature_bytes
    processors = sampled * (costs.caller_cpu + costs.actor_cpu) + gathered * costs.gather_cpu
    # Sampling's arrays are half node ids, half places in rows and counts; the first are as wide as the ids.
    moved = sampled * costs.sampled_bytes * (0.5 + 0.5 * node_id / 4) + gathered
    build = edges * costs.build_cpu * costs.build_growth ** max(0.0, math.log10(edges / costs.build_events))

    def machines(amount: float, each: float) -> int:
        return max(1, math.ceil(amount / each))

    by = {
        "memory": machines(memory, usable) if usable > 0 else -1,
        "disk": machines(disk, assumed.disk),
        "processors": machines(processors, assumed.cores * assumed.cores_share * assumed.epoch_seconds),
        "construction": machines(build, assumed.cores * assumed.build_seconds),
    }
    remote = assumed.cut if partition == "edge-cut" else 1.0
    by["network"] = machines(moved * remote, assumed.network * assumed.network_share * assumed.epoch_seconds)
    most = max(by.values()) if min(by.values()) > 0 else -1
    # With a hash, one of as many shards as machines is one's own.
    share = assumed.cut if partition == "edge-cut" else (most - 1) / most
    traffic = 0.0 if most == 1 else moved * share
    hours = build / (assumed.cores * most) / 3600
    inference = edges * assumed.layers * costs.layer_cpu / (assumed.cores * most) / 3600
    return Need(most, by, memory, tables, disk, hours, nodes * costs.build_node, traffic, inference)


def table(costs: Costs, assumed: Assumed) -> str:
    """The table of docs/scaling.md."""
    rows = [
        "| edges | partition | machines | memory: files kept in it | tables, a machine | disk | network, an epoch | construction "
        "| its largest process | inference | by memory | by disk | by processors | by network | by construction |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for edges in (1e9, 1e11):
        for partition in ("hash", "edge-cut"):
            found = need(edges, partition, costs, assumed)
            by = {
                name: "none will do"
                if count < 0
                else f"**{count:,}**"
                if 1 < count == found.machines
                else f"{count:,}"
                for name, count in found.by.items()
            }
            large = found.build_memory > assumed.memory
            cells = [
                f"{edges / 1e9:g} billion",
                partition,
                "**none will do**" if found.machines < 0 else f"{found.machines:,}",
                _bytes(found.memory),
                _bytes(found.tables),
                _bytes(found.disk),
                "" if found.machines < 0 else _bytes(found.epoch_traffic),
                "" if found.machines < 0 else f"{found.build_hours:.2f} h",
                f"**{_bytes(found.build_memory)}**" if large else _bytes(found.build_memory),
                "" if found.machines < 0 else f"{found.inference_hours:.2f} h",
                *(by[name] for name in ("memory", "disk", "processors", "network", "construction")),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return "0" if not count else f"{count:.0f} B"
