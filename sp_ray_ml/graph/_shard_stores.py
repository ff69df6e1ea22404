"""PyG's two interfaces to a graph that is elsewhere, `GraphStore` and `FeatureStore`, in front of shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._sample_inputs import ALONE
from sp_ray_ml.graph._shard_features import ShardedFeatures
from sp_ray_ml.graph._shard_take import RemoteRows
from sp_ray_ml.graph._split import Parts
from sp_ray_ml.optional import require

__all__ = ["ShardedFeatureStore", "ShardedGraphStore"]

_pyg = require("torch_geometric.data", "a sharded graph behind PyG's interfaces")


def _read_only() -> DataError:
    return DataError("a sharded graph is only read", hint="Construct another one: construct_graph")


class ShardedGraphStore(_pyg.GraphStore):  # type: ignore[misc,name-defined]
    """Edges by destination (CSC), whole: for graphs that fit in memory. Sampling asks the shards instead."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._parts = parts

    def get_all_edge_attrs(self) -> list[Any]:
        """One for each edge type."""
        from torch_geometric.data.graph_store import EdgeAttr, EdgeLayout

        sizes = self._parts.num_nodes
        return [
            EdgeAttr(None if self._parts.homogeneous else kind, EdgeLayout.CSC, True, (sizes[kind[0]], sizes[kind[2]]))
            for kind in self._parts.kinds
        ]  # fmt: skip

    def _get_edge_index(self, edge_attr: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        kind = (ALONE,) * 3 if edge_attr.edge_type is None else tuple(edge_attr.edge_type)
        if edge_attr.layout.value != "csc" or kind not in self._parts.kinds:
            return None
        rows = RemoteRows(self._parts, None, None, 0).whole(kind)
        return torch.from_numpy(rows.indices.astype(np.int64)), torch.from_numpy(rows.indptr)

    def _put_edge_index(self, edge_index: Any, edge_attr: Any) -> bool:  # noqa: ARG002
        raise _read_only()

    def _remove_edge_index(self, edge_attr: Any) -> bool:  # noqa: ARG002
        raise _read_only()


class ShardedFeatureStore(_pyg.FeatureStore):  # type: ignore[misc,name-defined]
    """Attributes of nodes: `store["user", "x", ids]`, or without a type `store[None, "x", ids]`."""

    def __init__(self, parts: Parts, features: ShardedFeatures) -> None:
        super().__init__()
        self.__dict__["_parts"], self.__dict__["_features"] = parts, features

    def get_all_tensor_attrs(self) -> list[Any]:
        """One for each attribute of each node type."""
        from torch_geometric.data.feature_store import TensorAttr

        return [
            TensorAttr(None if self._parts.homogeneous else name, attribute)
            for name in self._parts.num_nodes
            for attribute in self._parts.attributes(name)
        ]

    def _get_tensor(self, attr: Any) -> torch.Tensor | None:
        return self._multi_get_tensor([attr])[0]

    def _multi_get_tensor(self, attrs: list[Any]) -> list[torch.Tensor | None]:
        # What is asked of the same nodes is asked in one call.
        together: dict[tuple[str, int], list[Any]] = {}
        for attr in attrs:
            together.setdefault((attr.group_name or ALONE, id(attr.index)), []).append(attr)
        found: dict[int, torch.Tensor] = {}
        for (name, _), some in together.items():
            known = self._parts.attributes(name) if name in self._parts.num_nodes else {}
            there = [attr for attr in some if attr.attr_name in known]
            if there:
                ids = self._ids(name, some[0].index)
                values = self._features.nodes(name, ids, [attr.attr_name for attr in there])
                found |= {id(attr): values[attr.attr_name] for attr in there}
        return [found.get(id(attr)) for attr in attrs]

    def _ids(self, name: str, index: Any) -> NDArray[np.int64]:
        count = self._parts.num_nodes[name]
        if index is None or isinstance(index, slice):
            return np.arange(count)[index or slice(None)]
        ids = np.atleast_1d(np.asarray(index))
        if ids.dtype == np.bool_:
            return np.flatnonzero(ids)
        ids = np.ascontiguousarray(ids, np.int64)
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= count):
            raise DataError(f"node {ids[(ids < 0) | (ids >= count)][0]} is none; there are {count}", where=f"nodes {name}".strip())  # fmt: skip
        return ids

    def _get_tensor_size(self, attr: Any) -> tuple[int, ...] | None:
        name = attr.group_name or ALONE
        if name not in self._parts.num_nodes or attr.attr_name not in self._parts.attributes(name):
            return None
        width = self._parts.attributes(name)[attr.attr_name]["width"]
        count = len(self._ids(name, attr.index))
        return (count,) if width is None else (count, width)

    def _put_tensor(self, tensor: Any, attr: Any) -> bool:  # noqa: ARG002
        raise _read_only()

    def _remove_tensor(self, attr: Any) -> bool:  # noqa: ARG002
        raise _read_only()
