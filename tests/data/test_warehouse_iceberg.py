"""Iceberg keeps the contract, and what it promises beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.errors import ConfigError, DataError, LockedError, WarehouseError
from sp_ray_ml.testing import WarehouseContract
from sp_ray_ml.testing.warehouse import _typed

pytestmark = pytest.mark.slow
ROWS = pa.table({"n": [1, 2, 3], "text": ["a", None, "ü"]})


class TestIceberg(WarehouseContract):
    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(f"iceberg://{tmp_path}/house")

    def test_types_values_and_nulls_come_back(self, warehouse: Warehouse) -> None:
        table = _typed()
        with pytest.raises(DataError, match="'nested' has nulls among lists of structs"):
            warehouse.write("typed", table)
        last = table.schema.get_field_index("nested")
        filled = pa.array([[{"a": [1]}], [], [{"a": None}, {"a": []}]], table["nested"].type)
        table = table.set_column(last, "nested", filled)
        warehouse.write("typed", table)
        assert warehouse.source("typed").to_arrow().equals(table.combine_chunks())


@pytest.fixture
def house(tmp_path: Path) -> Warehouse:
    warehouse = open_warehouse(f"iceberg://{tmp_path}/house")
    warehouse.write("t", ROWS, commit="first")
    return warehouse


def test_snapshot_that_was_opened_is_read_whatever_is_written_meanwhile(house: Warehouse) -> None:
    source = house.source("t")
    house.write("t", ROWS, mode="append")
    house.write("t", {"n": [9], "text": ["z"]})
    assert source.to_arrow().equals(ROWS)
    assert house.source("t").to_arrow()["n"].to_pylist() == [9]


def test_rows_that_were_replaced_by_other_columns_are_read_to_their_end_and_go_after_a_day(
    house: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, query = house.source("t"), house.source("SELECT n FROM t ORDER BY n")
    for other in ("one", "two"):
        house.write("t", {other: [1]}, commit=other)
    house.write("t", {"two": [2]}, mode="append")
    assert source.to_arrow().equals(ROWS)
    assert query.to_arrow()["n"].to_pylist() == [1, 2, 3]
    assert house.tables() == ["t"]
    assert house.source("t").to_arrow().to_pydict() == {"two": [1, 2]}
    places = tmp_path / "house" / "data"
    assert len(list(places.iterdir())) == 3
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    house.write("t", {"two": [3]}, mode="append")
    assert len(list(places.iterdir())) == 1
    assert house.source("t").to_arrow().to_pydict() == {"two": [1, 2, 3]}


def test_pyiceberg_itself_reads_what_is_written_and_its_writes_are_read(
    house: Warehouse, tmp_path: Path
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog(
        "sp_ray_ml", uri=f"sqlite:///{tmp_path}/house/catalog.db", warehouse=f"file://{tmp_path}"
    )
    table = catalog.load_table(("default", "t"))
    assert table.scan().to_arrow().to_pydict() == ROWS.to_pydict()
    with table.update_schema() as update:
        update.add_column("more", table.schema().find_type("n"))
    table.append(pa.table({"n": [4], "text": ["d"], "more": [5]}))
    table.delete("n = 2")
    catalog.engine.dispose()
    back = house.source("t").to_arrow()
    assert sorted(back.to_pylist(), key=lambda row: row["n"]) == [
        {"n": 1, "text": "a", "more": None},
        {"n": 3, "text": "ü", "more": None},
        {"n": 4, "text": "d", "more": 5},
    ]


def shared_url(tmp_path: Path) -> str:
    place = f"{tmp_path}/house"
    return f"iceberg://{place}?catalog=sqlite:///{place}/catalog.db&warehouse=file://{place}/data"


def test_of_two_writers_without_a_common_lock_one_is_told(house: Warehouse, tmp_path: Path) -> None:
    one, two = open_warehouse(shared_url(tmp_path)), open_warehouse(shared_url(tmp_path))

    def batches():  # type: ignore[no-untyped-def]
        two.write("t", {"n": [7], "text": ["two"]}, mode="append", commit="two")
        yield from ROWS.to_batches()

    from sp_ray_ml.data import Source

    with pytest.raises(LockedError, match="another writer"):
        one.write("t", Source("slow", ROWS.schema, batches), mode="append", commit="one")
    assert house.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3, 7]
    assert one.write("t", ROWS, mode="append", commit="one") == 3
    assert two.write("t", ROWS, mode="append", commit="two") == 0


def writer(url: str, mode: str) -> subprocess.Popen[str]:
    """A process that has written the half, and waits; what replaces the table has another layout."""
    code = f"""
import sys, pyarrow as pa
from sp_ray_ml.data import Source, open_warehouse
schema = pa.schema({{"n": pa.int64(), "text": pa.string()}})
def batches():
    for i in range(3):
        yield pa.record_batch({{"n": range(300_000), "text": ["x"] * 300_000}}, schema=schema)
    print("half-way", flush=True)
    sys.stdin.readline()
