"""Sharded graphs: the same samples and batches as of the whole graph, to the bit, whoever has which node."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

from sp_ray_ml.errors import ClusterError, ClusterTimeoutError, ConfigError, DataError, ResourceError
from sp_ray_ml.graph import Edges, Graph, NeighborLoader, NeighborSampler, ShardedGraph
from sp_ray_ml.graph._partition import write_parts
from sp_ray_ml.graph._placement import Placement, edge_cut
from sp_ray_ml.graph._sample_inputs import read_inputs
from sp_ray_ml.graph._shard_links import Link, RayShard
from sp_ray_ml.graph._shard_part import Part, ReadNodes
from sp_ray_ml.graph.sharded import _parts

from .test_sampling import random_graph, random_hetero, same


class InProcess:
    """A shard without an actor: all but Ray is what it is with one."""

    def __init__(self, folder, shard):
        self.part = Part(str(folder), shard)

    def send(self, requests):
        return requests

    def receive(self, call, requests):
        assert call is requests
        return self.part.answer(requests)


def sharded(data, folder, shards=3, partition="hash", cache=0):
    write_parts(data, folder, shards, partition, {})
    graph = object.__new__(ShardedGraph)
    graph.folder, graph._shards = folder, []
    graph._open([InProcess(folder, shard) for shard in range(shards)], cache)
    return graph


def our_graph(seed=0):
    random = np.random.default_rng(seed)

    def edges(sources, destinations, count):
        row = np.sort(random.integers(0, sources, count))
        indptr = np.searchsorted(row, np.arange(sources + 1))
        column = random.integers(0, destinations, count).astype(np.int32)
        column = column[np.lexsort((column, row))]
        return Edges(
            indptr, column, random.random(count).astype(np.float32) + 0.1, random.integers(0, 50, count)
        )

    return Graph(
        {"user": 40, "item": 25},
        {("user", "to", "item"): edges(40, 25, 300), ("item", "with", "item"): edges(25, 25, 90)},
        {"item": random.standard_normal((25, 5), np.float32)},
    )


HOW = {
    "uniform": {},
    "with replacement": {"replace": True},
    "weighted": {"weight_attr": "weight"},
    "temporal": {"time_attr": "time"},
    "newest": {"time_attr": "time", "temporal_strategy": "last"},
    "weighted in trees": {"weight_attr": "weight", "disjoint": True},
    "induced": {"subgraph_type": "induced"},
    "in both directions": {"subgraph_type": "bidirectional"},
    "weighted in trees, in both directions": {
        "subgraph_type": "bidirectional",
        "weight_attr": "weight",
        "disjoint": True,
    },
    "times of nodes": {"time_attr": "born"},
    "newest by times of nodes": {"time_attr": "born", "temporal_strategy": "last"},
    "weighted and induced, by times of nodes": {
        "time_attr": "born",
        "weight_attr": "weight",
        "subgraph_type": "induced",
    },
}


# PyG leaves a type without its reverse as it is.
@pytest.mark.filterwarnings("ignore:Cannot convert to bidirectional")
@pytest.mark.parametrize("how", HOW)
def test_batches_of_shards_are_those_of_the_whole_graph_to_the_bit(tmp_path, how):
    hetero = random_hetero()
    if HOW[how].get("subgraph_type") == "bidirectional":
        hetero["tag", "of", "item"].edge_index = torch.stack([torch.arange(20) % 4, torch.arange(20)])
        hetero["tag", "of", "item"].time = torch.arange(20)
    for kind in hetero.edge_types:
        hetero[kind].weight = torch.rand(hetero[kind].edge_index.shape[1]) + 0.1
    del hetero["user", "knows", "user"].time  # always there
    hetero["user"].born = torch.arange(30) * 7 % 50  # of items and tags no time is known
    alone = random_graph()
    alone.born = (torch.arange(60, dtype=torch.int32) * 7 % 50).reshape(-1, 1)
    cases = {
        "data": (alone, None, 60),
        "hetero": (hetero, "item", 20),
        "graph": (our_graph(), "item", 25),
    }
    if HOW[how].get("time_attr") == "born":
        del cases["graph"]  # has times of edges only
    for name, (data, seeds, count) in cases.items():
        options = {**HOW[how], "batch_size": 7, "shuffle": True, "seed": 3}
        if options.get("time_attr") == "time" or ("time_attr" in options and seeds == "item"):
            options["input_time"] = torch.arange(count) % 50
        whole = NeighborLoader(data, [4, 3], seeds, **options)
        for partition, cache in (("hash", 0), ("edge-cut", 3_000)):
            graph = sharded(data, tmp_path / f"{name}-{cache}", 3, partition, cache)
            parts = NeighborLoader(graph, [4, 3], seeds, **options)
            for first, second in zip(whole, parts, strict=True):
                same(first, second)
            whole.epoch = 0
            if cache:
                assert any(len(hot.nodes.nodes) for hot in graph.rows(*_names(options)).hot.values())
                assert graph.kept_bytes <= cache
            else:
                assert graph.kept_bytes == 0


def test_a_row_of_more_edges_than_two_bytes_count_is_sampled_beside_short_ones(tmp_path):
    from torch_geometric.data import Data

    # By destination, so that places in rows are sent; those of node 4 need more bytes than those of other shards' rows.
    destination = torch.cat(
        [torch.arange(4).repeat_interleave(5), torch.full((70_000,), 4), torch.arange(5, 9)]
    )
    source = torch.arange(len(destination)) * 7 % 9
    data = Data(edge_index=torch.stack([source, destination]), num_nodes=9)
    graph = sharded(data, tmp_path / "g", 3)
    assert graph.parts.manifest["edges"][0]["consecutive"]
    for first, second in zip(
        *(NeighborLoader(of, [300, 3], batch_size=4) for of in (data, graph)), strict=True
    ):
        same(first, second)
    assert int(second.e_id.max()) == len(destination) - 1


def test_a_batch_without_nodes_of_a_type_has_no_edges_to_them(tmp_path):
    data = random_hetero()
    graph = sharded(data, tmp_path / "g", 2)
    for kind in ("directional", "induced"):
        options = {"batch_size": 10, "subgraph_type": kind}
        loaders = [NeighborLoader(of, [0], "user", **options) for of in (data, graph)]
        for first, second in zip(*loaders, strict=True):
            same(first, second)
            assert len(second["item"].n_id) == 0


LINKS = {
    "binary": ({}, NegativeSampling("binary", 1.5)),
    "binary in trees": ({"disjoint": True}, NegativeSampling("binary", 1.5)),
    "triplets by weight": ({"weight_attr": "weight"}, NegativeSampling("triplet", 3)),
    "triplets by times of edges": ({"time_attr": "time"}, NegativeSampling("triplet", 2)),
    "binary by times of nodes": ({"time_attr": "born"}, NegativeSampling("binary", 2)),
}


@pytest.mark.parametrize("how", LINKS)
def test_links_have_the_negatives_that_they_have_in_the_whole_graph(tmp_path, how):
    options, negative = LINKS[how]
    options = {**options, "strict_negatives": True, "seed": 4}
    alone, hetero = random_graph(12, 80), random_hetero()
    alone.weight[:20] = 0  # what is never sampled is no edge
    alone.born = torch.arange(12)
    for kind in hetero.edge_types:
        hetero[kind].weight = torch.ones(hetero[kind].edge_index.shape[1])
    hetero["item"].born = torch.arange(20)
    cases = {
        "data": (alone, None, alone.edge_index[:, 20:50]),
        "hetero": (hetero, ("user", "buys", "item"), hetero["user", "buys", "item"].edge_index[:, :40]),
        "graph": (our_graph(), ("item", "rev_to", "user"), torch.arange(20).repeat(2, 1)),
    }
    if options.get("time_attr") == "born":
        del cases["graph"]
    for name, (data, kind, links) in cases.items():
        time = torch.arange(links.shape[1]) % 9 + 9 if "time_attr" in options else None
        asked = EdgeSamplerInput(None, *links, time=time, input_type=kind)
        whole = NeighborSampler(data, [3, 2], **options)
        expected = whole.sample_from_edges(asked, negative)
        for partition, cache in (("hash", 0), ("edge-cut", 2_000)):
            graph = sharded(data, tmp_path / f"{name}-{cache}", 3, partition, cache)
            sampler = NeighborSampler(graph, [3, 2], **options)
            assert bool(sampler._remote.hot) == bool(cache)
            found = sampler.sample_from_edges(asked, negative)
            for one, two in zip(_flat(expected.metadata), _flat(found.metadata), strict=True):
                assert one is two is None or torch.equal(one, two)
            for field in ("node", "row", "col", "batch"):
                for one, two in zip(
                    _flat(getattr(expected, field)), _flat(getattr(found, field)), strict=True
                ):
                    assert one is two is None or torch.equal(one, two), field
            for one, order, two in zip(
                *map(_flat, (expected.edge, whole.edge_permutation, found.edge)), strict=True
            ):
                assert torch.equal(one if order is None else order[one], two)


def _flat(value):
    """The tensors in what PyG's outputs have."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return [one for part in value for one in _flat(part)] if isinstance(value, tuple) else [value]


