"""LightGCN's forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from sp_ray_ml.graph._nodes import NodeEncoder
from sp_ray_ml.graph._sparse import SparseOperator
from sp_ray_ml.graph._spectral import spectral_start
from sp_ray_ml.graph.construct import ITEM_ITEM, USER_ITEM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.graph.models import LightGCN

__all__ = ["LightGCNModule"]


class LightGCNModule(torch.nn.Module):
    """See `sp_ray_ml.graph.LightGCN`, which has the equation."""

    def __init__(self, settings: LightGCN, data: Any) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = NodeEncoder(data, settings.dim, settings.init)
        if settings.start == "spectral":
            start = spectral_start(_normalized(data[USER_ITEM], _shape(data)), settings.dim)
            for name, vectors in zip(("user", "item"), start, strict=True):
                # One factor for both, so that the product of the two stays what it is.
                scale = settings.init / max(_deviation(start), 1e-12)
                self.encoder.ids[name].data[:, : vectors.shape[1]] = torch.from_numpy(vectors * scale)

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors of users and items, float32 [nodes, dim]."""
        start = self.encoder(data)
        user, item = (
            F.dropout(start[name], self.settings.dropout, self.training) for name in ("user", "item")
        )
        to_user, item_item = _operators(data, user.device)
        to_item = to_user.transposed
        skip = self.settings.skip_first and self.settings.layers > 0
        sum_user, sum_item = (torch.zeros_like(user), torch.zeros_like(item)) if skip else (user, item)
        for _ in range(self.settings.layers):
            new_item = to_item @ user
            if item_item is not None:
                new_item = (new_item + item_item @ item) / 2
            user, item = to_user @ item, new_item
            sum_user, sum_item = sum_user + user, sum_item + item
        count = self.settings.layers + (not skip)
        return {"user": sum_user / count, "item": sum_item / count}


def _operators(data: Any, device: torch.device) -> tuple[SparseOperator, SparseOperator | None]:
    # A graph is propagated over many times; its matrices are made at the first and kept beside it.
    cached = data.get("_lightgcn", None) if hasattr(data, "get") else None
    if cached is None or cached[0] != device:
        shape = _shape(data)
        to_user = SparseOperator(_normalized(data[USER_ITEM], shape), device)
        has_items = ITEM_ITEM in data.edge_types
        item_item = (
            SparseOperator(_normalized(data[ITEM_ITEM], (shape[1], shape[1])), device) if has_items else None
        )
        cached = (device, to_user, item_item)
        data._lightgcn = cached
    return cached[1], cached[2]


def _shape(data: Any) -> tuple[int, int]:
    return data["user"].num_nodes, data["item"].num_nodes


def _deviation(vectors: tuple[NDArray[np.float32], NDArray[np.float32]]) -> float:
    """Root of the mean square of both kinds' entries, each kind counting as much."""
    return float(np.sqrt(sum(float(np.square(each).mean()) for each in vectors) / 2))


def _normalized(store: Any, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """D_row^(-1/2) A D_column^(-1/2)."""
    row, column = store.edge_index.cpu().numpy()
    weight = store.edge_weight.cpu().numpy().astype(np.float64)
    rows = np.bincount(row, weight, shape[0])
    columns = np.bincount(column, weight, shape[1])
    value = weight / np.sqrt(rows[row] * columns[column])
    return scipy.sparse.csr_array(scipy.sparse.coo_array((value, (row, column)), shape=shape))
