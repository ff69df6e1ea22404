"""`construct_graph`: the same bytes however rows come; what is added to, what is refused, what is left on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.errors import ColumnNotFoundError, DataError, ResourceError, StorageError
from sp_ray_ml.graph import (
    CoOccurrence,
    EdgeTable,
    Graph,
    GraphSettings,
    NodeTable,
    build_graph,
    canonical_order,
    construct_graph,
)
from sp_ray_ml.graph import graph as graph_module
from sp_ray_ml.graph._co_occurrence import PairCounter
from sp_ray_ml.graph._external import Limits
from sp_ray_ml.graph._rows import sorted_rows
from sp_ray_ml.graph.on_disk import construct

PLAYS = ("user", "plays", "item")
FOLLOWS = ("user", "follows", "user")
SMALL = Limits(chunk_rows=70, partition_rows=50, threads=2)
SECOND = 1_000_000_000


def plays(count: int = 500, *, seed: int = 0, text: bool = True, begin: int = 0) -> pa.Table:
    """Events of 40 users and 25 items, in no order, several at one time."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 40, count), (rng.random(count) ** 2 * 25).astype(int)
    return pa.table(
        {
            "user": [f"u{n}" for n in user] if text else user * 10**12 - 10**13,
            "item": [f"Ähnlich {n}" * (n % 3) + f"{n}" for n in item] if text else item,
            "at": begin + rng.integers(0, 90, count),
            "hours": rng.random(count).astype(np.float32),
        }
    )


def played(table: Any, **settings: Any) -> dict[Any, EdgeTable]:
    return {PLAYS: EdgeTable(table=table, source="user", destination="item", time="at", **settings)}


def made(folder: Path, edges: Any, nodes: Any = None, base: Any = None, limits: Limits = SMALL) -> Graph:
    return construct(folder, edges, nodes or {}, base, None, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("text", [True, False])
def test_tables_and_arrays_give_the_same_graph(tmp_path: Path, text: bool) -> None:
    table, between = plays(text=text), CoOccurrence(window="30s", top=5)
    graph = made(tmp_path / "graph", played(table, co_occurrence=between))
    ids, codes, order = {}, {}, {}
    at = table["at"].to_numpy() * SECOND
    for name in ("user", "item"):
        ids[name], codes[name] = np.unique(table[name].to_numpy(), return_inverse=True)
        order[name] = canonical_order(codes[name], at, len(ids[name]))
        assert graph.ids[name].to_pylist() == ids[name][order[name]].tolist()
    expected = build_graph(
        np.argsort(order["user"])[codes["user"]],
        np.argsort(order["item"])[codes["item"]],
        num_users=len(ids["user"]),
        num_items=len(ids["item"]),
        time=at,
        settings=GraphSettings(co_occurrence=between),
    )
    for mine, theirs in ((PLAYS, ("user", "to", "item")), (("item", "with", "item"),) * 2):
        for got, wanted in (
            (graph.edges[mine], expected.edges[theirs]),
            (graph.in_edges(mine), expected.in_edges(theirs)),
        ):
            assert isinstance(got.indices, np.memmap)
            for name in ("indptr", "indices", "weight", "time", "edge"):
                one, other = getattr(got, name), getattr(wanted, name)
                assert (one is None) == (other is None)
                assert one is None or np.array_equal(one, other)


@pytest.mark.parametrize("duplicates", ["sum", "keep"])
def test_the_bytes_do_not_depend_on_the_order_of_rows_nor_on_chunks_and_threads(
    tmp_path: Path, duplicates: str
) -> None:
    table = plays()
    settings = {"weight": "hours", "duplicates": duplicates, "co_occurrence": CoOccurrence(window="20s")}
    made(tmp_path / "one", played(table, **settings))
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    made(tmp_path / "other", played(shuffled, **settings), limits=Limits(threads=1))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_edges_of_a_pair_are_summed_or_kept(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 1, 1], "item": [5, 5, 6], "at": [9, 3, 4], "hours": [0.5, 2.0, 1.0]})
    one = made(tmp_path / "one", played(table, weight="hours")).edges[PLAYS]
    assert (one.indices.tolist(), one.weight.tolist(), one.time.tolist()) == (
        [0, 1], [2.5, 1.0], [3 * SECOND, 4 * SECOND],
    )  # fmt: skip
    every = made(tmp_path / "every", played(table, weight="hours", duplicates="keep")).edges[PLAYS]
    assert (every.indices.tolist(), every.weight.tolist()) == ([0, 0, 1], [2.0, 0.5, 1.0])
    plain = made(tmp_path / "plain", played(table, duplicates="keep"))
    assert plain.edges[PLAYS].weight is None
    assert plain.edges[PLAYS].weights().tolist() == [1, 1, 1]
    assert plain.in_edges(PLAYS).edge.tolist() == [0, 1, 2]


