"""Neighbour sampling: exact in what it may take, and in the chances with which it does."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph import Edges, Graph, NeighborLoader, NeighborSampler, _sample_rows
from sp_ray_ml.graph._buffers import Buffers
from sp_ray_ml.graph._sample_rows import EMPTY, Numbering, Rows, Taken, hop_key, take_rows

from .brute import fits, subsets, take_all

NO_WEIGHT = np.empty(0, np.float32)
LEAST = 1e-4
"""Seeds are fixed: a p-value below this says that the chances are wrong, not that luck was bad."""


def random_graph(nodes=60, edges=400, seed=0, **attributes):
    random = np.random.default_rng(seed)
    index = torch.from_numpy(random.integers(0, nodes, (2, edges)))
    data = Data(x=torch.from_numpy(random.standard_normal((nodes, 6), np.float32)), edge_index=index)
    data.y = torch.arange(nodes)
    data.weight = torch.from_numpy(random.random(edges).astype(np.float32) + 0.1)
    data.time = torch.from_numpy(random.integers(0, 50, edges))
    return data


def random_hetero(seed=0):
    random = np.random.default_rng(seed)
    data = HeteroData()
    data["user"].x, data["item"].x = torch.randn(30, 3), torch.randn(20, 5)
    data["tag"].num_nodes = 4
    for (source, name, destination), count in {
        ("user", "buys", "item"): 150, ("item", "rev_buys", "user"): 150, ("user", "knows", "user"): 60, ("tag", "of", "item"): 0,
    }.items():  # fmt: skip
        high = [data[source].num_nodes, data[destination].num_nodes]
        index = np.stack([random.integers(0, bound, count) for bound in high])
        data[source, name, destination].edge_index = torch.from_numpy(index)
        data[source, name, destination].time = torch.from_numpy(random.integers(0, 50, count))
    return data


def sampled(sampler, seeds, time=None):
    time = None if time is None else torch.as_tensor(time)
    return sampler.sample_from_nodes(NodeSamplerInput(None, torch.as_tensor(seeds), time))


def edges_of(out, sampler):
    """(edge id, number of the source, number of the destination) of each edge."""
    ids = sampler.edge_permutation[out.edge]
    return list(zip(ids.tolist(), out.row.tolist(), out.col.tolist(), strict=True))


def same(first, second):
    """Whether two batches have the same attributes, to the bit."""
    assert type(first) is type(second)
    if isinstance(first, HeteroData):
        assert first.metadata() == second.metadata()  # types in their order
    stores = zip(first.stores, second.stores, strict=True)
    for one, other in stores:
        assert set(one.keys()) == set(other.keys())
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other[name]), name
                assert value.dtype == other[name].dtype, name
            else:
                assert value == other[name], name


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_all_neighbors_are_those_of_a_brute_force_enumeration(data):
    nodes = data.draw(st.integers(1, 12))
    node = st.integers(0, nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=40))
    seeds = data.draw(st.lists(node, max_size=4, unique=True))
    graph = Data(edge_index=torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t(), num_nodes=nodes)
    hops = data.draw(st.integers(1, 3))
    sampler = NeighborSampler(graph, [-1] * hops)
    out = sampled(sampler, torch.tensor(seeds, dtype=torch.long))
    expected, found = take_all(edges, nodes, seeds, hops)
    assert out.node.tolist() == [one for one, _ in expected]
    assert edges_of(out, sampler) == found
    times = data.draw(st.lists(st.integers(0, 5), min_size=len(edges), max_size=len(edges)))
    until = data.draw(st.lists(st.integers(0, 5), min_size=len(seeds), max_size=len(seeds)))
    graph.time = torch.tensor(times, dtype=torch.long)
    sampler = NeighborSampler(graph, [-1] * hops, time_attr="time")
    out = sampled(sampler, torch.tensor(seeds, dtype=torch.long), torch.tensor(until, dtype=torch.long))
    expected, found = take_all(edges, nodes, seeds, hops, until=until, times=times)
    assert list(zip(out.node.tolist(), out.batch.tolist(), strict=True)) == expected
    assert edges_of(out, sampler) == found


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_is_sampled_is_in_the_graph_once_and_not_of_the_future(data):
    nodes, count = data.draw(st.integers(2, 30)), data.draw(st.integers(0, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    index = random.integers(0, nodes, (2, count))
    graph = Data(edge_index=torch.from_numpy(index), num_nodes=nodes)
    graph.time = torch.from_numpy(random.integers(0, 9, count))
    graph.weight = torch.from_numpy(random.random(count).astype(np.float32) + 0.01)
    fanouts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    options = {
        "weight_attr": data.draw(st.sampled_from([None, "weight"])),
        "time_attr": data.draw(st.sampled_from([None, "time"])),
        "disjoint": data.draw(st.booleans()),
    }
    if options["time_attr"]:
        options["temporal_strategy"] = data.draw(st.sampled_from(["uniform", "last"]))
    sampler = NeighborSampler(graph, fanouts, seed=data.draw(st.integers(0, 9)), **options)
    seeds = random.integers(0, nodes, data.draw(st.integers(0, 5)))
    until = random.integers(0, 9, len(seeds)) if options["time_attr"] else None
    out = sampled(sampler, seeds, until)
    ids = sampler.edge_permutation[out.edge].numpy()
    assert (out.node[out.row].numpy() == index[0, ids]).all()
    assert (out.node[out.col].numpy() == index[1, ids]).all()
    assert out.node[: len(seeds)].tolist() == seeds.tolist()
    # The destination's number tells apart what was sampled for each, so that no edge is there twice for one.
    assert len({*zip(ids.tolist(), out.col.tolist(), strict=True)}) == len(ids)
    if out.batch is not None:
        assert (out.batch[out.row] == out.batch[out.col]).all()
        assert len({*zip(out.node.tolist(), out.batch.tolist(), strict=True)}) == len(out.node)
        if until is not None:
            assert (graph.time.numpy()[ids] <= until[out.batch[out.col].numpy()]).all()
    assert sum(out.num_sampled_nodes) == len(out.node)
    assert sum(out.num_sampled_edges) == len(ids)
    # Each node is sampled for once, the edges that there are up to what was asked for.
    at = np.cumsum([0, *out.num_sampled_nodes])
    for hop, fanout in enumerate(fanouts):
        for number in range(at[hop], at[hop + 1]):
            there = index[1] == out.node[number].item()
            if until is not None:
                there &= graph.time.numpy() <= until[out.batch[number].item()]
            assert (out.col == number).sum() == min(fanout, there.sum())


def picks(degree, fanout, *, weight=NO_WEIGHT, replace=False, draws=6000, seed=0):
    """How often each outcome was drawn, for one row of many nodes."""
    rows = Rows(np.array([0, degree]), np.arange(degree, dtype=np.int32), weight, EMPTY, None)
    into = Taken.none()
    take_rows(
        rows, np.arange(draws), rows=np.zeros(draws, np.int64), fanout=fanout,
        key=hop_key(seed, 0, ("", "", "")), into=into, replace=replace,
    )  # fmt: skip
    assert (into.edge_index[0] == into.position).all()
    return Counter(map(tuple, into.position.reshape(draws, fanout).tolist()))


@pytest.mark.parametrize(("degree", "fanout"), [(5, 2), (5, 4), (7, 3), (6, 1)])
def test_every_subset_is_equally_likely(degree, fanout):
    chances = subsets([1] * degree, fanout)
    assert fits(picks(degree, fanout), chances, 6000) > LEAST


@pytest.mark.parametrize(
    ("degree", "fanout"), [(64, 10), (65, 2), (65, 64), (300, 12), (300, 70), (300, 290)]
)
def test_every_edge_and_every_pair_of_long_rows_is_equally_likely(degree, fanout):
    draws = 4000
    seen = picks(degree, fanout, draws=draws)
    taken = np.zeros((draws, degree), np.int64)
    at = 0
    for outcome, count in seen.items():
        assert len(set(outcome)) == fanout
        assert list(outcome) == sorted(outcome)
        for _ in range(count):
            taken[at, list(outcome)] = 1
            at += 1
    share = fanout / degree
    # Counts of the edges of one row are not independent: their squared distances sum to this chi-square.
    distance = (
        ((taken.sum(0) - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (degree - 1) / degree
    )
    assert LEAST < scipy.stats.chi2.sf(distance, degree - 1) < 1 - LEAST
    both = (taken[:, 0] & taken[:, -1]).sum()
    chance = share * (fanout - 1) / (degree - 1)
    assert abs(both - draws * chance) < 5 * np.sqrt(draws * chance * (1 - chance)) + 1


def test_weighted_subsets_have_the_chances_of_draws_one_after_the_other():
    weight = np.array([1, 2, 3, 4, 10], np.float32)
    for fanout in (1, 2, 3, 4):
        chances = subsets(weight.tolist(), fanout)
        assert fits(picks(5, fanout, weight=weight, seed=fanout), chances, 6000) > LEAST


@pytest.mark.parametrize(
    "weight", [NO_WEIGHT, np.array([1, 2, 3, 4], np.float32)], ids=["uniform", "weighted"]
)
def test_draws_with_replacement_are_independent(weight):
    one = weight / weight.sum() if len(weight) else np.full(4, 0.25)
    chances = {(a, b): float(one[a] * one[b]) for a in range(4) for b in range(4)}
    assert fits(picks(4, 2, weight=weight, replace=True), chances, 6000) > LEAST


def test_sampling_by_time_is_uniform_among_the_edges_up_to_the_seeds_time_or_takes_the_last():
    data = Data(edge_index=torch.tensor([[1, 2, 3, 4, 5, 6], [0] * 6]), num_nodes=7)
    data.time = torch.tensor([5, 1, 4, 2, 3, 9])
    seeds, until = torch.zeros(6000, dtype=torch.long), torch.full((6000,), 4)
    out = sampled(NeighborSampler(data, [2], time_attr="time"), seeds, until)
    pairs = Counter(tuple(sorted(pair)) for pair in out.node[out.row].reshape(-1, 2).tolist())
    chances = {tuple(sorted((2, 4, 5, 3)[one] for one in key)): value for key, value in subsets([1] * 4, 2).items()}  # fmt: skip
    assert fits(pairs, chances, 6000) > LEAST
    out = sampled(
        NeighborSampler(data, [2], time_attr="time", temporal_strategy="last"), seeds[:3], until[:3]
    )
    assert [sorted(pair) for pair in out.node[out.row].reshape(-1, 2).tolist()] == [[3, 5]] * 3


def test_times_of_nodes_are_those_of_the_edges_that_leave_them():
    data = Data(edge_index=torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4, time=torch.tensor([5, 4, 5, 6]))
    out = sampled(NeighborSampler(data, [-1], time_attr="time"), [0])  # the seed's own time is 5
    assert sorted(out.node.tolist()) == [0, 1, 2]


def test_seeds_of_their_own_trees_draw_for_themselves_and_others_share():
    data = Data(edge_index=torch.tensor([list(range(1, 41)), [0] * 40]), num_nodes=41)
    apart = sampled(NeighborSampler(data, [3], disjoint=True), [0, 0])
    together = sampled(NeighborSampler(data, [3]), [0, 0])
    first, second = apart.node[apart.row].reshape(2, 3).tolist()
    assert first != second
    first, second = together.node[together.row].reshape(2, 3).tolist()
    assert first == second


def test_types_are_sampled_by_their_own_numbers_of_neighbors():
    data = random_hetero()
    numbers = {kind: [2, 1] if kind[1] == "buys" else [1, 0] for kind in data.edge_types}
    sampler = NeighborSampler(data, numbers)
    out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(8), None, "item"))
    assert out.node["item"][:8].tolist() == list(range(8))
    assert all(len(out.node[name].unique()) == len(out.node[name]) for name in data.node_types)
    for kind in data.edge_types:
        index = data[kind].edge_index[:, sampler.edge_permutation[kind][out.edge[kind]]]
        assert torch.equal(out.node[kind[0]][out.row[kind]], index[0])
        assert torch.equal(out.node[kind[2]][out.col[kind]], index[1])
        first = out.num_sampled_edges[kind][0]
        assert torch.bincount(out.col[kind][:first], minlength=1).max() <= numbers[kind][0]
    assert len(out.num_sampled_nodes["user"]) == 3
    assert out.num_sampled_edges["user", "buys", "item"][0] == 16
    assert out.num_sampled_edges["item", "rev_buys", "user"][0] == 0  # no user was there yet
    assert out.num_sampled_edges["user", "knows", "user"][1] == 0  # none were asked for


def test_a_subgraph_is_in_both_directions_or_has_all_edges_of_its_nodes_where_asked_for():
    data = random_graph(nodes=30, edges=90)
    walked = sampled(NeighborSampler(data, [2, 2]), [0, 1, 2])
    both = sampled(NeighborSampler(data, [2, 2], subgraph_type="bidirectional"), [0, 1, 2])
    one = {*zip(walked.row.tolist(), walked.col.tolist(), strict=True)}
    assert {*zip(both.row.tolist(), both.col.tolist(), strict=True)} == one | {(b, a) for a, b in one}
    for disjoint in (False, True):
        sampler = NeighborSampler(data, [2, 2], subgraph_type="induced", disjoint=disjoint)
        every = sampled(sampler, [0, 1, 2])
        trees = every.batch.tolist() if disjoint else [0] * len(every.node)
        met = list(zip(every.node.tolist(), trees, strict=True))
        expected = sorted(
            (e, met.index((source, tree)), met.index((destination, tree)))
            for e, (source, destination) in enumerate(data.edge_index.t().tolist())
            for tree in set(trees)
            if (source, tree) in met and (destination, tree) in met
        )
        assert sorted(edges_of(every, sampler)) == expected


def test_a_sample_is_the_same_in_one_thread_and_in_two_and_after_pickling():
    data = random_graph(400, 6000)
    sampler = NeighborSampler(data, [5, 3], weight_attr="weight", disjoint=True, seed=3)
    batches = [np.arange(start, start + 40) for start in range(0, 400, 40)]
    alone = [sampler.sample({"": batch}) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        threads = list(pool.map(lambda batch: sampler.sample({"": batch}), batches[::-1]))[::-1]
    copied = [pickle.loads(pickle.dumps(sampler)).sample({"": batch}) for batch in batches]
    kind = ("", "", "")
    for other in (threads, copied):
        for one, two in zip(alone, other, strict=True):
            assert np.array_equal(one.nodes[""], two.nodes[""])
            assert np.array_equal(one.edges[kind].position, two.edges[kind].position)
            assert np.array_equal(one.edges[kind].edge_index, two.edges[kind].edge_index)
    sampler.epoch = 1
    assert not np.array_equal(sampler.sample({"": batches[0]}).edges[kind].position, alone[0].edges[kind].position)  # fmt: skip


def test_a_row_is_sampled_alike_by_whoever_holds_it():
    data = random_graph(40, 900)
    rows = NeighborSampler(data, [4]).inputs.rows["", "", ""]
    nodes = np.array([7, 31, 2, 39, 11])
    key = hop_key(5, 1, ("a", "to", "b"))
    whole = Taken.none()
    take_rows(rows, nodes, fanout=4, key=key, into=whole)
    for part in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
        lengths = np.diff(rows.indptr)[part]
        held = np.concatenate([np.arange(rows.indptr[row], rows.indptr[row + 1]) for row in part])
        mine = Rows(
            np.concatenate([[0], np.cumsum(lengths)]), rows.indices[held], NO_WEIGHT, EMPTY, rows.edge[held]
        )
        asked = nodes[np.isin(nodes, part)]
        into = Taken.none()
        take_rows(mine, asked, rows=np.searchsorted(part, asked), fanout=4, key=key, into=into)
        expected = np.isin(nodes[whole.edge_index[1]], part)
        assert np.array_equal(mine.edge[into.position], rows.edge[whole.position][expected])
        assert np.array_equal(into.edge_index[0], whole.edge_index[0][expected])


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_node_ids_beyond_int32_are_sampled(index):
    # The table would have an entry a node: beyond a size, a hash table of the batch's nodes is used.
    far = 2**33 if index is np.int64 else 2**31 - 8
    rows = Rows(np.array([0, 3]), np.arange(far, far + 3).astype(index), NO_WEIGHT, EMPTY, None)
    into = Taken.none()
    take_rows(rows, np.array([far + 1]), rows=np.array([0]), fanout=-1, key=1, into=into)
    numbering = Numbering(far + 10, disjoint=False)
    numbering.begin(np.array([far + 1]), EMPTY)
    numbering.add(into.edge_index[0], 0, into.edge_index[1], EMPTY)
    assert into.edge_index[0].tolist() == [1, 0, 2]
    assert numbering.finish()[0].tolist() == [far + 1, far, far + 2]


def test_numbers_stay_right_when_their_base_begins_again(monkeypatch):
    monkeypatch.setattr(_sample_rows, "_LARGEST", 300)
    data = random_graph(50, 500)
    for disjoint in (False, True):
        small = NeighborSampler(data, [3, 3], disjoint=disjoint)
        fresh = NeighborSampler(data, [3, 3], disjoint=disjoint)
        for start in range(40):
            seeds = np.array([start, start + 1, start])
            one = small.sample({"": seeds})
            fresh._kept = type(fresh._kept)()
            two = fresh.sample({"": seeds})
            assert np.array_equal(one.nodes[""], two.nodes[""])
            assert np.array_equal(one.edges["", "", ""].edge_index, two.edges["", "", ""].edge_index)


def pairs_of(out, kind=None):
    index, label, _ = out.metadata[1:]
    return out.node[index[0]], out.node[index[1]], label


@pytest.mark.parametrize("disjoint", [False, True])
def test_binary_negatives_have_label_0_and_are_no_edges_where_asked_for(disjoint):
    data = random_graph(12, 90)
    sampler = NeighborSampler(data, [2], strict_negatives=True, disjoint=disjoint)
    links = data.edge_index[:, :20]
    out = sampler.sample_from_edges(
        EdgeSamplerInput(torch.arange(20), *links), NegativeSampling("binary", 1.5)
    )
    source, destination, label = pairs_of(out)
    assert label.tolist() == [1.0] * 20 + [0.0] * 30
    assert torch.equal(torch.stack([source, destination])[:, :20], links)
    edges = {*map(tuple, data.edge_index.t().tolist())}
    assert not edges & {*zip(source[20:].tolist(), destination[20:].tolist(), strict=True)}
    if disjoint:  # an end's tree is named by its link
        assert out.batch[out.metadata[1][0]].tolist() == [*range(20), *(i % 20 for i in range(30))]


def test_strict_negatives_are_uniform_among_the_pairs_that_are_no_edges():
    data = Data(edge_index=torch.tensor([[0, 0, 1], [1, 2, 2]]), num_nodes=3)
    sampler = NeighborSampler(data, [1], strict_negatives=True)
    link = data.edge_index[:, :1].repeat(1, 3000)
    out = sampler.sample_from_edges(EdgeSamplerInput(None, *link), NegativeSampling("binary"))
    source, destination, _ = pairs_of(out)
    seen = Counter(zip(source[3000:].tolist(), destination[3000:].tolist(), strict=True))
    left = [(a, b) for a in range(3) for b in range(3) if (a, b) not in {(0, 1), (0, 2), (1, 2)}]
    assert fits(seen, dict.fromkeys(left, 1 / 6), 3000) > LEAST


@pytest.mark.parametrize("disjoint", [False, True])
def test_triplet_negatives_are_destinations_that_their_source_has_no_edge_to(disjoint):
    data = random_hetero()
    kind = ("user", "buys", "item")
    sampler = NeighborSampler(data, [2, 1], strict_negatives=True, disjoint=disjoint)
    links = data[kind].edge_index[:, :15]
    weight = torch.ones(20)
    weight[3] = 0
    out = sampler.sample_from_edges(
        EdgeSamplerInput(None, *links, input_type=kind), NegativeSampling("triplet", 4, dst_weight=weight)
    )
    _, source, positive, negative, _ = out.metadata
    assert torch.equal(out.node["user"][source], links[0])
    assert torch.equal(out.node["item"][positive], links[1])
    assert negative.shape == (15, 4)
    edges = {*map(tuple, data[kind].edge_index.t().tolist())}
    drawn = out.node["item"][negative]
    assert not edges & {(a, b) for a, row in zip(links[0].tolist(), drawn.tolist(), strict=True) for b in row}
    assert (drawn != 3).all()


def test_negatives_of_links_with_times_are_nodes_of_before():
    data = random_graph(40, 200)
    data.time = torch.arange(40)
    sampler = NeighborSampler(data, [2], time_attr="time")
    links = EdgeSamplerInput(None, torch.zeros(10).long(), torch.ones(10).long(), time=torch.arange(5, 15))
    out = sampler.sample_from_edges(links, NegativeSampling("triplet", 3))
    drawn = out.node[out.metadata[3]]
    assert (drawn <= torch.arange(5, 15)[:, None]).all()
    assert (data.time[out.node[out.row]] <= torch.arange(5, 15)[out.batch[out.col]]).all()


def test_pygs_own_loaders_take_the_sampler_and_ours_has_the_same_batches():
    data = random_graph(100, 900)
    options = {"weight_attr": "weight", "subgraph_type": "directional", "seed": 2}
    stock = NodeLoader(data, NeighborSampler(data, [4, 3], **options), torch.arange(3, 80), batch_size=20)
    ours = NeighborLoader(data, [4, 3], torch.arange(3, 80), batch_size=20, threads=2, **options)
    assert len(stock) == len(ours) == 4
    for one, two in zip(stock, ours, strict=True):
        one.validate()
        same(one, two)
    both = {"subgraph_type": "bidirectional"}
    stock = NodeLoader(data, NeighborSampler(data, [4, 3], **both), torch.arange(20), batch_size=20)
    for one, two in zip(stock, NeighborLoader(data, [4, 3], torch.arange(20), **both), strict=True):
        same(one, two)
    for start in LinkLoader(data, NeighborSampler(data, [2]), data.edge_index[:, :30], batch_size=10, neg_sampling="binary"):  # fmt: skip
        assert start.edge_label.tolist() == [1.0] * 10 + [0.0] * 10


def test_batches_of_typed_graphs_by_time_are_those_of_pygs_loader():
    data = random_hetero()
    times = torch.arange(30) + 10
    numbers = {kind: [3, 2] for kind in data.edge_types}
    stock = NodeLoader(
        data, NeighborSampler(data, numbers, time_attr="time"), "user", input_time=times, batch_size=8
    )
    ours = NeighborLoader(data, numbers, "user", input_time=times, batch_size=8, time_attr="time")
    for one, two in zip(stock, ours, strict=True):
        same(one, two)


def test_a_graph_is_sampled_as_its_pyg_form_is():
    random = np.random.default_rng(0)
    matrix = np.sort(np.unique(random.integers(0, 20 * 15, 120)))
    row, column = matrix // 15, (matrix % 15).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=20))])
    edges = Edges(
        indptr, column, (random.random(len(row)) + 0.1).astype(np.float32), random.integers(0, 99, len(row))
    )
    features = {"item": random.standard_normal((15, 3), dtype=np.float32)}
    graph = Graph({"user": 20, "item": 15}, {("user", "to", "item"): edges}, features)
    for options in ({}, {"weight_attr": "weight"}):
        ours = NeighborLoader(graph, [3, 3], "item", batch_size=5, **options)
        named = {"weight_attr": "edge_weight"} if options else {}
        pyg = NeighborLoader(graph.to_pyg(), [3, 3], "item", batch_size=5, **named)
        for one, two in zip(ours, pyg, strict=True):
            same(one, two)
    by_time = NeighborSampler(graph, [3, 3], time_attr="time")
    out = by_time.sample({"item": np.arange(15)}, np.full(15, 40))
    kind = ("user", "to", "item")
    assert len(out.edges[kind].position) > 0
    assert by_time.inputs.rows[kind].time[out.edges[kind].position].max() <= 40


def test_an_epoch_is_shuffled_by_its_number_and_can_be_left_early():
    data = random_graph(100, 900)
    loader = NeighborLoader(data, [3], batch_size=16, shuffle=True, threads=2, seed=1, drop_last=True)
    first, second = ([batch.input_id for batch in loader] for _ in range(2))
    assert len(first) == 6
    assert not torch.equal(first[0], second[0])
    loader.epoch = 0
    for batch, seen in zip(loader, first, strict=True):
        assert torch.equal(batch.input_id, seen)
        break
    again = iter(NeighborLoader(data, [3], batch_size=16, shuffle=True, seed=1, drop_last=True))
    assert torch.equal(next(again).input_id, first[0])
    again.close()


def test_features_of_all_kinds_are_gathered():
    data = random_graph(30, 200)
    data.half, data.byte = torch.randn(30, 3).bfloat16(), torch.randint(0, 9, (30, 3), dtype=torch.uint8)
    data.flag, data.cube, data.wide = torch.rand(30) > 0.5, torch.randn(30, 2, 3), torch.randn(3, 30).t()
    for batch in NeighborLoader(data, [4], batch_size=7):
        for name in ("x", "y", "half", "byte", "flag", "cube", "wide"):
            assert torch.equal(batch[name], data[name][batch.n_id]), name
        assert torch.equal(batch.weight, data.weight[batch.e_id])


def test_memory_of_a_batch_is_used_again_only_once_nobody_holds_it():
    buffers = Buffers(4)
    first = buffers.empty((300_000, 2), torch.float32)
    place, part = first.data_ptr(), first[5:7]
    part.fill_(3)
    del first
    second = buffers.empty((290_000, 2), torch.float32)
    assert second.data_ptr() != place  # a part of the first is still held
    second.zero_()
    assert (part == 3).all()
    del part
    assert buffers.empty((300_000, 2), torch.float32).data_ptr() == place


def test_a_graph_on_disk_is_sampled_where_it_is(tmp_path):
    random = np.random.default_rng(0)
    column = np.sort(np.argsort(random.random((30, 12)), axis=1)[:, :4]).astype(np.int32).ravel()
    edges = Edges(np.arange(0, 121, 4), column, random.random(120).astype(np.float32) + 0.1, np.arange(120))
    graph = Graph({"a": 30, "b": 12}, {("a", "to", "b"): edges}, {"b": random.random((12, 4), np.float32)})
    graph.save(tmp_path / "graph")
    options = {"weight_attr": "weight", "batch_size": 6}
    loaders = [NeighborLoader(one, [3, 2], "b", **options) for one in (graph, Graph.load(tmp_path / "graph"))]
    for one, two in zip(*loaders, strict=True):
        same(one, two)


@pytest.mark.slow
def test_the_second_process_reads_the_compiled_code_from_disk(tmp_path):
    code = """
