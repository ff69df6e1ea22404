"""URLs, foreign Parquet folders and foreign DuckDB files."""

from __future__ import annotations

import json
import resource
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.data import Source, as_source, open_warehouse
from sp_ray_ml.data._duckdb import DuckDBWarehouse
from sp_ray_ml.data._parquet import ParquetWarehouse
from sp_ray_ml.errors import ConfigError, DataError, StorageError, WarehouseError

ROWS = pa.table({"n": [1, 2, 3]})

# --- URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind", "opened"),
    [
        ("duckdb:///out.duckdb", DuckDBWarehouse, "duckdb:///out.duckdb"),
        ("duckdb:////data/out.duckdb", DuckDBWarehouse, "duckdb:////data/out.duckdb"),
        ("some/new.duckdb", DuckDBWarehouse, "duckdb:///some/new.duckdb"),
        ("new.db", DuckDBWarehouse, "duckdb:///new.db"),
        ("parquet://folder/in", ParquetWarehouse, "parquet://folder/in"),
        ("parquet:///folder", ParquetWarehouse, "parquet:///folder"),
        ("file:///folder", ParquetWarehouse, "parquet:///folder"),
        ("folder", ParquetWarehouse, "parquet://folder"),
        ("s3://bucket/some/folder/", ParquetWarehouse, "s3://bucket/some/folder"),
        ("gs://bucket", ParquetWarehouse, "gs://bucket"),
        ("memory://folder", ParquetWarehouse, "memory://folder"),
    ],
)
def test_url_finds_its_warehouse(url: str, kind: type, opened: str) -> None:
    warehouse = open_warehouse(url)
    assert type(warehouse) is kind
    assert warehouse.url == opened
    assert open_warehouse(warehouse.url).url == opened


def test_duckdb_file_is_known_by_its_content(tmp_path: Path) -> None:
    open_warehouse(tmp_path / "x.duckdb").write("t", ROWS)
    (tmp_path / "x.duckdb").rename(tmp_path / "warehouse")
    assert open_warehouse(tmp_path / "warehouse").tables() == ["t"]


def test_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"did you mean duckdb\?.*duckdb://.*file://.*gs://.*parquet://.*s3://"
    ):
        open_warehouse("dukdb:///x")
    with pytest.raises(ConfigError, match="three slashes"):
        open_warehouse("duckdb://x.duckdb")
    with pytest.raises(ConfigError, match="empty"):
        open_warehouse("")


def test_single_table_is_no_warehouse(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="its folder"):
        open_warehouse(tmp_path / "t.parquet")


# --- Parquet that others wrote ------------------------------------------------------------------------------------


def test_file_and_folder_are_tables(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "single.parquet")
    (tmp_path / "many" / "sub").mkdir(parents=True)
    pq.write_table(ROWS, tmp_path / "many" / "a.parquet")
    pq.write_table(ROWS, tmp_path / "many" / "sub" / "b.parquet")
    pq.write_table(ROWS, tmp_path / "many" / "_metadata.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no table")
    warehouse = open_warehouse(tmp_path)
    assert warehouse.tables() == ["many", "single"]
    assert warehouse.source("many").num_rows == 6
    assert warehouse.source("many").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2
    assert warehouse.source("SELECT count(*) AS c FROM many, single").to_arrow().to_pydict() == {"c": [18]}


def test_folder_names_are_columns(tmp_path: Path) -> None:
    for country, year, n in (("de", 2023, 1), ("de", 2024, 2), ("fr", 2024, 3)):
        folder = tmp_path / "t" / f"country={country}" / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"n": [n]}), folder / "x.parquet")
    warehouse = open_warehouse(tmp_path)
    source = warehouse.source("t", where=[("country", "==", "de"), ("year", ">", 2023)])
    assert source.to_arrow().to_pydict() == {"n": [2], "country": ["de"], "year": [2024]}
    assert warehouse.source("SELECT sum(n) AS s FROM t WHERE year = 2024").to_arrow().to_pydict() == {
        "s": [5]
    }
    with pytest.raises(DataError, match="partitioned"):
        warehouse.write("t", source, mode="append")
    warehouse.write("t", warehouse.source("t"))
    assert warehouse.source("t").to_arrow().num_rows == 3
    assert not list((tmp_path / "t").glob("country=*"))


