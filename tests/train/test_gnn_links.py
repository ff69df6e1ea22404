"""Links: those of a batch are hidden from it, and what is learned finds links that are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph import GCN, HGT, RGCN, Edges, Graph, GraphSAGE, NeighborLoader
from sp_ray_ml.train import LinkPrediction, PyGTrainer
from sp_ray_ml.train._gnn_links import hide

from .planted import planted

KIND, REVERSE = ("user", "to", "item"), ("item", "rev_to", "user")


def trainer(**settings: Any) -> PyGTrainer:
    return PyGTrainer(
        **{
            "task": LinkPrediction(),
            "model": GraphSAGE(dim=16),
            "epochs": 6,
            "batch_size": 256,
            "learning_rate": 0.01,
            **settings,
        }
    )


def one_type() -> tuple[Data, np.ndarray]:
    """The planted partition without a tenth of its edges, and these."""
    whole, random = planted(), np.random.default_rng(0)
    edges = whole.edge_index.numpy()
    edges = edges[:, edges[0] < edges[1]]
    held_out = random.random(edges.shape[1]) < 0.1
    left = edges[:, ~held_out]
    both = np.concatenate([left, left[::-1]], 1)
    return Data(x=whole.x, edge_index=torch.from_numpy(both)), edges[:, held_out]


def two_types() -> tuple[HeteroData, np.ndarray]:
    """Users and items of four groups; three of four links are within one."""
    random = np.random.default_rng(0)
    user, item = random.integers(0, 200, 3_000), random.integers(0, 100, 3_000)
    within = random.random(3_000) < 0.75
    item = np.where(within, item // 4 * 4 + user % 4, item)
    pairs = np.unique(np.stack([user, item]), axis=1)
    held_out = random.random(pairs.shape[1]) < 0.1
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = 200, 100
    data[KIND].edge_index = torch.from_numpy(pairs[:, ~held_out])
    data[REVERSE].edge_index = data[KIND].edge_index.flip(0)
    return data, pairs[:, held_out]


def as_graph(data: HeteroData) -> Graph:
    """The same as a `Graph`, which has the reverse edges by itself."""
    user, item = data[KIND].edge_index.numpy()
    order = np.lexsort((item, user))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=200))])
    return Graph({"user": 200, "item": 100}, {KIND: Edges(indptr, item[order].astype(np.int32))})


def test_links_of_a_graph_of_ours_need_no_name_where_there_is_one_type() -> None:
    data, held_out = two_types()
    result = trainer(model=GraphSAGE(dim=16), neighbors=(8, 8), epochs=8, learning_rate=0.03).fit(
        as_graph(data), held_out
    )
    assert result.metrics["auc"] > 0.6


# Within a group is 10/11 of the links, and half of random pairs: who knows the groups has an AUC of 0.5 + 0.41 / 2.
@pytest.mark.parametrize(
    ("loss", "neighbors"),
    [
        ("binary", (4, 4)),
        pytest.param("binary", None, marks=pytest.mark.slow),
        pytest.param("triplet", (4, 4), marks=pytest.mark.slow),
        pytest.param("triplet", None, marks=pytest.mark.slow),
    ],
)
def test_held_out_links_of_a_planted_partition_are_found(loss: Any, neighbors: Any) -> None:
    data, held_out = one_type()
    result = trainer(task=LinkPrediction(loss=loss), neighbors=neighbors).fit(data, held_out)
    assert 0.64 < result.metrics["auc"] < 0.75


@pytest.mark.parametrize(
    "model",
    [RGCN(dim=16), pytest.param(HGT(dim=16, init=1.0), marks=pytest.mark.slow)],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("neighbors", [pytest.param(None, marks=pytest.mark.slow), (8, 8)])
def test_held_out_links_between_two_types_are_found(model: Any, neighbors: Any) -> None:
    data, held_out = two_types()
    task = LinkPrediction(edge_type=KIND, negatives=3)
    result = trainer(task=task, model=model, neighbors=neighbors, epochs=12, learning_rate=0.03).fit(
        data, held_out
    )
    # Of links 0.81 are within a group, of random pairs 0.25: at best 0.78; chance is 0.5 ± 0.02.
    assert result.metrics["auc"] > 0.6


@pytest.mark.parametrize("make", [one_type, two_types])
@pytest.mark.parametrize("neighbors", [None, (3, 3)])
def test_no_link_of_a_batch_is_among_its_edges_and_all_others_are(
    make: Any, neighbors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sp_ray_ml.train import _gnn_links

    data, held_out = make()
    kind = None if isinstance(data, Data) else KIND
    seen: list[tuple[Any, Any, np.ndarray]] = []

    def spied(before: Any, one: Any, reverse: Any, links: np.ndarray, sizes: Any) -> Any:
        after = hide(before, one, reverse, links, sizes)
        seen.append((before, after, links))
        return after

    monkeypatch.setattr(_gnn_links, "hide", spied)
    trainer(task=LinkPrediction(edge_type=kind), neighbors=neighbors, epochs=1).fit(data, held_out)
    lost = 0
    for before, after, links in seen:
        hidden = set(map(tuple, links.T.tolist()))
        for store in after.edge_stores:
            name = None if kind is None else store._key
            edges, every = edges_of(after, name), edges_of(before, name)
            turned = name == REVERSE
            # By brute force: what is gone is exactly what is to be predicted, in both directions within one type.
            kept = [
                (a, b)
                for a, b in every
                if ((b, a) if turned else (a, b)) not in hidden and (kind is not None or (b, a) not in hidden)
            ]
            assert edges == kept
            lost += len(every) - len(edges)
            for attribute in ("e_id",):
                if attribute in store:
                    assert len(store[attribute]) == len(edges)
    assert lost > 100


def edges_of(data: Any, kind: Any) -> list[tuple[int, int]]:
    """As pairs of the graph's own nodes."""
    index = data.edge_index if kind is None else data[kind].edge_index
    ends = []
    for i, part in enumerate(index):
        store = data if kind is None else data[kind[0 if i == 0 else 2]]
        ends.append((store.n_id[part] if "n_id" in store else part).tolist())
    return list(zip(*ends, strict=True))