def _names(options):
    return options.get("weight_attr"), options.get("time_attr")


def test_a_hop_is_one_call_a_shard_and_batches_that_wait_share_it(tmp_path):
    data = random_hetero()
    graph = sharded(data, tmp_path / "g", 2)
    NeighborSampler(graph, [3, 3]).sample({"item": np.arange(20)})
    # Four edge types, two hops, two shards; and the greeting of each shard.
    assert graph.moved["calls"] == 2 + 2 * 2
    sent = []
    gate = threading.Event()

    class Slow(InProcess):
        def send(self, requests):
            sent.append(len(requests))
            return requests

        def receive(self, call, requests):
            gate.wait()
            return super().receive(call, requests)

    link = Link(Slow(tmp_path / "g", 0), depth=1)
    waiting = [link.ask([ReadNodes(0, (0,), np.array([row]))]) for row in range(5)]
    gate.set()
    answers = [wait()[0][0] for wait in waiting]
    assert sent == [1, 4]
    nodes = graph.parts.placement
    mine = [node for node in range(30) if nodes.find("user", np.array([node]))[0][0] == 0]
    assert torch.equal(torch.from_numpy(np.concatenate(answers)), data["user"].x[mine[:5]])


def test_a_cache_of_all_nodes_leaves_nothing_to_ask(tmp_path):
    data = random_graph()
    graph = sharded(data, tmp_path / "g", 2, cache=1 << 20)
    loader = NeighborLoader(graph, [4, 3], threads=1)
    before = graph.moved["calls"]
    degree = np.bincount(data.edge_index[0].numpy(), minlength=60)
    hot = loader.sampler._remote.hot["", "", ""].nodes.nodes
    assert set(hot) == set(np.flatnonzero(degree))
    sample = loader.sampler.sample({"": hot})
    features = graph.features().nodes("", sample.nodes[""], ["x"])
    assert torch.equal(features["x"], data.x[sample.nodes[""]])
    assert graph.moved["calls"] == before