import sys
from numba.core import event
sys.path.insert(0, sys.argv[1])
from tests.graph.test_sampling import LinkLoader, NegativeSampling, NeighborLoader, NeighborSampler, random_graph, random_hetero

with event.install_recorder("numba:compile") as compiled:
    data, hetero = random_graph(), random_hetero()
    for options in ({}, {"weight_attr": "weight"}, {"time_attr": "time", "input_time": data.y}, {"subgraph_type": "induced"}):
        list(NeighborLoader(data, [3, -1], batch_size=20, **options))
    list(NeighborLoader(hetero, [3, 2], "item", batch_size=20))
    links, negatives = data.edge_index[:, :20], NegativeSampling("triplet", 2, dst_weight=data.y + 1.0)
    list(LinkLoader(data, NeighborSampler(data, [2]), links, neg_sampling=negatives, batch_size=10))
names = [one.data["dispatcher"].py_func.__name__ for _, one in compiled.buffer if one.is_start]
print(*sorted(set(names)))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    names = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        names.append(done.stdout.split())
    assert {"count_rows", "pick_rows", "number", "copy_rows", "by_destination", "draw_weighted"} <= set(
        names[0]
    )
    assert names[1] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="no GPU"):
        NeighborLoader(random_graph(), [1], device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu():
    data = random_graph(200, 3000)
    for one, two in zip(
        *(NeighborLoader(data, [5, 3], batch_size=50, device=to) for to in (None, "cuda")), strict=True
    ):
        assert two.x.is_cuda
        same(one, two.cpu())


@pytest.mark.slow
def test_workers_of_pygs_loader_sample_what_the_process_itself_does():
    data = random_graph(200, 3000)
    sampler = NeighborSampler(data, [5, 5], seed=4)
    batches = [list(NodeLoader(data, sampler, batch_size=50, num_workers=workers)) for workers in (0, 2)]
    for one, two in zip(*batches, strict=True):
        same(one, two)


def test_no_seeds_and_lone_nodes_and_no_edges_have_samples_of_nothing():
    data = Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=3)
    for options in ({}, {"disjoint": True}, {"subgraph_type": "induced"}, {"subgraph_type": "bidirectional"}):
        sampler = NeighborSampler(data, [2, -1], **options)
        out = sampled(sampler, torch.empty(0, dtype=torch.long))
        assert (len(out.node), len(out.row), len(out.edge)) == (0, 0, 0)
        assert sampled(sampler, [2, 0]).node.tolist() == [2, 0]
    assert list(NeighborLoader(data, [2], torch.empty(0, dtype=torch.long))) == []
    out = NeighborSampler(data, [1]).sample_from_edges(EdgeSamplerInput(None, *torch.empty(2, 0).long()), NegativeSampling("triplet"))  # fmt: skip
    assert len(out.node) == 0


