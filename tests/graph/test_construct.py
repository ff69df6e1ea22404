"""Graph construction: weights, filters, order of nodes, item-item edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_ray_ml.errors import DataError, StorageError
from sp_ray_ml.graph import CoOccurrence, Edges, Graph, GraphSettings, build_graph, canonical_order

USER_ITEM = ("user", "to", "item")
ITEM_ITEM = ("item", "with", "item")
DAY = 86_400_000_000_000

# user 0: item 1 twice and item 0; user 1: item 2; user 2 and item 3 have no events
USER = np.array([0, 0, 0, 1])
ITEM = np.array([1, 0, 1, 2])
TIME = np.array([0, 5 * DAY, 10 * DAY, 10 * DAY])
RATING = np.array([2, 3, 4, 5], dtype=np.float32)


def build(**settings: object) -> Graph:
    return build_graph(
        USER, ITEM, time=TIME, rating=RATING, num_users=3, num_items=4, settings=GraphSettings(**settings)
    )


def dense(graph: Graph) -> np.ndarray:
    return graph.edges[USER_ITEM].to_scipy(graph.num_nodes["item"]).toarray()


def test_an_edge_counts_the_events_of_its_pair() -> None:
    assert dense(build(weight="count")).tolist() == [[1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_an_event_of_one_half_life_before_the_last_counts_one_half() -> None:
    expected = [[0.5, 1 + 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert dense(build(weight="recency", half_life="5d")) == pytest.approx(np.array(expected))


def test_a_rated_edge_has_the_mean_rating() -> None:
    assert dense(build(weight="rating")).tolist() == [[3, 3, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]]


def test_an_edge_has_the_time_of_its_first_event() -> None:
    edges = build().edges[USER_ITEM]
    assert edges.time is not None
    assert edges.time.tolist() == [5 * DAY, 0, 10 * DAY]


def test_nodes_below_the_minimum_degree_lose_their_edges_and_stay() -> None:
    graph = build(min_user_degree=2)
    assert graph.num_nodes == {"user": 3, "item": 4}
    assert dense(graph).tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_degree_filters_hold_together() -> None:
    # Without item 1 (one user only), user 0 falls below two items, and then item 0 below two users.
    user, item = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 2, 2, 3])
    with pytest.raises(DataError, match="no edge is left of 6 events"):
        build_graph(
            user,
            item,
            num_users=3,
            num_items=4,
            settings=GraphSettings(min_user_degree=2, min_item_degree=2),
        )


def test_canonical_order_is_first_event_then_id_then_nodes_without_events() -> None:
    codes, time = np.array([3, 1, 2, 1]), np.array([5, 5, 1, 9])
    assert canonical_order(codes, time, 5).tolist() == [2, 1, 3, 0, 4]


@given(st.permutations(range(6)))
def test_the_graph_does_not_depend_on_the_order_of_events(order: list[int]) -> None:
    user, item = np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 0, 2, 1])
    time = np.array([1, 2, 3, 4, 5, 6]) * DAY
    settings = GraphSettings(co_occurrence=CoOccurrence(window="3d"))

    def made(index: list[int]) -> Graph:
        return build_graph(
            user[index], item[index], time=time[index], num_users=3, num_items=3, settings=settings
        )

    one, other = made(list(range(6))), made(order)
    for kind in one.edges:
        assert np.array_equal(one.edges[kind].indices, other.edges[kind].indices)
        assert np.array_equal(one.edges[kind].weight, other.edges[kind].weight)


def test_items_that_a_user_had_within_the_window_are_joined() -> None:
    user, item = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    time = np.array([0, 1, 10, 0, 2]) * DAY
    settings = GraphSettings(co_occurrence=CoOccurrence(window="2d"))
    graph = build_graph(user, item, time=time, num_users=2, num_items=3, settings=settings)
    assert graph.edges[ITEM_ITEM].to_scipy(3).toarray().tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]


def test_only_the_heaviest_item_edges_are_kept() -> None:
    user, item = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 2])
    settings = GraphSettings(co_occurrence=CoOccurrence(window="1d", top=1))
    graph = build_graph(user, item, time=np.zeros(6, np.int64), num_users=3, num_items=3, settings=settings)
    assert graph.edges[ITEM_ITEM].to_scipy(3).toarray().tolist() == [[0, 2, 0], [2, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "where"), [({"weight": "recency"}, "events.time"), ({"weight": "rating"}, "events.rating")]
)
def test_a_weight_without_its_column_is_refused(settings: dict[str, str], where: str) -> None:
    with pytest.raises(DataError, match=where):
        build_graph(USER, ITEM, num_users=3, num_items=4, settings=GraphSettings(**settings))


def test_a_saved_graph_opens_memory_mapped_and_the_same(tmp_path: Path) -> None:
    graph = build(co_occurrence={"window": "30d"}).with_features({"item": np.eye(4, dtype=np.float32)})
    graph.save(tmp_path / "graph")
    opened = Graph.load(tmp_path / "graph")
    assert opened.num_nodes == graph.num_nodes
    assert isinstance(opened.edges[USER_ITEM].indices, np.memmap)
    for kind, edges in graph.edges.items():
        for name in ("indptr", "indices", "weight", "time"):
            assert np.array_equal(getattr(opened.edges[kind], name), getattr(edges, name))
    assert np.array_equal(opened.features["item"], np.eye(4))


def test_a_truncated_graph_file_is_one_clear_error(tmp_path: Path) -> None:
    build().save(tmp_path / "graph")
    file = tmp_path / "graph" / "edges-0-indices.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"edges-0-indices\.npy: damaged"):
        Graph.load(tmp_path / "graph")


def test_a_folder_without_a_graph_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        Graph.load(tmp_path / "none")


def test_edges_beyond_the_nodes_are_refused() -> None:
    edges = Edges(np.array([0, 1]), np.array([7], np.int32), np.ones(1, np.float32))
    with pytest.raises(DataError, match="beyond the 2 there are"):
        Graph({"user": 1, "item": 2}, {USER_ITEM: edges})


def test_pyg_gets_both_directions() -> None:
    data = build().to_pyg()
    assert data[USER_ITEM].edge_index.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert data["item", "rev_to", "user"].edge_index.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert data["item", "rev_to", "user"].edge_weight.tolist() == [1, 2, 1]