@pytest.mark.slow
def test_ray_gives_folder_columns_the_types_of_the_source(tmp_path: Path) -> None:
    import ray

    places = [("2023", "de", 1), ("2024", "007", 2), ("2024", "__HIVE_DEFAULT_PARTITION__", 3)]
    for year, country, n in places:
        folder = tmp_path / "t" / f"year={year}" / f"country={country}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"n": [n]}), folder / "x.parquet")
    source = open_warehouse(tmp_path).source("t", where=[("year", ">", 2023)])
    rows = source.to_arrow().sort_by("n")
    assert rows.to_pydict() == {"n": [2, 3], "year": [2024, 2024], "country": ["007", None]}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = pa.concat_tables(source.to_ray().iter_batches(batch_size=None, batch_format="pyarrow"))
    finally:
        ray.shutdown()
    assert found.sort_by("n").combine_chunks().equals(rows.combine_chunks())


@pytest.mark.parametrize("column", ["_day", ".day"])
def test_partitions_whose_names_begin_as_hidden_ones_do_are_cleaned(tmp_path: Path, column: str) -> None:
    warehouse = open_warehouse(tmp_path)
    for n in (1, 2):
        warehouse.write("t", {"n": [n, n], column: [1, 2]}, mode="partition", partition_by=column)
    assert sorted(warehouse.source("t").to_arrow()["n"].to_pylist()) == [2, 2]
    assert len(list((tmp_path / "t").rglob("*.parquet"))) == 2
    warehouse.write("t", {"n": [3], column: [3]}, partition_by=column)
    assert len(list((tmp_path / "t").rglob("*.parquet"))) == 1


def test_append_to_a_single_file_keeps_it(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "t.parquet")
    warehouse = open_warehouse(tmp_path)
    before = warehouse.fingerprint("t")
    warehouse.write("t", ROWS, mode="append", commit="a")
    assert (tmp_path / "t.parquet").is_file()
    assert warehouse.tables() == ["t"]
    assert warehouse.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2
    assert warehouse.fingerprint("t") != before
    warehouse.write("t", ROWS)
    assert not (tmp_path / "t.parquet").exists()
    assert warehouse.source("t").to_arrow().equals(ROWS)


def test_replacing_a_single_file_takes_its_place(tmp_path: Path) -> None:
    pq.write_table(ROWS, tmp_path / "t.parquet")
    warehouse = open_warehouse(tmp_path)
    warehouse.write("t", {"other": ["x"]})
    assert not (tmp_path / "t.parquet").exists()
    assert warehouse.source("t").to_arrow().to_pydict() == {"other": ["x"]}


def test_files_that_the_manifest_does_not_name_are_not_read(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path)
    warehouse.write("t", ROWS)
    pq.write_table(
        ROWS, tmp_path / "t" / "part-000002-0000.parquet"
    )  # a writer killed just before its commit
    assert warehouse.source("t").num_rows == 3
    warehouse.write("t", ROWS, mode="append")
    assert warehouse.source("t").to_arrow().num_rows == 6
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 2


def test_table_of_an_earlier_version_keeps_its_rows_and_commits(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for number in (3, 4):  # the second is of a writer that was killed just before its commit
        pq.write_table(ROWS, folder / f"part-{number:06d}-0000.parquet")
    state = {
        "version": 3,
        "files": [{"path": "part-000003-0000.parquet", "rows": 3}],
        "commits": ["nightly"],
    }
    (folder / "_manifest.json").write_text(json.dumps(state))
    warehouse = open_warehouse(tmp_path)
    assert warehouse.source("t").to_arrow().equals(ROWS)
    assert warehouse.write("t", ROWS, mode="append", commit="nightly") == 0
    assert warehouse.write("t", ROWS, mode="append", commit="other") == 3
    assert warehouse.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2
    assert warehouse.write("t", ROWS, mode="append", commit="nightly") == 0
    assert sorted(file.name for file in (folder / "_manifests").iterdir()) == ["00000004.json"]
    assert not (folder / "_manifest.json").exists()


def test_partitions_of_earlier_versions_are_replaced_whatever_their_folders_are_called(
    tmp_path: Path,
) -> None:
    warehouse = open_warehouse(tmp_path)
    warehouse.write("t", {"n": [1, 2], "part": ["NULL", "x"]}, partition_by="part")
    named, plain = tmp_path / "t" / "part=%4EULL", tmp_path / "t" / "part=NULL"
    assert named.is_dir()
    named.rename(plain)
    manifest = tmp_path / "t" / "_manifests" / "00000001.json"
    manifest.write_text(manifest.read_text().replace("%4EULL", "NULL"))
    assert warehouse.source("t").to_arrow().sort_by("n")["part"].to_pylist() == ["NULL", "x"]
    warehouse.write("t", {"n": [3], "part": ["NULL"]}, mode="partition", partition_by="part")
    assert warehouse.source("t").to_arrow().sort_by("n").to_pydict() == {"n": [2, 3], "part": ["x", "NULL"]}
    assert not plain.exists()


def test_digits_that_sql_would_lose_are_refused_where_a_query_reads_them(tmp_path: Path) -> None:
    wide = pa.array([Decimal("1.5"), None], pa.decimal256(50, 5))
    rows = pa.table({"n": [1, 2], "wide": wide, "day": [1, 2]})
    warehouse = open_warehouse(tmp_path)
    for by in (None, "day"):
        warehouse.write("t", rows, partition_by=by)
        assert warehouse.source("t").to_arrow().sort_by("n").equals(rows)
        assert warehouse.source("SELECT sum(n) AS s FROM t").to_arrow().to_pydict() == {"s": [3]}
        with pytest.raises(WarehouseError, match=r"'wide' of type decimal256.* more than 38 digits"):
            warehouse.source("SELECT max(wide) AS most FROM t").to_arrow()


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    open_warehouse(tmp_path / "p").write("t", ROWS)
    open_warehouse(tmp_path / "d.duckdb").write("t", ROWS)
    before = sorted(tmp_path.rglob("*"))
    for name in ("p", "d.duckdb"):
        warehouse = open_warehouse(tmp_path / name)
        warehouse.source("t").to_arrow()
        warehouse.source("SELECT * FROM t ORDER BY n").to_arrow()
        warehouse.fingerprint("t")
    assert sorted(tmp_path.rglob("*")) == before


def test_null_vectors_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path)
    warehouse.write("t", ROWS)
    vectors = pa.table({"v": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))})
    with pytest.raises(DataError, match="'v' has nulls"):
        warehouse.write("t", vectors)
    assert warehouse.source("t").to_arrow().equals(ROWS)