def test_self_loops_are_kept_or_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"a": ["x", "y", "x"], "b": ["x", "x", "z"]})
    caplog.set_level("INFO", "sp_ray_ml")
    for rule, wanted in (("keep", [0, 2, 0]), ("drop", [2, 0])):
        edges = {FOLLOWS: EdgeTable(table=table, source="a", destination="b", self_loops=rule)}
        graph = construct_graph(tmp_path / rule, edges)
        assert graph.ids["user"].to_pylist() == ["x", "y", "z"]
        assert graph.edges[FOLLOWS].indices.tolist() == wanted
    assert "3 rows, 3 edges, 1 rows from a node to itself" in caplog.messages[0]
    assert caplog.messages[1].endswith("1 rows from a node to itself left out")


def test_nodes_without_edges_come_last_and_have_features(tmp_path: Path) -> None:
    table = pa.table({"user": [7], "item": ["b"], "at": [1], "hours": [1.0]})
    items = pa.table({"id": ["c", "b", "a"], "length": [3, 2, 1], "vector": [[3.0, 0], [2.0, 0], [1.0, 0]]})
    nodes = {"item": NodeTable(table=items, id="id", features=("length", "vector"))}
    graph = made(tmp_path / "graph", played(table), nodes)
    assert graph.ids["item"].to_pylist() == ["b", "a", "c"]
    assert graph.features["item"].tolist() == [[2, 2, 0], [1, 1, 0], [3, 3, 0]]
    assert graph.in_edges(PLAYS).indptr.tolist() == [0, 1, 1, 1]
    Graph.load(tmp_path / "graph", verify=True)
    few = {"item": NodeTable(table=items.slice(0, 1), id="id", features=("length",))}
    with pytest.raises(DataError, match="1 nodes have edges and no row here, 'b' for one"):
        made(tmp_path / "few", played(table), few)
    zero = {"item": few["item"].model_copy(update={"missing": "zero"})}
    assert made(tmp_path / "few", played(table), zero).features["item"].tolist() == [[0], [3]]


def test_an_edge_type_may_have_no_edges(tmp_path: Path) -> None:
    nodes = {name: NodeTable(table={"id": ["b", "a"]}, id="id") for name in ("user", "item")}
    graph = made(tmp_path / "graph", played(plays().slice(0, 0)), nodes)
    assert graph.edges[PLAYS].indptr.tolist() == graph.in_edges(PLAYS).indptr.tolist() == [0, 0, 0]
    assert graph.ids["user"].to_pylist() == ["a", "b"]
    nothing = made(tmp_path / "nothing", played(plays().slice(0, 0)))
    assert nothing.num_nodes == {"user": 0, "item": 0}


def test_node_types_of_several_tables_are_ordered_by_their_first_event_in_any(tmp_path: Path) -> None:
    follows = pa.table({"a": ["late", "u1"], "b": ["early", "u1"], "at": [10**6, 10**6]})
    edges = {
        **played(plays()),
        FOLLOWS: EdgeTable(table=follows, source="a", destination="b", time="at"),
        ("user", "blocks", "user"): EdgeTable(
            table={"a": ["never"], "b": ["u1"]}, source="a", destination="b"
        ),
    }
    graph = made(tmp_path / "graph", edges)
    assert graph.ids["user"].to_pylist()[-3:] == ["early", "late", "never"]


@pytest.mark.parametrize("duplicates", ["sum", "keep"])
@pytest.mark.parametrize("late", [False, True])
def test_yesterdays_graph_and_todays_events_are_all_events(
    tmp_path: Path, duplicates: str, late: bool
) -> None:
    # Late: events from before the first ones of known nodes, which move.
    yesterday, today = plays(300, begin=100), plays(200, seed=1, begin=50 if late else 1000)
    today = today.set_column(
        0, "user", pa.array([f"{user}-{i % 3}" for i, user in enumerate(today["user"].to_pylist())])
    )
    weight = {} if late and duplicates == "sum" else {"weight": "hours"}
    settings = {"duplicates": duplicates, **weight}
    items = {
        "item": NodeTable(
            table=pa.table(
                {"id": sorted({*yesterday["item"].to_pylist(), *today["item"].to_pylist(), "new"})}
            ),
            id="id",
        )
    }
    made(
        tmp_path / "graph",
        played(yesterday, **settings),
        {"item": NodeTable(table={"id": ["gone"]}, id="id")},
    )
    made(tmp_path / "graph", played(today, **settings), items, base=tmp_path / "graph")
    made(tmp_path / "all", played(pa.concat_tables([today, yesterday]), **settings), items)
    assert contents(tmp_path / "graph") == contents(tmp_path / "all")


