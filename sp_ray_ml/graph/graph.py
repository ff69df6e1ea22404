"""`Graph`: typed nodes and CSR edges as plain arrays, on disk as memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._files import GraphFiles, open_array, read_manifest, verify_files
from sp_ray_ml.optional import require
from sp_ray_ml.storage import local_copy, new_folder, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa
    import scipy.sparse

__all__ = ["ALONE", "EdgeType", "Edges", "Graph", "node_type"]

EdgeType = tuple[str, str, str]
"""Source node type, relation, destination node type: `("user", "to", "item")`."""

ALONE = ""
"""The type of the nodes of a homogeneous graph, and with it that of its edges, `("", "", "")`."""

_MOST_INT32 = np.iinfo(np.int32).max


def node_type(count: int) -> type[np.int32] | type[np.int64]:
    """The type of indices of so many nodes: int32, or int64 where there are more than 2^31 - 1."""
    return np.int32 if count <= _MOST_INT32 else np.int64


@dataclass(frozen=True)
class Edges:
    """The edges of one type in compressed sparse rows: row = source node.

    Attributes:
        indptr: int64 [sources + 1]; the edges of source `s` are `indptr[s]:indptr[s + 1]`.
        indices: int32 [edges], destination nodes, ascending within a row; int64 where there are more than 2^31 - 1.
        weight: float32 [edges]; None where every edge counts the same.
        time: int64 [edges], nanoseconds since 1970 of the first event of each edge, where events have times.
        edge: int64 [edges], where the rows are destinations (`Graph.in_edges`): each edge's place among those in the
            order of their sources.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    weight: NDArray[np.float32] | None = None
    time: NDArray[np.int64] | None = None
    edge: NDArray[np.int64] | None = None

    @property
    def num_edges(self) -> int:
        """How many edges."""
        return len(self.indices)

    def sources(self) -> NDArray[np.int64]:
        """The source node of every edge, [edges]."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def weights(self) -> NDArray[np.float32]:
        """The weight of every edge, [edges]: ones where there are none."""
        return np.ones(self.num_edges, np.float32) if self.weight is None else self.weight

    def to_scipy(self, num_destinations: int) -> scipy.sparse.csr_array:
        """The same as a SciPy matrix [sources, destinations]; arrays are shared, not copied."""
        import scipy.sparse

        shape = (len(self.indptr) - 1, num_destinations)
        return scipy.sparse.csr_array((self.weights(), self.indices, self.indptr), shape=shape)


@dataclass(frozen=True)
class Graph:
    """Typed nodes and edges.

    Attributes:
        num_nodes: Nodes of each type; a node is its index, in the canonical order.
        edges: By edge type.
        features: float32 [nodes, width] of those types that have features.
        ids: Arrow array [nodes] of each type's original ids, where `construct_graph` made the graph of a table.
    """

    num_nodes: Mapping[str, int]
    edges: Mapping[EdgeType, Edges]
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    ids: Mapping[str, pa.Array] = field(default_factory=dict)
    _in_edges: dict[EdgeType, Edges] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for (source, relation, destination), edges in self.edges.items():
            where = f"edges {source}-{relation}-{destination}"
            if len(edges.indptr) != self.num_nodes[source] + 1:
                raise DataError(
                    f"indptr has {len(edges.indptr)} entries for {self.num_nodes[source]} nodes", where=where
                )
            # What is on disk was looked at when it was written, and is not read as a whole to be opened.
            if isinstance(edges.indices, np.memmap) or not edges.num_edges:
                continue
            if int(edges.indices.max()) >= self.num_nodes[destination]:
                raise DataError(
                    f"an edge leads to a node beyond the {self.num_nodes[destination]} there are", where=where
                )
        for name, matrix in self.features.items():
            if len(matrix) != self.num_nodes[name]:
                raise DataError(
                    f"{len(matrix)} rows of features for {self.num_nodes[name]} nodes", where=f"nodes {name}"
                )
        for name, ids in self.ids.items():
            if len(ids) != self.num_nodes[name]:
                raise DataError(f"{len(ids)} ids for {self.num_nodes[name]} nodes", where=f"nodes {name}")

    def in_edges(self, edge_type: EdgeType) -> Edges:
        """The edges of one type by destination (CSC): row = destination, `indices` = sources, ascending in a row.

        Memory-mapped where `construct_graph` has written them; computed at the first call and kept otherwise.
        """
        if edge_type not in self._in_edges:
            self._in_edges[edge_type] = _transposed(
                self.edges[edge_type], self.num_nodes[edge_type[0]], self.num_nodes[edge_type[2]]
            )
        return self._in_edges[edge_type]

    def with_features(self, features: Mapping[str, NDArray[np.float32]]) -> Graph:
        """The same graph with these features."""
        return replace(self, features=dict(features))

    def save(self, path: str | Path) -> None:
        """Write to a folder, or the URL of one, that appears whole: one `.npy` an array and a manifest.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        from sp_ray_ml.data.arrow_files import write_arrow

        with new_folder(path) as folder:
            files = GraphFiles(folder)
            for i, edges in enumerate(self.edges.values()):
                for name, array in _arrays(edges).items():
                    files.save(f"edges-{i}-{name}", array)
            for i, name in enumerate(self.num_nodes):
                if name in self.features:
                    files.save(f"features-{i}", np.asarray(self.features[name], np.float32))
                if name in self.ids:
                    import pyarrow as pa

                    file = folder / f"ids-{i}.arrow"
                    with storage_errors(file):
                        write_arrow(file, pa.table({"id": self.ids[name]}))
                    files.add(file)
            files.finish(
                {
                    "nodes": [
                        {
                            "type": name,
                            "count": count,
                            "ids": name in self.ids,
                            "features": name in self.features,
                        }
                        for name, count in self.num_nodes.items()
                    ],
                    "edges": [
                        {"type": list(kind), "arrays": list(_arrays(edges)), "in_arrays": []}
                        for kind, edges in self.edges.items()
                    ],
                }
            )

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = False) -> Graph:
        """Open a saved graph; its arrays are memory-mapped, so processes on one machine share one copy.

        Args:
            path: The folder, or its URL: then a copy here is opened, one for all processes.
            verify: Also read all of it and compare the checksums; without, only the files' sizes are looked at.

        Raises:
            StorageError: No graph there, or a file of it is missing.
            DataError: It is damaged, or was written by a newer version.
        """
        from sp_ray_ml.data.arrow_files import read_arrow

        folder = local_copy(path)
        manifest = read_manifest(folder)
        if "kind" in manifest:
            raise DataError(f"holds {manifest['kind']}, no graph", where=str(folder))
        if verify:
            verify_files(folder, manifest)

        def opened(i: int, names: list[str], prefix: str) -> Edges:
            return Edges(**{name: open_array(folder, f"edges-{i}-{prefix}{name}") for name in names})

        edges, in_edges, features, ids = {}, {}, {}, {}
        for i, entry in enumerate(manifest["edges"]):
            source, relation, destination = entry["type"]
            edges[source, relation, destination] = opened(i, entry["arrays"], "")
            if entry["in_arrays"]:
                in_edges[source, relation, destination] = opened(i, entry["in_arrays"], "in-")
        for i, entry in enumerate(manifest["nodes"]):
            if entry["features"]:
                features[entry["type"]] = open_array(folder, f"features-{i}")
            if entry["ids"]:
                with storage_errors(folder / f"ids-{i}.arrow", "read"):
                    ids[entry["type"]] = read_arrow(folder / f"ids-{i}.arrow")["id"].combine_chunks()
        counts = {entry["type"]: entry["count"] for entry in manifest["nodes"]}
        return cls(counts, edges, features, ids, in_edges)

    def to_pyg(self) -> Any:
        """A PyG `HeteroData`: `num_nodes`, `x` where there are features, `edge_index` and `edge_weight` by type.

        Every edge type between two node types is there in both directions, the other one as `rev_<relation>`.
        """
        import torch

        data = require("torch_geometric.data", "a PyG graph").HeteroData()
        for name, count in self.num_nodes.items():
            data[name].num_nodes = count
            if name in self.features:
                data[name].x = torch.from_numpy(np.array(self.features[name]))
        for (source, relation, destination), edges in self.edges.items():
            index = torch.from_numpy(np.stack([edges.sources(), edges.indices.astype(np.int64)]))
            weight = torch.from_numpy(np.array(edges.weights()))
            store = data[source, relation, destination]
            store.edge_index, store.edge_weight = index, weight
            if source != destination:
                reverse = data[destination, f"rev_{relation}", source]
                reverse.edge_index, reverse.edge_weight = index.flip(0), weight
        return data


def _arrays(edges: Edges) -> dict[str, NDArray[Any]]:
    every: dict[str, NDArray[Any] | None] = {
        "indptr": edges.indptr,
        "indices": edges.indices,
        "weight": edges.weight,
        "time": edges.time,
    }
    return {name: array for name, array in every.items() if array is not None}


def _transposed(edges: Edges, num_sources: int, num_destinations: int) -> Edges:
    from sp_ray_ml.graph._row_kernels import group

    indptr, order = np.zeros(num_destinations + 1, np.int64), np.empty(edges.num_edges, np.int64)
    group(np.asarray(edges.indices), 0, indptr, order)
    sources: Any = edges.sources().astype(node_type(num_sources))
    return Edges(
        indptr=indptr,
        indices=sources[order],
        weight=None if edges.weight is None else np.asarray(edges.weight)[order],
        time=None if edges.time is None else np.asarray(edges.time)[order],
        edge=order,
    )