def test_replaced_while_read_is_said(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path)
    warehouse.write("t", ROWS)
    source = warehouse.source("t")
    warehouse.write("t", ROWS)
    with pytest.raises(StorageError, match="replaced or removed while it was read"):
        source.to_arrow()


# --- DuckDB files that others wrote ---------------------------------------------------------------------------------


def test_views_and_schemas_are_read(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n; CREATE VIEW v AS SELECT n + 1 AS n FROM t")
        connection.execute("CREATE SCHEMA mart; CREATE TABLE mart.t AS SELECT 3 AS n")
    warehouse = open_warehouse(tmp_path / "x.duckdb")
    assert warehouse.tables() == ["mart.t", "t", "v"]
    assert [warehouse.source(name).to_arrow()["n"].to_pylist() for name in warehouse.tables()] == [
        [3],
        [1],
        [2],
    ]
    with pytest.raises(WarehouseError, match="View"):
        warehouse.write("v", ROWS)


def test_constraints_hold_and_are_told(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute("CREATE TABLE t (n BIGINT PRIMARY KEY)")
    warehouse = open_warehouse(tmp_path / "x.duckdb")
    warehouse.write("t", ROWS, mode="append")
    with pytest.raises(DataError, match="do not fit"):
        warehouse.write("t", ROWS, mode="append")
    assert warehouse.source("t").num_rows == 3


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path / "x.duckdb")
    warehouse.write("t", ROWS)
    with pytest.raises(DataError, match="upper from lower"):
        warehouse.write("T", ROWS)
    with pytest.raises(DataError, match="differ only in case"):
        warehouse.write("u", {"a": [1], "A": [2]})


def test_nanoseconds_that_would_be_cut_are_an_error(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path / "x.duckdb")
    fine = pa.table({"at": pa.array([1_000], pa.timestamp("ns", "UTC"))})
    assert warehouse.write("t", fine) == 1
    with pytest.raises(DataError, match="'at'"):
        warehouse.write("t", pa.table({"at": pa.array([1_001], pa.timestamp("ns", "UTC"))}))


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("at", pa.timestamp("ns", "UTC"))]),
        pa.list_(pa.timestamp("ns", "UTC")),
        pa.list_(pa.struct([("at", pa.large_list(pa.timestamp("ns", "UTC")))])),
    ],
    ids=str,
)
def test_nanoseconds_that_would_be_cut_are_an_error_at_any_depth(tmp_path: Path, kind: pa.DataType) -> None:
    def inside(kind: pa.DataType, moment: int) -> Any:
        if pa.types.is_timestamp(kind):
            return moment
        inner = inside(kind.field(0).type, moment)
        return {"at": inner} if pa.types.is_struct(kind) else [inner]

    warehouse = open_warehouse(tmp_path / "x.duckdb")
    assert warehouse.write("t", pa.table({"x": pa.array([inside(kind, 1_000), None], kind)})) == 2
    with pytest.raises(DataError, match="'x'"):
        warehouse.write("t", pa.table({"x": pa.array([inside(kind, 1_001)], kind)}))
    assert warehouse.source("t").to_arrow().num_rows == 2