def test_hashing_finds_every_node_and_shards_differ_by_one():
    for count in (0, 1, 7, 1000):
        placement = Placement(4)
        shard, row = placement.find("", np.arange(count))
        sizes = np.bincount(shard, minlength=4)
        assert sizes.max() - sizes.min() <= 1
        for s in range(4):
            assert row[shard == s].tolist() == list(range(sizes[s]))
    assert len(set(map(tuple, shard.reshape(-1, 4)))) > 1  # not in turns


def test_edge_cut_finds_the_communities_that_there_are_and_keeps_shards_even():
    random = np.random.default_rng(0)
    community = random.integers(0, 4, 400)
    edges = random.integers(0, 400, (2, 20_000))
    edges = edges[:, (community[edges[0]] == community[edges[1]]) | (random.random(20_000) < 0.02)]
    from torch_geometric.data import Data

    data = Data(edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1)), num_nodes=400)
    inputs = read_inputs(data, weight_attr=None, time_attr=None)
    shard = edge_cut(inputs, 4)[""]
    cut = (shard[edges[0]] != shard[edges[1]]).mean()
    hashed, _ = Placement(4).find("", np.arange(400))
    assert (hashed[edges[0]] != hashed[edges[1]]).mean() > 0.7
    assert cut < 0.2
    load = np.bincount(shard, 1 + np.diff(inputs.rows["", "", ""].indptr), 4)
    assert load.max() <= 1.05 * load.sum() / 4
    for s in range(4):
        assert (shard == s).any()


def test_parts_are_written_once_for_a_graph_and_anew_for_another(tmp_path):
    our_graph().save(tmp_path / "graph")
    folder = _parts(tmp_path / "graph", 2, "hash", None)
    assert folder == tmp_path / "graph-2-hash"
    written = (folder / "graph.json").stat().st_ino
    assert _parts(tmp_path / "graph", 2, "hash", None) == folder
    assert (folder / "graph.json").stat().st_ino == written
    our_graph(1).save(tmp_path / "graph")
    _parts(tmp_path / "graph", 2, "hash", None)
    assert (folder / "graph.json").stat().st_ino != written
    part = folder / "shard-1" / "edges-0-indices.npy"
    part.write_bytes(part.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"edges-0-indices\.npy: damaged"):
        Part(str(folder), 1)
    with pytest.raises(ConfigError, match="no folder"):
        _parts(our_graph(), 2, "hash", None)


