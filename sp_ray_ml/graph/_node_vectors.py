"""`NodeVectors`: one vector a node in memory-mapped files, and their way into a warehouse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.data.source import BLOCK_ROWS, Source
from sp_ray_ml.data.warehouse import Warehouse, open_warehouse
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._files import GraphFiles, open_array, read_manifest, verify_files
from sp_ray_ml.storage import local_copy, new_folder, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KIND", "NodeVectors", "vectors_source"]

KIND = "node vectors"


class NodeVectors(Mapping[str, NDArray[np.float32]]):
    """float32 [nodes, width] by node type (`""` where types have no names), memory-mapped.

    Attributes:
        ids: Arrow array [nodes] of the original ids of each type, where the graph has them.
    """

    def __init__(self, vectors: Mapping[str, NDArray[np.float32]], ids: Mapping[str, pa.Array]) -> None:
        self._vectors, self.ids = dict(vectors), dict(ids)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name or 'nodes'} {list(array.shape)}" for name, array in self.items())
        return f"NodeVectors({shown})"

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = False) -> NodeVectors:
        """Open what `embed_nodes` or `save` wrote.

        Args:
            path: The folder, or its URL.
            verify: Also compare checksums; without, only the files' sizes are looked at.

        Raises:
            StorageError: There are no vectors, or a file is missing.
            DataError: They are damaged, or were written by a newer version.
        """
        from sp_ray_ml.data.arrow_files import read_arrow

        folder = local_copy(path)
        manifest = read_manifest(folder)
        if manifest.get("kind") != KIND:
            raise DataError("holds no vectors of nodes", where=str(folder), hint="Make them: embed_nodes(…)")
        if verify:
            verify_files(folder, manifest)
        vectors, ids = {}, {}
        for i, entry in enumerate(manifest["nodes"]):
            name = entry["type"]
            vectors[name] = open_array(folder, f"vectors-{i}")
            if vectors[name].shape != (entry["count"], entry["width"]):
                raise DataError(f"damaged: vectors of shape {vectors[name].shape}", where=str(folder))
            if entry["ids"]:
                with storage_errors(folder / f"ids-{i}.arrow", "read"):
                    ids[name] = read_arrow(folder / f"ids-{i}.arrow")["id"].combine_chunks()
        return cls(vectors, ids)

    def save(self, path: str | Path) -> None:
        """Write to another folder, or a URL of an object store; it appears whole.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        import pyarrow as pa

        from sp_ray_ml.data.arrow_files import write_arrow

        with new_folder(path) as folder:
            files, nodes = GraphFiles(folder), []
            for i, (name, vectors) in enumerate(self.items()):
                files.save(f"vectors-{i}", vectors)
                if name in self.ids:
                    named = folder / f"ids-{i}.arrow"
                    with storage_errors(named):
                        write_arrow(named, pa.table({"id": self.ids[name]}))
                    files.add(named)
                count, width = vectors.shape
                nodes.append({"type": name, "count": count, "width": width, "ids": name in self.ids})
            files.finish({"kind": KIND, "nodes": nodes})

    def source(self, name: str = "") -> Source:
        """Columns `id`, the node's number where its type has no ids, and `embedding`, as `vectors_source` has them."""
        return vectors_source(self.ids.get(name), self[name])

    def write(
        self,
        warehouse: str | Warehouse,
        tables: Mapping[str, str],
        *,
        mode: Literal["replace", "append"] = "replace",
        commit: str | None = None,
    ) -> dict[str, int]:
        """Write tables with the columns `id` and `embedding`, a list of numbers; streamed, each all or nothing.

        Args:
            warehouse: It, or its URL.
            tables: Table of each node type that is written: `{"user": "user_vectors", "item": "item_vectors"}`.
            mode: As of `Warehouse.write`.
            commit: As of `Warehouse.write`; the table's name is added.

        Returns:
            Rows written, by table; 0 where the commit was there already.

        Raises:
            DataError: There are no vectors of a type, or appended rows do not fit.
            StorageError: As of `Warehouse.write`.
        """
        for name in tables:
            if name not in self:
                raise DataError(f"there are no vectors of {name!r}", where="tables", hint=f"There are: {', '.join(self)}")  # fmt: skip
        into = open_warehouse(warehouse) if isinstance(warehouse, str) else warehouse
        return {
            table: into.write(table, self.source(name), mode=mode, commit=commit and f"{commit}:{table}")
            for name, table in tables.items()
        }


def vectors_source(ids: pa.Array | None, vectors: NDArray[np.float32], column: str = "id") -> Source:
    """Ids and vectors as a stream of rows: `column`, and `embedding`, list<float>, which every warehouse has.

    Args:
        ids: Arrow array [rows]; None for their numbers.
        vectors: float32 [rows, width]; they may be memory-mapped.
        column: The name of the ids' column.
    """
    import pyarrow as pa

    if ids is not None and len(ids) != len(vectors):
        raise DataError(f"{len(ids)} ids for {len(vectors)} vectors", where=column)
    kind = pa.int64() if ids is None else ids.type
    schema = pa.schema([(column, kind), ("embedding", pa.list_(pa.float32()))])

    def batches() -> Iterator[Any]:
        for first in range(0, len(vectors), BLOCK_ROWS):
            some = np.ascontiguousarray(vectors[first : first + BLOCK_ROWS], np.float32)
            offsets = pa.array(np.arange(len(some) + 1, dtype=np.int32) * some.shape[1])
            lists = pa.ListArray.from_arrays(offsets, pa.array(some.ravel()))
            numbers = (
                pa.array(np.arange(first, first + len(some))) if ids is None else ids.slice(first, len(some))
            )
            yield pa.record_batch([numbers, lists], schema=schema)

    return Source("embeddings", schema, batches, num_rows=len(vectors))