def test_durations_are_refused_by_duckdb_which_would_make_intervals_of_them(tmp_path: Path) -> None:
    warehouse = open_warehouse(tmp_path / "x.duckdb")
    for kind in (pa.duration("ns"), pa.struct([("took", pa.duration("s"))])):
        with pytest.raises(DataError, match=r"'took' is of type duration.*int64"):
            warehouse.write("t", pa.schema([("took", kind)]).empty_table())


def test_reads_beside_a_notebooks_own_connection(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        warehouse = open_warehouse(tmp_path / "x.duckdb")
        assert warehouse.source("t").to_arrow().to_pydict() == {"n": [1]}
        warehouse.write("u", ROWS)
        assert connection.execute("SELECT count(*) FROM u").fetchone() == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.duckdb", "x"])
def test_long_stream_takes_little_memory(tmp_path: Path, name: str) -> None:
    rows = 6_000_000

    def batches():  # type: ignore[no-untyped-def]
        for at in range(0, rows, 250_000):
            yield pa.record_batch(
                {"n": pa.array(range(at, at + 250_000)), "x": pa.array(range(at, at + 250_000))}
            )

    warehouse = open_warehouse(tmp_path / name)
    warehouse.write("t", Source("s", pa.schema({"n": pa.int64(), "x": pa.int64()}), batches))
    next(iter(warehouse.source("t").batches()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(batch.num_rows for batch in as_source(warehouse.source("t")).batches())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert total == rows
    assert grown < rows * 16 * 0.75


@pytest.mark.parametrize("name", ["x.duckdb", "x"])
@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [("==", 2**64 - 1, [2**64 - 1]), (">", -1, [0, 2**64 - 1]), (">=", 2**64, []), ("<", 0.5, [0])],
)
def test_conditions_reach_to_the_ends_of_unsigned_numbers(
    tmp_path: Path, name: str, operator: str, value: float, expected: list[int]
) -> None:
    warehouse = open_warehouse(tmp_path / name)
    warehouse.write("t", pa.table({"n": pa.array([0, 2**64 - 1, None], pa.uint64())}))
    assert warehouse.source("t", where=[("n", operator, value)]).to_arrow()["n"].to_pylist() == expected


# --- pushed down ------------------------------------------------------------------------------------------------


def spoil(file: Path, *, row_group: int, column: int) -> None:
    """Overwrite a column's pages of one row group: whoever reads them gets an error."""
    chunk = pq.ParquetFile(file).metadata.row_group(row_group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * chunk.total_compressed_size)


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A table of ten row groups with the columns n and text."""
    rows = pa.table({"n": range(10_000), "text": [f"text {number}" for number in range(10_000)]})
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=1_000)
    return tmp_path


@pytest.mark.parametrize("query", ["t", "SELECT * FROM t"])
def test_columns_that_are_not_asked_for_are_not_read(grouped: Path, query: str) -> None:
    for group in range(10):
        spoil(grouped / "t.parquet", row_group=group, column=1)
    warehouse = open_warehouse(grouped)
    assert warehouse.source(query, columns=["n"]).to_arrow()["n"].to_pylist() == list(range(10_000))
    assert warehouse.source("t").select(["n"]).to_arrow().num_rows == 10_000
    with pytest.raises((StorageError, WarehouseError)):
        warehouse.source(query).to_arrow()


@pytest.mark.parametrize("query", ["t", "SELECT * FROM t"])
def test_row_groups_that_the_filter_rules_out_are_not_read(grouped: Path, query: str) -> None:
    for group in range(1, 10):
        spoil(grouped / "t.parquet", row_group=group, column=0)
    warehouse = open_warehouse(grouped)
    assert warehouse.source(query, where=[("n", "<", 500)]).to_arrow().num_rows == 500
    with pytest.raises((StorageError, WarehouseError)):
        warehouse.source(query, where=[("n", "<", 1_500)]).to_arrow()


def test_a_duckdb_table_is_scanned_for_the_columns_and_rows_asked_for_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.duckdb"
    open_warehouse(file).write("t", pa.table({"n": range(10_000), "text": ["x"] * 10_000}))
    source = open_warehouse(file).source("t", columns=["n"], where=[("n", "<", 500)])
    with duckdb.connect(str(file), read_only=True) as database:
        plan = database.execute(f"EXPLAIN {source._sql}", source._values).fetchall()[0][1]  # type: ignore[attr-defined]
    assert "Filters" in plan
    assert "FILTER" not in plan  # no step of its own after the scan
    assert "text" not in plan
    assert source.to_arrow().num_rows == 500