def test_weights_that_cannot_be_added_exactly_are_refused(tmp_path: Path) -> None:
    made(tmp_path / "graph", played(plays(), weight="hours"))
    before = contents(tmp_path / "graph")
    with pytest.raises(DataError, match=r"reach back before .* Construct the graph anew"):
        made(tmp_path / "graph", played(plays(10), weight="hours"), base=tmp_path / "graph")
    with pytest.raises(DataError, match="duplicates: sum then, keep now"):
        made(
            tmp_path / "graph", played(plays(10), weight="hours", duplicates="keep"), base=tmp_path / "graph"
        )
    assert contents(tmp_path / "graph") == before


def test_pairs_are_counted_the_same_in_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user, item, at = rng.integers(0, 9, 400), rng.integers(0, 12, 400), rng.integers(0, 99, 400)
    rows = sorted_rows(user, item, at, None, base=0, num_rows=9)
    settings = CoOccurrence(window="20s", top=4, neighbors=5)
    seconds = sorted_rows(user, item, at * SECOND, None, base=0, num_rows=9)

    def counted(**where: Any) -> list[np.ndarray]:
        counter = PairCounter(12, settings, **where)
        counter.add(seconds)
        return [np.concatenate(parts) for parts in zip(*counter.finish(), strict=True)]

    for whole, small in zip(counted(), counted(folder=tmp_path, room=16), strict=True):
        assert np.array_equal(whole, small)
    assert not list(tmp_path.iterdir())
    few = PairCounter(12, settings.model_copy(update={"last_events": 1}))
    few.add(rows)
    assert sum(lengths.sum() for lengths, _, _ in few.finish()) == 0


def test_more_nodes_than_an_int32_numbers_have_int64_indices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = made(tmp_path / "narrow", played(plays()))
    monkeypatch.setattr(graph_module, "_MOST_INT32", 8)
    wide = made(tmp_path / "wide", played(plays()))
    assert (narrow.edges[PLAYS].indices.dtype, wide.edges[PLAYS].indices.dtype) == (np.int32, np.int64)
    for name in ("indptr", "indices", "weight", "time"):
        assert np.array_equal(getattr(narrow.edges[PLAYS], name), getattr(wide.edges[PLAYS], name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": pa.array(["a", None])}, r"plays.*user: 1 of 2 rows have no id"),
        ({"user": pa.array([1.5, 2.5])}, "ids must be text or whole numbers, these are double"),
        ({"user": pa.array([2**63, 1], pa.uint64())}, "an id is beyond int64: .* Cast the column to text"),
        ({"at": pa.array([1, None])}, "1 of 2 rows have no time"),
        ({"hours": pa.array([1.0, float("nan")])}, "1 weights are not finite"),
        ({"hours": pa.array(["1", "2"])}, "weights must be numbers, these are string"),
        ({"hours": pa.array([3e38, 3e38]), "user": pa.array(["a", "a"])}, "more than a float32 holds"),
    ],
)
def test_a_row_that_is_none_is_refused_and_nothing_written(tmp_path: Path, change: Any, message: str) -> None:
    columns = {"user": ["a", "b"], "item": [1, 1], "at": [1, 2], "hours": [1.0, 2.0]}
    with pytest.raises(DataError, match=message):
        made(tmp_path / "graph", played(pa.table({**columns, **change}), weight="hours"))
    assert not list(tmp_path.iterdir())