def test_stores_of_pyg_have_the_features_and_the_edges(tmp_path):
    data = random_graph()
    graph = sharded(data, tmp_path / "g", 3, cache=2_000)
    features, store = graph.stores()
    assert torch.equal(features[None, "x", torch.tensor([5, 3, 5])], data.x[[5, 3, 5]])
    assert torch.equal(features[None, "y", None], data.y)
    assert features.get_tensor_size(group_name=None, attr_name="x") == (60, 6)
    attr = store.get_all_edge_attrs()[0]
    source, indptr = store.get_edge_index(attr)
    destination = torch.repeat_interleave(torch.arange(60), indptr.diff())
    order = torch.argsort(data.edge_index[1], stable=True)
    assert torch.equal(torch.stack([source, destination]), data.edge_index[:, order])
    sampler = NeighborSampler(graph, [4, 3], seed=1)
    loader = NodeLoader((features, store), sampler, torch.arange(60), batch_size=16)
    for batch in loader:
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    with pytest.raises(DataError, match="only read"):
        features[None, "x", None] = data.x
    with pytest.raises(DataError, match="node 60 is none; there are 60"):
        features[None, "x", torch.tensor([60])]


def test_what_shards_cannot_do_is_refused(tmp_path):
    graph = sharded(random_graph(), tmp_path / "g", 2)
    with pytest.raises(DataError, match="no weights 'w'"):
        NeighborSampler(graph, [2], weight_attr="w")
    with pytest.raises(DataError, match="neither nodes nor edges have times 'born'"):
        NeighborSampler(graph, [2], time_attr="born")
    for name in ("weight", "x"):
        with pytest.raises(DataError, match=r"times are float32.*, sampling takes integers"):
            NeighborSampler(graph, [2], time_attr=name)
    idle = random_graph()
    idle.weight = torch.ones(idle.num_edges)
    idle.weight[idle.edge_index[1] == 41] = 0
    for of in (idle, sharded(idle, tmp_path / "idle", 3)):
        with pytest.raises(DataError, match="edges that lead to node 41 have weight 0"):
            NeighborSampler(of, [2], weight_attr="weight").sample({"": np.arange(60)})
    ours = sharded(our_graph(), tmp_path / "ours", 2)
    with pytest.raises(DataError, match="the edges have no times 't'"):
        NeighborSampler(ours, [2], time_attr="t")
    data = random_hetero()
    data["user"].time = torch.arange(30)
    with pytest.raises(DataError, match="both nodes and edges have times 'time'"):
        NeighborSampler(sharded(data, tmp_path / "both", 2), [2], time_attr="time")
    with pytest.raises(ResourceError, match=r"ray\.init"):
        ShardedGraph(random_graph(), 2, folder=tmp_path / "h")
    with pytest.raises(ConfigError, match="0 is less than 1"):
        ShardedGraph(random_graph(), 0, folder=tmp_path / "h")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_epoch_on_four_nodes_survives_one_that_is_killed_and_a_shard_that_hangs_is_named(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    data = random_graph(nodes=2_000, edges=20_000)
    # So many batches that most are not asked for yet when a node goes.
    options = {"batch_size": 5, "shuffle": True, "seed": 5}
    loader = NeighborLoader(data, [5, 4], **options)
    whole = [list(loader), list(loader)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        cluster.wait_for_nodes(timeout=300)
        with ShardedGraph(data, 4, folder=tmp_path / "g", cache=0, timeout=300) as graph:
            before = {shard.place[1] for shard in graph._shards}
            assert before == {node.node_id for node in [cluster.head_node, *nodes]}
            victim = nodes[-1]
            loader, batches = NeighborLoader(graph, [5, 4], **options, threads=2), []
            for batch in loader:
                batches.append(batch)
                if len(batches) == 10:
                    cluster.remove_node(victim, allow_graceful=False)
            for first, second in zip(whole[0], batches, strict=True):
                same(first, second)
            places = [shard.place for shard in graph._shards]
            assert victim.node_id not in {place[1] for place in places}
            # A process that is killed is started again, too.
            os.kill(places[0][2], signal.SIGKILL)
            for first, second in zip(whole[1], loader, strict=True):
                same(first, second)
            assert graph._shards[0].place[2] != places[0][2]
        with ShardedGraph(data, 2, folder=tmp_path / "g2", cache=0, timeout=300) as graph:
            graph._shards[1]._seconds = 5  # it has started
            address, node, process = graph._shards[1].place
            os.kill(process, signal.SIGSTOP)
            try:
                with pytest.raises(ClusterTimeoutError) as found:
                    list(NeighborLoader(graph, [5, 4]))
            finally:
                os.kill(process, signal.SIGCONT)
            text = str(found.value)
            assert "shard 1 of 2 has not answered for 5 s" in text
            assert f"node {address} ({node[:8]}), process {process}" in text
            assert f"ps -o stat,etime,cmd -p {process}" in text
        lost = RayShard(tmp_path / "nowhere", 0, 1, 300)
        with pytest.raises(ClusterError, match=r"shard 0 of 1 is dead: .*nowhere.*ray status"):
            lost.receive(lost.send([]), [])
    finally:
        ray.shutdown()
        cluster.shutdown()
