"""`ShardedGraph`: a graph in parts in Ray actors, sampled as if it were in one piece."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml._places import adopt, here, homes, share
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.graph._files import open_array, read_manifest
from sp_ray_ml.graph._partition import LAYOUT, write_parts
from sp_ray_ml.graph._placement import Placement
from sp_ray_ml.graph._shard_features import ShardedFeatures
from sp_ray_ml.graph._shard_links import Link, RayShard, Transport, settle
from sp_ray_ml.graph._shard_take import RemoteRows
from sp_ray_ml.graph._split import Parts
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.optional import require
from sp_ray_ml.storage import storage_errors

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["ShardedGraph"]


class ShardedGraph:
    """A graph and its features in parts, each memory-mapped by a Ray actor.

    `NeighborSampler` and `NeighborLoader` take it in place of the graph, and sample the same from it, to the bit. What
    batches on their way ask of a shard goes in one call. An actor whose process or node dies is started again by Ray
    from the files, and asked again.

    Args:
        graph: The folder of a `Graph`; or a `Graph`, or PyG's `Data` or `HeteroData`, with `folder`.
        shards: How many parts and actors.
        partition: `hash`, which needs no table to find a node; or `edge-cut`, which has neighbours in one shard where
            it can, and 8 bytes a node here. See `sp_ray_ml.graph._placement.edge_cut` for source and equation.
        folder: Where the parts are written, to be found at this path on every node (a shared disk, or copies);
            beside the graph by default. Parts of the same graph's folder that are there already are used again.
        cache: Bytes to keep here of hot nodes: half of them rows of edges, half rows of features.
        timeout: Seconds to wait for a shard's answer, its restart included.

    Raises:
        ConfigError: Options that do not fit.
        DataError: The graph cannot be cut into parts, or parts are damaged.
        ResourceError: Ray is not running.
        ClusterError: A shard does not start, or does not answer in time; `ClusterTimeoutError` then.
    """

    def __init__(
        self,
        graph: str | Path | Graph | Data | HeteroData,
        shards: int = 4,
        *,
        partition: Literal["hash", "edge-cut"] = "hash",
        folder: str | Path | None = None,
        cache: int = 64 << 20,
        timeout: float = 120,
    ) -> None:
        if partition not in ("hash", "edge-cut"):
            raise ConfigError(f"{partition!r} is none of hash, edge-cut", where="partition")
        for where, value, least in (("shards", shards, 1), ("cache", cache, 0), ("timeout", timeout, 0)):
            if value < least:
                raise ConfigError(f"{value} is less than {least}", where=where)
        if not require("ray", "a sharded graph").is_initialized():
            raise ResourceError("a sharded graph is in Ray actors, and Ray is not running", hint="Call ray.init() first")  # fmt: skip
        self.folder = _parts(graph, shards, partition, folder)
        share(self.folder)
        self._shards = [RayShard(self.folder.absolute(), i, shards, timeout) for i in range(shards)]
        try:
            settle(self._shards)
            self._open(self._shards, cache)
        except BaseException:
            self.close()
            raise

    def _open(self, transports: Sequence[Transport], cache: int) -> None:
        manifest = read_manifest(self.folder)
        tables = manifest["partition"] != "hash"

        def opened(what: str) -> dict[str, NDArray[Any]]:
            return {
                entry["type"]: np.asarray(open_array(self.folder, f"{what}-{i}"))
                for i, entry in enumerate(manifest["nodes"])
            }

        placement = Placement(
            manifest["shards"], opened("shard-of") if tables else {}, opened("row-of") if tables else {}
        )
        self.parts = Parts(self.folder, manifest, placement, [Link(one) for one in transports])
        self._cache = cache
        self._lock = threading.Lock()
        self._features: ShardedFeatures | None = None
        self._rows: dict[tuple[str | None, str | None], RemoteRows] = {}
        self.parts.greet()

    def __getstate__(self) -> dict[str, Any]:
        # What a worker gets calls the same actors, which are not its own to end, and has a cache of its own.
        return {
            "folder": self.folder.absolute(),
            "homes": homes(),
            "transports": [link.transport for link in self.parts.links],
            "cache": self._cache,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        adopt(state["homes"])
        self.folder, self._shards = here(state["folder"]), []
        self._open(state["transports"], state["cache"])

    @property
    def num_nodes(self) -> Mapping[str, int]:
        """Nodes of each type; of the type `""` where there is one without a name."""
        return self.parts.num_nodes

    def rows(self, weight_attr: str | None = None, time_attr: str | None = None) -> RemoteRows:
        """What `NeighborSampler` samples of.

        Raises:
            DataError: No such weights or times, or such that cannot be.
        """
        with self._lock:
            key = (weight_attr, time_attr)
            if key not in self._rows:
                # The cache is for the first way of sampling; others would need rows of their own.
                budget = 0 if self._rows else self._cache // 2
                self._rows[key] = RemoteRows(self.parts, weight_attr, time_attr, budget)
            return self._rows[key]

    def features(self) -> ShardedFeatures:
        """What `NeighborLoader` gathers of."""
        with self._lock:
            if self._features is None:
                self._features = ShardedFeatures(self.parts, self._cache // 2)
            return self._features

    def stores(self) -> tuple[Any, Any]:
        """PyG's `FeatureStore` and `GraphStore`: `NodeLoader(graph.stores(), …)`."""
        from sp_ray_ml.graph._shard_stores import ShardedFeatureStore, ShardedGraphStore

        return ShardedFeatureStore(self.parts, self.features()), ShardedGraphStore(self.parts)

    def nodes_of(self, shard: int, name: str = "") -> NDArray[np.int64]:
        """The nodes of one type in a shard, ascending: the seeds of a trainer beside it, where few edges are cut."""
        everything = np.arange(self.num_nodes[name])
        return np.flatnonzero(self.parts.placement.find(name, everything)[0] == shard)

    @property
    def cut(self) -> float:
        """The share of edges that come from a node of another shard."""
        edges = self.parts.manifest["edges"]
        cut, count = (sum(int(entry[name]) for entry in edges) for name in ("cut", "count"))
        return cut / max(1, count)

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept here of hot nodes, so far: rows from the first sampler on, features from the first loader."""
        rows = sum(hot.nbytes for way in self._rows.values() for hot in way.hot.values())
        return rows + (0 if self._features is None else self._features.kept_bytes)

    @property
    def moved(self) -> dict[str, int]:
        """Calls to shards so far, and the bytes of the arrays sent and received."""
        return {name: sum(getattr(link, name) for link in self.parts.links) for name in ("calls", "sent", "received")}  # fmt: skip

    def close(self) -> None:
        """End the actors. The parts stay on disk."""
        for shard in self._shards:
            shard.stop()
        self._shards = []

    def __enter__(self) -> ShardedGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parts(graph: Any, shards: int, partition: Literal["hash", "edge-cut"], folder: str | Path | None) -> Path:  # fmt: skip
    """The folder of the parts, written where it is not there yet."""
    if not isinstance(graph, (str, Path)):
        if folder is None:
            raise ConfigError("a graph in memory has no folder that parts could be beside", where="folder", hint="Name one")  # fmt: skip
        write_parts(graph, folder, shards, partition, {"of": None})
        return Path(folder)
    source = Path(graph)
    target = source.with_name(f"{source.name}-{shards}-{partition}") if folder is None else Path(folder)
    with storage_errors(source / "graph.json", "read"):
        of = hashlib.blake2b((source / "graph.json").read_bytes(), digest_size=16).hexdigest()
    if (target / "graph.json").exists():
        there = read_manifest(target)
        wanted = {"of": of, "shards": shards, "partition": partition, "layout": LAYOUT}
        if {name: there.get(name) for name in wanted} == wanted:
            return target
    write_parts(Graph.load(source), target, shards, partition, {"of": of})
    return target
