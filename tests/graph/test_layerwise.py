"""Layer-wise inference: the vectors of the whole graph's forward pass, in pieces, wherever they are computed."""

from __future__ import annotations

import os
import signal
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn import SAGEConv

from sp_ray_ml.errors import ConfigError, DataError, LockedError, ResourceError, StorageError
from sp_ray_ml.graph import (
    GCN,
    EdgeTable,
    Graph,
    GraphSAGE,
    LayeredGNN,
    LightGCN,
    NodeVectors,
    ShardedGraph,
    construct_graph,
    embed_nodes,
)
from sp_ray_ml.graph import layerwise as layerwise_module
from sp_ray_ml.graph._layer_plan import cut
from sp_ray_ml.storage import Lock

from .test_models import EVERY
from .test_sampling import random_graph, random_hetero
from .test_sharded import our_graph, sharded

SMALL = 4_000
"""Bytes a batch, so that there are many."""


def module_of(data, layers=2):
    torch.manual_seed(0)
    return GraphSAGE(dim=8, layers=layers, dropout=0.5).build(data)


def whole(module, data):
    module.eval()
    with torch.inference_mode():
        found = module(data)
    return {name: rows.detach().numpy() for name, rows in found.items()}


def same(vectors, expected):
    assert vectors.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(vectors[name], rows, rtol=1e-4, atol=1e-6)