by = None if {mode!r} == "append" else "text"
open_warehouse({url!r}).write("t", Source("s", schema, batches), mode={mode!r}, partition_by=by, commit="x")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "half-way"
    return process


def rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in folder.rglob("*.parquet"))


def test_rows_whose_snapshot_was_expired_are_no_leftovers(house: Warehouse, tmp_path: Path) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    house.write("t", {"n": [4], "text": ["d"]}, mode="append")
    catalog = SqlCatalog(
        "sp_ray_ml", uri=f"sqlite:///{tmp_path}/house/catalog.db", warehouse=f"file://{tmp_path}"
    )
    table = catalog.load_table(("default", "t"))
    table.maintenance.expire_snapshots().by_id(table.snapshots()[0].snapshot_id).commit()
    catalog.engine.dispose()
    house.write("t", {"n": [5], "text": ["e"]}, mode="append")
    assert house.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3, 4, 5]


def test_queries_see_one_snapshot_and_push_columns_and_filters_into_its_files(house: Warehouse) -> None:
    query = house.source("SELECT n FROM t WHERE n > 1 ORDER BY n DESC")
    before = house.fingerprint("SELECT n FROM t")
    house.write("t", ROWS, mode="append")
    assert query.to_arrow().to_pydict() == {"n": [3, 2]}
    assert house.fingerprint("SELECT n FROM t") != before
    plan = house.source("SELECT count(*) AS c, max(text) AS last FROM t WHERE n = 1")
    assert plan.to_arrow().to_pydict() == {"c": [2], "last": ["a"]}
    from sp_ray_ml.data._iceberg_sql import iceberg_connection, view_of

    views = {"t": view_of(house.source("t"))}  # type: ignore[arg-type]
    assert len(views["t"].files or []) == 2
    connection = iceberg_connection(views)
    told = connection.execute("EXPLAIN SELECT n FROM t WHERE n > 1").fetchone()[1]
    connection.close()
    assert "Filters" in told
    assert "text" not in told


def test_queries_over_tables_that_others_changed_see_them_as_they_are(
    house: Warehouse, tmp_path: Path
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog(
        "sp_ray_ml", uri=f"sqlite:///{tmp_path}/house/catalog.db", warehouse=f"file://{tmp_path}"
    )
    table = catalog.load_table(("default", "t"))
    with table.update_schema() as update:
        update.rename_column("text", "name")
        update.add_column("more", table.schema().find_type("n"))
    table.append(pa.table({"n": [4], "name": ["d"], "more": [5]}))
    table.delete("n = 2")
    catalog.engine.dispose()
    query = "SELECT one.n, two.name, two.more FROM t AS one JOIN t AS two USING (n) ORDER BY n"
    assert house.source(query).to_arrow().to_pylist() == [
        {"n": 1, "name": "a", "more": None},
        {"n": 3, "name": "ü", "more": None},
        {"n": 4, "name": "d", "more": 5},
    ]


@pytest.mark.parametrize("mode", ["replace", "append", "partition"])
def test_killed_writer_leaves_the_old_table_and_nothing_after_the_next(
    house: Warehouse, tmp_path: Path, mode: str
) -> None:
    killed = writer(house.url, mode)
    with pytest.raises(LockedError, match=f"process {killed.pid}"):
        house.write("t", ROWS)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    places = tmp_path / "house" / "data"
    assert len(list(places.iterdir())) == (2 if mode == "replace" else 1)
    assert house.tables() == ["t"]
    assert house.source("t").to_arrow().equals(ROWS)
    assert house.write("t", ROWS, mode="append", commit="x") == 3
    assert len(list(places.iterdir())) == 1
    assert rows_in(places) == 6  # also of an append, whose files lay beside the table's own


def test_what_a_killed_writer_left_in_a_shared_catalogue_goes_after_a_day(
    house: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_warehouse(shared_url(tmp_path))
    killed = writer(shared.url, "replace")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    places = tmp_path / "house" / "data"
    shared.write("t", ROWS, mode="append")
    assert len(list(places.iterdir())) == 2  # it may still be at work, on another machine
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    shared.write("t", ROWS, mode="append")
    assert len(list(places.iterdir())) == 1
    assert shared.source("t").num_rows == 9


def test_urls_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'catalogue'"):
        open_warehouse(f"iceberg://{tmp_path}?catalogue=x")
    with pytest.raises(ConfigError, match="no folder"):
        open_warehouse("iceberg://")
    with pytest.raises(WarehouseError, match="no such Iceberg catalogue"):
        open_warehouse(f"iceberg://{tmp_path}/none").tables()
    assert list(tmp_path.iterdir()) == []


def test_million_rows_come_back_in_order_and_bounded_batches(house: Warehouse) -> None:
    rows = pa.table({"n": pa.array(range(1_000_000)), "é": ["ü", None] * 500_000})
    assert house.write("many", rows) == 1_000_000
    source = house.source("many")
    assert source.num_rows == 1_000_000
    assert max(batch.num_rows for batch in source.batches()) <= 65_536
    assert source.to_arrow().combine_chunks().equals(rows.combine_chunks())
