"""The networks: layers of PyG's over one type of nodes or several, the same of a batch as of the whole graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCNConv

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph import GAT, GCN, HGT, RGCN, GraphSAGE, LightGCN, NeighborLoader

EVERY = [
    GraphSAGE(dim=8),
    GAT(dim=8),
    GAT(dim=8, attention="gat", layers=3),
    RGCN(dim=8),
    RGCN(dim=8, bases=2, ids=True),
    HGT(dim=8, heads=2),
    GCN(dim=8),
]


def edges(count: int, sources: int, destinations: int) -> torch.Tensor:
    return torch.stack([torch.randint(0, sources, (count,)), torch.randint(0, destinations, (count,))])


@pytest.fixture(params=[0, 1], ids=["one type", "several types"])
def graph(request: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if not request.param:
            return Data(x=torch.randn(50, 5), edge_index=edges(200, 50, 50))
        data = HeteroData()
        data["a.b"].x, data["b"].num_nodes, data["only source"].x = torch.randn(30, 4), 20, torch.randn(9, 3)
        data["a.b", "to", "b"].edge_index = edges(80, 30, 20)
        data["b", "rev", "a.b"].edge_index = data["a.b", "to", "b"].edge_index.flip(0)
        data["only source", "x", "b"].edge_index = edges(30, 9, 20)
        data["b", "self", "b"].edge_index = edges(40, 20, 20)
        data["a.b", "none", "a.b"].edge_index = edges(0, 30, 30)
        return data


@pytest.mark.parametrize("settings", EVERY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("out", [None, 3])
def test_a_batch_with_all_neighbors_has_the_vectors_of_the_whole_graph(
    graph: Any, settings: Any, out: int | None
) -> None:
    if isinstance(settings, GCN) and isinstance(graph, HeteroData):
        with pytest.raises(
            ConfigError, match=r"train\.model: GCN is for nodes and edges of one type each.*rgcn"
        ):
            settings.build(graph, out)
        return
    name = "b" if isinstance(graph, HeteroData) else ""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = settings.build(graph, out).eval()
        whole = model(graph)[name]
        assert whole.shape[1] == (out or 8)
        # Without an edge the vectors are others: the layers do propagate.
        alone = graph.clone()
        for store in alone.edge_stores:
            store.edge_index = store.edge_index[:, :0]
        assert not torch.allclose(model(alone)[name], whole, atol=1e-3)
        for batch in NeighborLoader(graph, [-1] * settings.layers, name or None, batch_size=7):
            store = batch[name] if name else batch
            found = model(batch)[name]
            assert len(found) == store.batch_size
            assert torch.allclose(found, whole[store.n_id[: store.batch_size]], atol=1e-5)


def test_gcn_is_that_of_pyg_and_a_sample_has_the_mean_of_the_whole_sum() -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        both = edges(150, 40, 40)
        both = torch.unique(torch.cat([both, both.flip(0)], 1)[:, :], dim=1)
        data = Data(x=torch.randn(40, 5), edge_index=both[:, both[0] != both[1]])
        model: Any = GCN(layers=1, dim=4).build(data).eval()
        peer = GCNConv(5, 4)
        peer.load_state_dict(model.convolutions[0].state_dict())
        assert torch.allclose(model(data)[""], peer(data.x, data.edge_index), atol=1e-5)
        draws = torch.zeros(40, 4)
        count = 150
        for seed in range(count):
            [batch] = NeighborLoader(data, [2], batch_size=40, seed=seed)
            draws += model(batch)[""] / count
        far = (draws - model(data)[""]).abs().max()
        assert far < 0.25
        assert (model(batch)[""] - model(data)[""]).abs().max() > 2 * far


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAT(dim=10, heads=4), "heads: must divide dim, and 4 does not divide 10"),
        (lambda: LightGCN().build(Data(), 3), "LightGCN recommends, it has no classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
