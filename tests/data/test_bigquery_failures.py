"""What goes wrong around BigQuery: networks, kills, other writers, tables that change. Nothing is lost or mixed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sp_ray_ml.data import Source, open_warehouse
from sp_ray_ml.errors import ConfigError, DataError, TableNotFoundError, WarehouseError
from tests.bigquery import Emulator, bigquery
from tests.proxy import Fault, proxy
from tests.recorded_bigquery import short_stalls, sleepless

__all__ = ["bigquery"]
pytestmark = pytest.mark.slow

OLD = pa.table({"n": [1, 2, 3], "text": ["a", "b", "c"]})


@pytest.fixture
def url(bigquery: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    return bigquery.use(monkeypatch)


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_killed_writer_leaves_the_old_table(url: str, mode: str) -> None:
    warehouse = open_warehouse(url)
    warehouse.write("t", OLD, commit="first")
    program = """
        import sys
        import pyarrow as pa
        from sp_ray_ml.data import Source, open_warehouse
        from sp_ray_ml.data import _bigquery_load
        _bigquery_load._PART_BYTES = 1 << 16
        table = pa.table({"n": range(200_000), "text": [f"{i * 7919:x}" for i in range(200_000)]})
        def batches():
            for _ in range(5):
                yield from table.to_batches()
            print("half-way", flush=True)
            sys.stdin.readline()
        open_warehouse(sys.argv[1]).write("t", Source("s", table.schema, batches), mode=sys.argv[2], commit="killed")
        """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), url, mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "half-way"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert warehouse.tables() == ["t"]
    assert warehouse.source("t").to_arrow().equals(OLD)
    assert warehouse.write("t", OLD, mode="append", commit="killed") == 3
    assert warehouse.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2


def test_writers_to_one_table_never_mix(url: str) -> None:
    open_warehouse(url).write("t", OLD)
    sizes = [10_000, 20_000, 30_000]
    errors: list[Exception] = []

    def write(size: int) -> None:
        try:
            rows = pa.table({"n": [size] * size, "text": ["x"] * size})
            open_warehouse(url).write("t", rows, commit=f"of-{size}")
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    back = open_warehouse(url).source("t").to_arrow()["n"].to_pylist()
    assert len(set(back)) == 1
    assert len(back) == back[0]
    assert open_warehouse(url).tables() == ["t"]


def test_appending_writers_all_arrive_and_a_commit_once(url: str) -> None:
    open_warehouse(url).write("t", OLD)
    done: list[int] = []
    lock = threading.Lock()

    def write(commit: str) -> None:
        rows = open_warehouse(url).write("t", OLD, mode="append", commit=commit)
        with lock:
            done.append(rows)

    threads = [threading.Thread(target=write, args=(f"run-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [3, 3, 3]
    assert open_warehouse(url).write("t", OLD, mode="append", commit="run-1") == 0
    assert open_warehouse(url).source("t").to_arrow().num_rows == 12


def test_table_dropped_between_plan_and_read_is_named(url: str, bigquery: Emulator) -> None:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery as official

    warehouse = open_warehouse(url)
    warehouse.write("t", OLD)
    table, query = warehouse.source("t"), warehouse.source("SELECT n FROM t")
    client = official.Client(project="test-project", credentials=AnonymousCredentials())
    client.delete_table(f"test-project.{url.rpartition('/')[2]}.t")
    with pytest.raises((TableNotFoundError, WarehouseError), match=r"t\b") as caught:
        table.to_arrow()
    assert "bq ls" in str(caught.value)
    with pytest.raises(TableNotFoundError, match="'t'"):
        query.to_arrow()
    client.close()


def test_schema_changed_between_plan_and_read_is_told(url: str) -> None:
    warehouse = open_warehouse(url)
    warehouse.write("t", OLD)
    both, narrow = warehouse.source("t"), warehouse.source("t", columns=["text"], where=[("n", ">", 1)])
    warehouse.write("t", {"n": ["now", "text"]})
    for source in (both, narrow):
        with pytest.raises(DataError, match=r"changed|any more|no column"):
            source.to_arrow()
    with pytest.raises(DataError, match="'n'"):
        warehouse.write("t", OLD.select(["n"]), mode="append")


def test_emulator_without_its_second_address_says_which_variable(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_warehouse(url).write("t", OLD)
    monkeypatch.delenv("BIGQUERY_STORAGE_EMULATOR_HOST")
    with pytest.raises(ConfigError, match="export BIGQUERY_STORAGE_EMULATOR_HOST"):
        open_warehouse(url).source("t").to_arrow()


# --- networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "delay", "stall", "truncate"])
def test_reading_begins_again_where_the_network_broke(
    url: str, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    open_warehouse(url).write("t", OLD)
    with proxy(bigquery.grpc) as between:
        for name, value in bigquery.variables(grpc=between.port).items():
            monkeypatch.setenv(name, value)
        source = open_warehouse(f"{url}?patience=120").source("t")
        next(iter(source.batches()))  # the session opens while all is well
        short_stalls(monkeypatch)
        between.faults, between.after = [fault] if fault in {"delay", "stall"} else [fault, fault], 20
        assert source.to_arrow().equals(OLD)
        assert not between.faults


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_writing_over_a_broken_network_arrives_once(
    url: str, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    open_warehouse(url).write("t", OLD)
    with proxy(bigquery.rest) as between:
        for name, value in bigquery.variables(rest=between.port).items():
            monkeypatch.setenv(name, value)
        between.faults, between.after = [fault, "delay", fault], 100
        short_stalls(monkeypatch)
        warehouse = open_warehouse(f"{url}?patience=120")
        assert warehouse.write("t", OLD, mode="append", commit="run") == 3
        assert warehouse.write("t", OLD, mode="append", commit="run") == 0
        assert not between.faults
        assert open_warehouse(url).source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2


@pytest.mark.parametrize(
    ("mode", "asked"), [("append", b"INSERT INTO"), ("replace", b"CREATE OR REPLACE"), ("append", b"PAR1")]
)
def test_answer_that_is_lost_doubles_no_rows(
    url: str, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch, mode: str, asked: bytes
) -> None:
    open_warehouse(url).write("t", OLD)
    rows = OLD if mode == "replace" else pa.concat_tables([OLD, OLD])
    with proxy(bigquery.rest) as between:
        for name, value in bigquery.variables(rest=between.port).items():
            monkeypatch.setenv(name, value)
        between.faults, between.on = ["truncate"], asked
        warehouse = open_warehouse(f"{url}?patience=120")
        if asked == b"PAR1":
            # The server does not know a load job's id twice: that is seen before it is visible.
            with pytest.raises(WarehouseError, match="arrived"):
                warehouse.write("t", OLD, mode=mode)
            rows = OLD
        else:
            warehouse.write("t", OLD, mode=mode)
        assert open_warehouse(url).source("t").to_arrow().equals(rows.combine_chunks())


def test_network_that_stays_away_is_one_error_after_the_patience(
    url: str, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepless(monkeypatch)
    with proxy(bigquery.rest) as between:
        for name, value in bigquery.variables(rest=between.port).items():
            monkeypatch.setenv(name, value)
        between.faults = ["refuse"] * 100
        with pytest.raises(WarehouseError, match="does not answer"):
            open_warehouse(f"{url}?patience=120").tables()
        assert between.seen > 1


# --- Ray --------------------------------------------------------------------------------------------------------


def test_ray_tasks_read_the_streams_and_bring_their_errors(
    url: str, bigquery: Emulator, tmp_path: Path
) -> None:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": bigquery.variables()},
    )
    try:
        warehouse = open_warehouse(url)
        warehouse.write("t", {"n": range(100_000), "text": [f"{i:x}" for i in range(100_000)]})
        source = warehouse.source("t", columns=["n"], where=[("n", ">=", 100)])
        data = source.to_ray()
        assert data.schema().names == ["n"]
        assert warehouse.write("copy", data) == 99_900
        assert sorted(warehouse.source("copy").to_arrow()["n"].to_pylist()) == list(range(100, 100_000))
        ordered = warehouse.source("SELECT n FROM t WHERE n < 3 ORDER BY n DESC").to_ray()
        assert [row["n"] for row in ordered.take_all()] == [2, 1, 0]
        assert warehouse.source("t", where=[("n", "<", 0)]).to_ray().count() == 0
        session = source._session(2)
        lost = [f"{name}-gone" for name in session.streams]
        remote = ray.remote(_read_lost).remote(session, lost[0])
        with pytest.raises(WarehouseError, match="not found"):
            ray.get(remote)
    finally:
        ray.shutdown()


def _read_lost(session: object, stream: str) -> None:
    from sp_ray_ml.data._bigquery_streams import read_stream

    with session.place.reader() as client:  # type: ignore[attr-defined]
        list(read_stream(session, stream, client))  # type: ignore[arg-type]


def test_million_rows_come_back_as_they_were_in_bounded_batches(url: str) -> None:
    rows = 1_000_000
    block = pa.table(
        {
            "id": range(rows // 10),
            "name": pa.array([None if i % 7 == 0 else f"Ünïcode 漢字 {i}" for i in range(rows // 10)]),
            "score": pa.array([None if i % 5 == 0 else i / 3 for i in range(rows // 10)], pa.float32()),
        }
    )

    def batches() -> object:
        for part in range(10):
            ids = pa.array(range(part * rows // 10, (part + 1) * rows // 10))
            yield from block.set_column(0, "id", ids).to_batches()

    warehouse = open_warehouse(f"{url}?streams=4")
    source = Source("big", block.schema, batches)  # type: ignore[arg-type]
    assert warehouse.write("big", source, commit="x") == rows
    read = warehouse.source("big")
    sizes = [batch.num_rows for batch in read.batches()]
    assert sum(sizes) == rows
    assert max(sizes) <= 131_072
    back = read.to_arrow()
    assert back.equals(read.to_arrow())  # the same order, each time it is read
    assert back.sort_by("id").combine_chunks().equals(source.to_arrow().combine_chunks())
