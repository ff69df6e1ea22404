"""`Graph`: typed nodes and CSR edges as plain arrays, on disk as memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.optional import require
from sp_ray_ml.storage import new_folder, read_json, storage_errors, write_json

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["EdgeType", "Edges", "Graph"]

EdgeType = tuple[str, str, str]
"""Source node type, relation, destination node type: `("user", "to", "item")`."""

_FORMAT = 1


@dataclass(frozen=True)
class Edges:
    """The edges of one type in compressed sparse rows: row = source node.

    Attributes:
        indptr: int64 [sources + 1]; the edges of source `s` are `indptr[s]:indptr[s + 1]`.
        indices: int32 [edges], destination nodes, ascending within a row.
        weight: float32 [edges].
        time: int64 [edges], nanoseconds since 1970 of the first event of each edge, where events have times.
        edge: int64 [edges], where the rows are destinations (`Graph.in_edges`): each edge's place among those in the
            order of their sources.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    weight: NDArray[np.float32]
    time: NDArray[np.int64] | None = None
    edge: NDArray[np.int64] | None = None

    @property
    def num_edges(self) -> int:
        """How many edges."""
        return len(self.indices)

    def sources(self) -> NDArray[np.int64]:
        """The source node of every edge, [edges]."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def to_scipy(self, num_destinations: int) -> scipy.sparse.csr_array:
        """The same as a SciPy matrix [sources, destinations]; arrays are shared, not copied."""
        import scipy.sparse

        shape = (len(self.indptr) - 1, num_destinations)
        return scipy.sparse.csr_array((self.weight, self.indices, self.indptr), shape=shape)


@dataclass(frozen=True)
class Graph:
    """Typed nodes and edges.

    Attributes:
        num_nodes: Nodes of each type; a node is its index, in the canonical order.
        features: float32 [nodes, width] of those types that have features.
        edges: By edge type.
    """

    num_nodes: Mapping[str, int]
    edges: Mapping[EdgeType, Edges]
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (source, relation, destination), edges in self.edges.items():
            where = f"edges {source}-{relation}-{destination}"
            if len(edges.indptr) != self.num_nodes[source] + 1:
                raise DataError(
                    f"indptr has {len(edges.indptr)} entries for {self.num_nodes[source]} nodes", where=where
                )
            if edges.num_edges and int(edges.indices.max()) >= self.num_nodes[destination]:
                raise DataError(
                    f"an edge leads to a node beyond the {self.num_nodes[destination]} there are", where=where
                )
        for name, matrix in self.features.items():
            if len(matrix) != self.num_nodes[name]:
                raise DataError(
                    f"{len(matrix)} rows of features for {self.num_nodes[name]} nodes", where=f"nodes {name}"
                )

    def in_edges(self, edge_type: EdgeType) -> Edges:
        """The edges of one type by destination (CSC): row = destination, `indices` = sources, ascending in a row."""
        edges, count = self.edges[edge_type], self.num_nodes[edge_type[2]]
        order = np.argsort(edges.indices, kind="stable")
        rows = np.bincount(edges.indices, minlength=count)
        return Edges(
            indptr=np.concatenate([[0], np.cumsum(rows)]).astype(np.int64),
            indices=edges.sources()[order].astype(np.int32),
            weight=np.asarray(edges.weight)[order],
            time=None if edges.time is None else np.asarray(edges.time)[order],
            edge=order.astype(np.int64),
        )

    def with_features(self, features: Mapping[str, NDArray[np.float32]]) -> Graph:
        """The same graph with these features."""
        return Graph(self.num_nodes, self.edges, dict(features))

    def save(self, path: str | Path) -> None:
        """Write to a folder that appears whole: one `.npy` an array and a manifest.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        with new_folder(path) as folder:
            for i, edges in enumerate(self.edges.values()):
                for name, array in _arrays(edges).items():
                    np.save(folder / f"edges-{i}-{name}.npy", array)
            for name, matrix in self.features.items():
                np.save(folder / f"features-{name}.npy", matrix)
            manifest = {
                "format": _FORMAT,
                "num_nodes": dict(self.num_nodes),
                "edges": [
                    {"type": list(kind), "arrays": list(_arrays(edges))} for kind, edges in self.edges.items()
                ],
                "features": list(self.features),
            }
            write_json(folder / "graph.json", manifest)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Open a saved graph; its arrays are memory-mapped, so processes on one machine share one copy.

        Raises:
            StorageError: No graph there, or a file of it is missing or damaged.
            DataError: It was written by a newer version.
        """
        folder = Path(path)
        manifest: dict[str, Any] = read_json(folder / "graph.json")
        if manifest.get("format") != _FORMAT:
            raise DataError(
                f"written in format {manifest.get('format')}, this version reads {_FORMAT}", where=str(folder)
            )

        def load(name: str) -> NDArray[Any]:
            with storage_errors(folder / name, "read"):
                try:
                    return np.load(folder / name, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
                except ValueError as error:
                    raise DataError(
                        f"damaged: {error}", where=str(folder / name), hint="Run again with --fresh"
                    ) from None

        edges = {}
        for i, entry in enumerate(manifest["edges"]):
            source, relation, destination = entry["type"]
            arrays = {name: load(f"edges-{i}-{name}.npy") for name in entry["arrays"]}
            edges[source, relation, destination] = Edges(**arrays)
        return cls(
            manifest["num_nodes"],
            edges,
            {name: load(f"features-{name}.npy") for name in manifest["features"]},
        )

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
            weight = torch.from_numpy(np.array(edges.weight))
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