class Plain(torch.nn.Module):
    """A module of a user's own, of homogeneous data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = SAGEConv(6, 5), SAGEConv(5, 3)

    def forward(self, data):
        return self.second(self.first(data.x, data.edge_index).relu(), data.edge_index)


@pytest.mark.parametrize("layers", [1, 3])
def test_hetero_vectors_are_those_of_the_whole_graph(tmp_path, layers):
    data = random_hetero()
    module = module_of(data, layers).train()
    seen = []
    vectors = embed_nodes(
        module, data, tmp_path / "vectors", batch_bytes=SMALL, progress=lambda *at: seen.append(at)
    )
    assert module.training
    same(vectors, whole(module, data))
    assert len(seen) > 10 * layers
    assert seen[-1] == (54 * (layers + 1),) * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors"]


@pytest.mark.parametrize("settings", EVERY, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("data", [random_graph(), random_hetero()], ids=["one type", "several types"])
def test_every_network_goes_layer_by_layer(tmp_path, data, settings):
    if isinstance(settings, GCN) and isinstance(data, HeteroData):
        return  # is for one type
    torch.manual_seed(0)
    module = settings.build(data, 3)
    same(embed_nodes(module, data, tmp_path / "vectors", batch_bytes=SMALL, threads=1), whole(module, data))


def test_vectors_are_sent_to_a_url_and_opened_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    graph = our_graph()
    graph.save(tmp_path / "graph")
    url = f"memory://{tmp_path}/vectors"
    with pytest.raises(ConfigError, match=r"NodeVectors\.save sends them to a URL"):
        embed_nodes(module_of(graph.to_pyg()), tmp_path / "graph", url)
    vectors = embed_nodes(module_of(graph.to_pyg()), tmp_path / "graph", tmp_path / "vectors")
    ids = pa.array([f"u{i}" for i in range(40)])
    NodeVectors(vectors, {"user": ids}).save(url)
    opened = NodeVectors.load(url, verify=True)
    assert list(opened) == list(vectors)
    assert [opened[name].tobytes() for name in opened] == [rows.tobytes() for rows in vectors.values()]
    assert list(opened.ids) == ["user"]
    assert opened.ids["user"].equals(ids)


def test_homogeneous_vectors_are_those_of_the_whole_graph(tmp_path):
    data = random_graph()
    module = module_of(data)
    same(embed_nodes(module, data, tmp_path / "vectors", batch_bytes=SMALL), whole(module, data))


def test_vectors_of_a_graph_on_disk_are_those_of_its_pyg_form(tmp_path):
    graph = our_graph()
    graph.save(tmp_path / "graph")
    module = module_of(graph.to_pyg())
    vectors = embed_nodes(module, tmp_path / "graph", tmp_path / "vectors", batch_bytes=SMALL)
    same(vectors, whole(module, graph.to_pyg()))
    same(embed_nodes(module, Graph.load(tmp_path / "graph"), tmp_path / "again"), vectors)


def test_vectors_of_a_sharded_graph_are_the_same_to_the_bit(tmp_path):
    data = random_hetero()
    module = module_of(data)
    for partition in ("hash", "edge-cut"):
        parts = sharded(data, tmp_path / partition, partition=partition)
        vectors = embed_nodes(module, parts, tmp_path / f"{partition}-vectors", batch_bytes=SMALL)
        expected = embed_nodes(module, data, tmp_path / "vectors", batch_bytes=SMALL)
        for name in expected:
            np.testing.assert_array_equal(vectors[name], expected[name])


def test_the_number_of_threads_changes_no_bit(tmp_path):
    data = random_graph(500, 9_000)
    module, torch_threads = module_of(data), torch.get_num_threads()
    one, four = (
        embed_nodes(module, data, tmp_path / str(n), batch_bytes=50_000, threads=n)[""] for n in (1, 4)
    )
    np.testing.assert_array_equal(one, four)
    assert torch.get_num_threads() == torch_threads


def test_any_module_goes_by_whole_neighborhoods(tmp_path):
    data = random_graph()
    module = Plain()
    vectors = embed_nodes(module, data, tmp_path / "vectors", num_layers=2, batch_bytes=SMALL)
    same(vectors, {"": module(data).detach().numpy()})
    with pytest.raises(ConfigError, match="does not say how many layers"):
        embed_nodes(module, data, tmp_path / "vectors")


def test_a_type_without_nodes_has_vectors_without_rows(tmp_path):
    data = random_hetero()
    data["tag"].num_nodes = 0
    module = module_of(data)
    vectors = embed_nodes(module, data, tmp_path / "vectors")
    assert vectors["tag"].shape == (0, 8)
    same(vectors, whole(module, data))


def test_lightgcn_is_refused_since_parts_of_a_graph_lack_degrees(tmp_path):
    data = our_graph().to_pyg()
    with pytest.raises(ConfigError, match="divides by degrees of the whole graph"):
        embed_nodes(LightGCN(dim=4).build(data), data, tmp_path / "vectors", num_layers=2)


def test_one_tensor_for_several_types_is_refused(tmp_path):
    class OfItems(torch.nn.Module):
        def forward(self, data):
            return data["item"].x

    with pytest.raises(ConfigError, match="OfItems: it gives one tensor, and there are 3 types"):
        embed_nodes(OfItems(), random_hetero(), tmp_path / "vectors", num_layers=1)


def test_batches_are_cut_by_edges_and_never_across_a_node():
    degree = np.array([0, 3, 1, 500, 2, 2, 0, 0, 40])
    begin = np.concatenate([[0], np.cumsum(degree)])
    parts = list(cut([begin], 9, per_node=10, per_edge=4, limit=60))
    assert parts == [(0, 3), (3, 4), (4, 8), (8, 9)]
    assert list(cut([], 9, per_node=10, per_edge=4, limit=45)) == [(0, 4), (4, 8), (8, 9)]
    assert list(cut([begin], 0, 1, 1, 1)) == []


class BrokenError(Exception):
    pass


def test_a_run_that_was_broken_off_goes_on_at_its_layer(tmp_path, monkeypatch):
    graph = our_graph()
    graph.save(tmp_path / "graph")
    module = module_of(graph.to_pyg())
    calls = []
    layer = type(module).layer

    def breaking(self, k, x, data):
        calls.append(k)
        if k == 1 and len(x["user"]) and len(calls) > 5 and armed:
            raise BrokenError
        return layer(self, k, x, data)

    monkeypatch.setattr(type(module), "layer", breaking)
    armed = True
    arguments = (module, tmp_path / "graph", tmp_path / "vectors")
    with pytest.raises(BrokenError):
        embed_nodes(*arguments, batch_bytes=SMALL)
    with pytest.raises(StorageError):
        NodeVectors.load(tmp_path / "vectors")
    armed = False
    calls.clear()
    vectors = embed_nodes(*arguments, batch_bytes=SMALL)
    assert calls.count(0) <= 2 < calls.count(1)  # a probe of each type, and all of the second layer
    same(vectors, whole(module, graph.to_pyg()))
    with torch.no_grad():
        next(module.parameters()).mul_(2)  # another module goes on with nothing
    same(embed_nodes(*arguments, batch_bytes=SMALL), whole(module, graph.to_pyg()))


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    data = random_graph()
    embed_nodes(module_of(data), data, tmp_path / "vectors")
    with pytest.raises(DataError, match="holds node vectors, no graph"):
        Graph.load(tmp_path / "vectors")
    file = tmp_path / "vectors" / "vectors-0.npy"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:-4] + b"\x01\x02\x03\x04")
    NodeVectors.load(tmp_path / "vectors")
    with pytest.raises(DataError, match="checksum"):
        NodeVectors.load(tmp_path / "vectors", verify=True)
    file.write_bytes(whole_file[:-4])
    with pytest.raises(DataError, match="damaged"):
        NodeVectors.load(tmp_path / "vectors")
    our_graph().save(tmp_path / "graph")
    with pytest.raises(DataError, match="no vectors of nodes"):
        NodeVectors.load(tmp_path / "graph")


def test_a_vector_that_is_no_number_is_named(tmp_path):
    data = random_graph()
    module = module_of(data)
    data.x[41] = torch.nan
    with pytest.raises(DataError, match="node 41 is NaN or infinite after encode"):
        embed_nodes(module, data, tmp_path / "vectors", threads=1)
    assert not (tmp_path / "vectors").exists()


def test_a_disk_that_is_too_small_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    data = random_graph()
    usage = layerwise_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(layerwise_module.shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(ResourceError, match="the vectors take up to"):
        embed_nodes(module_of(data), data, tmp_path / "vectors")
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_write_into_one_folder(tmp_path):
    data = random_graph()
    (tmp_path / ".vectors.layers").mkdir()
    with Lock(tmp_path / ".vectors.layers" / "lock", "a test"), pytest.raises(LockedError):
        embed_nodes(module_of(data), data, tmp_path / "vectors")


@pytest.mark.parametrize("option", ["batch_bytes", "threads"])
def test_options_that_cannot_be_are_refused(tmp_path, option):
    with pytest.raises(ConfigError, match="0 is less than 1"):
        embed_nodes(module_of(random_graph()), random_graph(), tmp_path / "vectors", **{option: 0})


def test_a_graph_without_its_folder_is_not_given_to_workers(tmp_path):
    graph = our_graph()
    with pytest.raises(ConfigError, match="by its folder"):
        embed_nodes(module_of(graph.to_pyg()), graph, tmp_path / "vectors", workers=2)


@pytest.mark.parametrize("url", ["duckdb:///out.duckdb", "parquet://out"])
def test_vectors_are_written_to_the_warehouse_with_their_original_ids(tmp_path, url):
    events = pa.table({"u": ["ann", "bo", "ann", "cy"], "i": [7, 7, 9, 11], "t": [1, 2, 3, 4]})
    graph = construct_graph(
        tmp_path / "graph",
        {("user", "plays", "item"): EdgeTable(table=events, source="u", destination="i", time="t")},
    )
    module = module_of(graph.to_pyg())
    vectors = embed_nodes(module, tmp_path / "graph", tmp_path / "vectors")
    written = vectors.write(url, {"user": "users", "item": "items"}, commit="once")
    assert written == {"users": 3, "items": 3}
    assert vectors.write(url, {"user": "users"}, mode="append", commit="once") == {"users": 0}
    table = "read_parquet('out/items/*.parquet')" if url.startswith("parquet") else "items"
    with duckdb.connect("out.duckdb" if "duckdb" in url else ":memory:") as database:
        rows = dict(database.sql(f"SELECT id, embedding FROM {table}").fetchall())
    expected = dict(zip(graph.ids["item"].to_pylist(), vectors["item"].tolist(), strict=True))
    assert rows.keys() == expected.keys() == {7, 9, 11}
    for name, row in expected.items():
        np.testing.assert_array_equal(rows[name], row)
    with pytest.raises(DataError, match="no vectors of 'tag'"):
        vectors.write(url, {"tag": "tags"})


class Dying(LayeredGNN):
    """Ends its process once, in the middle of a layer."""

    num_layers = 1

    def __init__(self, mark):
        super().__init__()
        self.mark, self.linear = str(mark), torch.nn.Linear(6, 4)

    def encode(self, data):
        return {"": self.linear(data.x)}

    def layer(self, k, x, data):
        if data.batch_size > 1 and int(data.n_id[0]) > 20:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        source, destination = data.edge_index
        return {"": x[""].index_add(0, destination, x[""][source])}


@pytest.fixture(scope="module")
def two_cpus():
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests to import
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_give_the_same_to_the_bit_also_when_one_is_killed(tmp_path, two_cpus):
    data = random_graph(400, 4_000)
    module = Dying(tmp_path / "mark")
    vectors = embed_nodes(module, data, tmp_path / "vectors", batch_bytes=20_000, workers=2)
    assert (tmp_path / "mark").exists()
    expected = embed_nodes(module, data, tmp_path / "alone", batch_bytes=20_000, threads=1)
    np.testing.assert_array_equal(vectors[""], expected[""])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_open_the_graph_by_its_folder(tmp_path, two_cpus):
    graph = our_graph()
    graph.save(tmp_path / "graph")
    module = module_of(graph.to_pyg())
    vectors = embed_nodes(module, tmp_path / "graph", tmp_path / "vectors", batch_bytes=SMALL, workers=2)
    expected = embed_nodes(module, tmp_path / "graph", tmp_path / "alone", batch_bytes=SMALL)
    for name in expected:
        np.testing.assert_array_equal(vectors[name], expected[name])
    with pytest.raises(ResourceError, match="99 workers take a CPU each, Ray has 2"):
        embed_nodes(module, tmp_path / "graph", tmp_path / "vectors", workers=99)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_ask_the_shards_that_there_are(tmp_path, two_cpus):
    data = random_hetero()
    module = module_of(data)
    with ShardedGraph(data, 2, folder=tmp_path / "parts") as parts:
        vectors = embed_nodes(module, parts, tmp_path / "vectors", batch_bytes=SMALL, workers=2)
        assert parts.moved["calls"]  # still there
    expected = embed_nodes(module, data, tmp_path / "alone", batch_bytes=SMALL)
    for name in expected:
        np.testing.assert_array_equal(vectors[name], expected[name])