def test_hiding_leaves_the_data_that_it_was_given_as_they_are() -> None:
    data, _ = one_type()
    before = data.edge_index.clone()
    [batch] = NeighborLoader(data, [3], torch.arange(4), batch_size=4)
    for one in (data, batch):
        links = np.stack([one.n_id[end].numpy() if "n_id" in one else end.numpy() for end in one.edge_index])
        assert hide(one, ("",) * 3, None, links, {"": 500}).num_edges == 0
    assert torch.equal(data.edge_index, before)
    assert batch.num_edges > 0


def test_what_is_hidden_matters_a_model_that_sees_its_links_only_copies_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sp_ray_ml.train import _gnn_links

    data, held_out = two_types()
    chosen = trainer(task=LinkPrediction(edge_type=KIND), epochs=5, learning_rate=0.03, early_stopping=None)
    honest = chosen.fit(data, held_out).history[-1]["loss"]
    monkeypatch.setattr(_gnn_links, "hide", lambda data, *_: data)
    assert chosen.fit(data, held_out).history[-1]["loss"] < honest


def in_the_graph() -> Any:
    data, _ = one_type()
    return data, data.edge_index[:, :5]


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (in_the_graph, {}, DataError, "validation: 5 of 5 links to validate on are edges of the graph"),
        (lambda: (one_type()[0], np.zeros((3, 2), np.int64)), {}, DataError, r"links are whole numbers \[2, links\]"),
        (lambda: (one_type()[0], np.array([[0], [500]])), {}, DataError, "validation: node 500 is none; there are 500"),
        (two_types, {}, ConfigError, "several edge types.*Name one of user-to-item, item-rev_to-user"),
        (two_types, {"edge_type": ("user", "too", "item")}, ConfigError, "no edge type user-too-item.*user-to-item"),
        (two_types, {"edge_type": KIND, "reverse": KIND}, ConfigError, "user-to-item is no edge type from item to user"),
        (lambda: (Data(num_nodes=3, edge_index=torch.empty(2, 0, dtype=torch.int64)), None), {}, DataError, "no link to learn from"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(make: Any, settings: Any, error: Any, message: str) -> None:
    data, held_out = make()
    with pytest.raises(error, match=message):
        trainer(task=LinkPrediction(**settings)).fit(data, held_out)


def test_labels_of_links_are_refused() -> None:
    data, _ = one_type()
    with pytest.raises(ConfigError, match="links have no labels"):
        trainer(model=GCN()).fit(data, labels=np.zeros(500))
