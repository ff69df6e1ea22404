"""A planted partition in Planetoid's files: a GCN of PyG's layers comes to what can at best be known of it.

Two groups of nodes; an edge within a group has the chance a·log(n)/n, one between groups b·log(n)/n. For
√a - √b > √2 the groups can be told apart without an error (Abbe, Bandeira and Hall 2016, "Exact recovery in the
stochastic block model"): the optimum is 1. A node's features are its group's mean ±m with noise of deviation 1: from
these alone nobody can be right more often than Φ(m).
"""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from benchmarks import cora
from sp_ray_ml.graph import load_planetoid

NODES, TRAIN, KNOWN = 900, 40, 700
WITHIN, BETWEEN, MEAN = 10.0, 1.0, 0.5


def write(folder: Path) -> None:
    random = np.random.default_rng(3)
    group = random.integers(0, 2, NODES)
    chance = np.where(group[:, None] == group, WITHIN, BETWEEN) * math.log(NODES) / NODES
    ends = np.nonzero(np.triu(random.random((NODES, NODES)) < chance, 1))
    graph = defaultdict(list)
    for one, other in zip(*(end.tolist() for end in ends), strict=True):
        graph[one].append(other)
        graph[other].append(one)
    features = random.standard_normal((NODES, 4))
    features[:, 0] += np.where(group == 1, MEAN, -MEAN)
    x = scipy.sparse.csr_matrix(features.astype(np.float32))
    y = np.eye(2, dtype=np.int32)[group]
    test = random.permutation(np.arange(KNOWN, NODES))
    parts: dict[str, Any] = {"x": x[:TRAIN], "y": y[:TRAIN], "allx": x[:KNOWN], "ally": y[:KNOWN], "tx": x[test], "ty": y[test], "graph": graph}  # fmt: skip
    for part, value in parts.items():
        (folder / f"ind.planted.{part}").write_bytes(pickle.dumps(value, 2))
    (folder / "ind.planted.test.index").write_text("\n".join(map(str, test)))


class Network(torch.nn.Module):
    """Two layers, as Kipf and Welling 2017 (arXiv:1609.02907) have them; without edges, a network of features alone."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.first, self.last = GCNConv(data.num_features, 16), GCNConv(16, 2)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> Any:
        return self.last(F.dropout(self.first(x, edges).relu(), 0.5, self.training), edges)


def accuracy(data: Any, edges: torch.Tensor, seed: int) -> float:
    """On the test nodes, at the epoch that was best on the validation nodes."""
    torch.manual_seed(seed)
    network = Network(data)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=5e-4)
    best = (-1.0, 0.0)
    for _ in range(60):
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(data.x, edges)[data.train_mask], data.y[data.train_mask]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        network.eval()
        with torch.no_grad():
            right = (network(data.x, edges).argmax(1) == data.y).float()
        best = max(best, (float(right[data.val_mask].mean()), float(right[data.test_mask].mean())))
    return best[1]


def test_a_gcn_comes_to_the_optimum_of_a_planted_partition_and_features_alone_do_not(tmp_path: Path) -> None:
    assert math.sqrt(WITHIN) - math.sqrt(BETWEEN) > math.sqrt(2)
    write(tmp_path)
    data = load_planetoid(tmp_path, "planted")
    with torch.random.fork_rng():
        found = [accuracy(data, data.edge_index, seed) for seed in range(2)]
        alone = accuracy(data, data.edge_index[:, :0], 0)
    assert min(found) >= 0.99, found
    limit = 0.5 * (1 + math.erf(MEAN / math.sqrt(2)))
    spread = math.sqrt(limit * (1 - limit) / (NODES - KNOWN))
    assert alone < limit + 3 * spread
    assert min(found) > alone + 0.1
    assert limit == pytest.approx(0.69, abs=0.01)


@pytest.mark.slow
def test_the_script_for_cora_comes_to_that_optimum(tmp_path: Path) -> None:
    write(tmp_path)
    assert min(cora.accuracies(tmp_path, "planted", seeds=2)) >= 97


def test_the_script_for_cora_says_what_files_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORA", raising=False)
    with pytest.raises(SystemExit, match="export CORA="):
        cora.main(quick=True)
    monkeypatch.setenv("CORA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"lacks ind\.cora\.x, ind\.cora\.y, .*ind\.cora\.test\.index"):
        cora.main(quick=True)