def graph_with(**attributes):
    data = Data(edge_index=torch.tensor([[0, 1, 2], [1, 1, 0]]), num_nodes=3)
    for name, value in attributes.items():
        data[name] = torch.tensor(value)
    return data


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: NeighborSampler(graph_with(), []), ConfigError, "1 or more"),
        (lambda: NeighborSampler(graph_with(), [2, -2]), ConfigError, "-2 is no number of neighbors"),
        (lambda: NeighborSampler(random_hetero(), {("user", "sees", "item"): [1]}), ConfigError, "no edge type"),
        (lambda: NeighborSampler(random_hetero(), {("user", "buys", "item"): [1]}), ConfigError, "none for the edge type"),
        (lambda: NeighborSampler(graph_with(), [1], subgraph_type="half"), ConfigError, "is none of"),
        (lambda: NeighborSampler(graph_with(), [1], temporal_strategy="last"), ConfigError, "by time"),
        (lambda: NeighborSampler(graph_with(time=[1, 2, 3]), [1], replace=True, temporal_strategy="last", time_attr="time"), ConfigError, "not drawn"),
        (lambda: NeighborSampler(Data(x=torch.ones(2, 1)), [1]), DataError, "no edge_index"),
        (lambda: NeighborSampler(graph_with(), [1], time_attr="time"), DataError, "neither nodes nor edges"),
        (lambda: NeighborSampler(graph_with(time=[0.5, 1, 2]), [1], time_attr="time"), DataError, "integers"),
        (lambda: NeighborSampler(graph_with(), [1], weight_attr="w"), DataError, "no weights 'w'"),
        (lambda: NeighborSampler(graph_with(w=[1.0, -1, 1]), [1], weight_attr="w"), DataError, "weight is -1.0"),
        (lambda: NeighborSampler(graph_with(w=[1.0, float("nan"), 1]), [1], weight_attr="w"), DataError, "weight is nan"),
        (lambda: NeighborSampler(graph_with(w=[0.0, 0, 1]), [1], weight_attr="w"), DataError, "all 2 edges that lead to node 1"),
        (lambda: sampled(NeighborSampler(graph_with(), [1]), [3]), DataError, "seed 3 is no node"),
        (lambda: sampled(NeighborSampler(graph_with(), [1]), [-1]), DataError, "seed -1 is no node"),
        (lambda: NeighborSampler(random_hetero(), [1]).sample({"shop": np.array([0])}), DataError, "no such node type"),
        (lambda: sampled(NeighborSampler(random_graph(), [1], time_attr="time"), [1]), DataError, "seeds have none"),
        (lambda: sampled(NeighborSampler(random_graph(), [1]), [1], [1]), DataError, "not by time"),
        (lambda: NeighborSampler(Data(edge_index=torch.tensor([[5], [0]]), num_nodes=2), [1]), DataError, "outside"),
        (lambda: NeighborLoader(random_hetero(), [1], "shop"), ConfigError, "no node type 'shop'"),
        (lambda: NeighborLoader(random_graph(), [1], batch_size=0), ConfigError, "0 is less than 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_sentence(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_node_that_is_linked_to_all_others_has_no_negative():
    data = Data(edge_index=torch.tensor([[0, 0, 0], [0, 1, 2]]), num_nodes=3)
    sampler = NeighborSampler(data, [1], strict_negatives=True)
    with pytest.raises(DataError, match="no negative was found for node 0"):
        sampler.sample_from_edges(EdgeSamplerInput(None, *data.edge_index), NegativeSampling("triplet"))


def test_edges_of_weight_zero_are_never_taken():
    data = graph_with(w=[0.0, 1, 1])
    out = sampled(NeighborSampler(data, [-1], weight_attr="w"), [1, 0])
    assert sorted(zip(out.node[out.row].tolist(), out.node[out.col].tolist(), strict=True)) == [
        (1, 1),
        (2, 0),
    ]