def test_columns_and_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ColumnNotFoundError, match="no column 'when'"):
        construct_graph(
            tmp_path / "graph",
            {PLAYS: EdgeTable(table=plays(), source="user", destination="item", time="when")},
        )
    with pytest.raises(
        DataError, match="the ids are text, those of other columns of this node type whole numbers"
    ):
        made(
            tmp_path / "graph",
            {FOLLOWS: EdgeTable(table={"a": [1], "b": ["x"]}, source="a", destination="b")},
        )
    twice = {"item": NodeTable(table={"id": ["x", "y", "x"]}, id="id")}
    with pytest.raises(DataError, match="the id 'x' is there more than once"):
        made(tmp_path / "graph", played(plays()), twice)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_found_before_anything_is_read(tmp_path: Path) -> None:
    def never() -> Iterator[pa.RecordBatch]:
        pytest.fail("it was read")
        yield

    table = Source("huge", plays().schema, never, num_rows=10**15)
    with pytest.raises(ResourceError, match=r"takes up to 72,000,000\.0 GB of disk, .* are free.*df -h"):
        construct_graph(tmp_path / "graph", played(table))
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_newer_graph_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    made(folder, played(plays()))
    file = folder / "edges-0-in-time.npy"
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    with pytest.raises(DataError, match=r"edges-0-in-time\.npy: damaged: it has .* bytes"):
        Graph.load(folder)
    file.write_bytes(data[:-8] + bytes(8))
    Graph.load(folder)
    with pytest.raises(DataError, match=r"edges-0-in-time\.npy: damaged: its checksum"):
        Graph.load(folder, verify=True)
    file.unlink()
    with pytest.raises(StorageError, match="no such file"):
        Graph.load(folder)
    manifest = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match=r"written in format 99, this version reads 2\. .*pip install -U"):
        Graph.load(folder)
    (folder / "graph.json").write_text(json.dumps({**manifest, "files": {"../graph.json": {"bytes": 1}}}))
    with pytest.raises(StorageError, match="names the file"):
        Graph.load(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_ray_the_bytes_are_the_same_for_any_number_of_partitions(tmp_path: Path) -> None:
    import ray

    table = plays(3000)
    edges = {
        **played(table, weight="hours"),
        ("user", "keeps", "item"): EdgeTable(
            table=table, source="user", destination="item", time="at", duplicates="keep",
            co_occurrence=CoOccurrence(window="9s"),
        ),
        FOLLOWS: EdgeTable(table={"a": ["x", "u1", "u1"], "b": ["x", "x", "x"]}, source="a", destination="b", self_loops="drop"),
    }  # fmt: skip
    made(tmp_path / "local", edges)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = [ray.data.from_arrow(table.slice(begin, 900)) for begin in range(0, len(table), 900)]
        cut = {**edges, PLAYS: edges[PLAYS].model_copy(update={"table": blocks[0].union(*blocks[1:])})}
        for partitions, given in ((1, edges), (4, cut)):  # in two below, added to what was there
            construct(tmp_path / str(partitions), given, {}, None, partitions, Limits(chunk_rows=400))
            assert contents(tmp_path / str(partitions)) == contents(tmp_path / "local")
        wrong = played(table.set_column(0, "user", pa.array([None, *table["user"].to_pylist()[1:]])))
        with pytest.raises(DataError, match=r"user: 1 of 3,000 rows have no id"):
            construct_graph(tmp_path / "wrong", wrong, partitions=2)
        assert not (tmp_path / "wrong").exists()
        later = played(plays(200, begin=500), weight="hours")
        rest = {
            kind: settings.model_copy(update={"table": as_source(settings.table).to_arrow().slice(0, 0)})
            for kind, settings in edges.items()
            if kind != PLAYS
        }
        made(tmp_path / "today", {**later, **rest}, base=tmp_path / "local")
        construct(tmp_path / "on-ray", {**later, **rest}, {}, tmp_path / "local", 2, Limits())
        assert contents(tmp_path / "today") == contents(tmp_path / "on-ray")
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_construction_that_is_killed_leaves_the_old_graph(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    made(folder, played(plays()))
    before = contents(folder)
    pq.write_table(plays(200), tmp_path / "events.parquet")
    code = (
        "import sys, time\nfrom sp_ray_ml.data.source import Source, as_source\n"
        "from sp_ray_ml.graph import EdgeTable, construct_graph\n"
        "events = as_source('events.parquet')\n"
        "def slow():\n"
        "    for batch in events.batches():\n        yield batch\n"
        "    print('read', flush=True)\n    time.sleep(600)\n"
        "table = Source('slow', events.schema, slow, num_rows=200)\n"
        "construct_graph('graph', {('user', 'plays', 'item'): EdgeTable(table=table, source='user', destination='item')})"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert contents(folder) == before
    Graph.load(folder, verify=True)
