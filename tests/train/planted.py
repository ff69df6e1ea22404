"""A planted partition: a graph of which is known what can at best be told of it.

Two groups of nodes; an edge within a group has the chance a·log(n)/n, one between groups b·log(n)/n. For
√a - √b > √2 the groups can be told apart without an error (Abbe, Bandeira and Hall 2016, "Exact recovery in the
stochastic block model"): the optimum is 1. A node's features are its group's mean ±m with noise of deviation 1: from
these alone nobody can be right more often than Φ(m).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch_geometric.data import Data, HeteroData

NODES, TRAIN, VALIDATION = 500, 60, 100
WITHIN, BETWEEN, MEAN = 10.0, 1.0, 0.5
ALONE = 0.5 * (1 + math.erf(MEAN / math.sqrt(2)))
"""What features alone can give: 0.69."""


def edges_of(group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """int64 [2, edges], each once."""
    count = len(group)
    chance = np.where(group[:, None] == group, WITHIN, BETWEEN) * math.log(count) / count
    return np.stack(np.nonzero(np.triu(random.random((count, count)) < chance, 1)))


def planted(seed: int = 3) -> Data:
    """Nodes and edges of one type, with labels, masks of 60 and 100 nodes, and the others' `test_mask`."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 2, NODES)
    edges = edges_of(group, random)
    x = random.standard_normal((NODES, 4))
    x[:, 0] += np.where(group == 1, MEAN, -MEAN)
    part = np.digitize(random.permutation(NODES), [TRAIN, TRAIN + VALIDATION])
    masks = {
        name: torch.from_numpy(part == i) for i, name in enumerate(("train_mask", "val_mask", "test_mask"))
    }
    return Data(
        x=torch.from_numpy(x.astype(np.float32)),
        edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], 1)),
        y=torch.from_numpy(group),
        **masks,
    )


def planted_types(seed: int = 3) -> HeteroData:
    """The same nodes as papers, whose edges are by half of another type, and venues that say nothing."""
    data, random = planted(seed), np.random.default_rng(seed)
    half = torch.from_numpy(random.random(data.num_edges // 2) < 0.5).repeat(2)
    result = HeteroData()
    for name in ("x", "y", "train_mask", "val_mask", "test_mask"):
        result["paper"][name] = data[name]
    result["venue"].num_nodes = 20
    result["paper", "cites", "paper"].edge_index = data.edge_index[:, half]
    result["paper", "shares", "paper"].edge_index = data.edge_index[:, ~half]
    at = torch.stack([torch.arange(NODES), torch.from_numpy(random.integers(0, 20, NODES))])
    result["paper", "at", "venue"].edge_index = at
    result["venue", "rev_at", "paper"].edge_index = at.flip(0)
    return result
