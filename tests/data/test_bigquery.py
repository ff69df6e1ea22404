"""BigQuery keeps the contract of warehouses, on bqemulator 1.4.

What that server lacks, and what follows for these tests:
- names of tables with other signs than ASCII letters, digits, dashes and underscores (BigQuery has more of them):
  what it says is kept below;
- `tables.get` after `INSERT` and `DELETE` says what it said before: a fingerprint sees only whole tables change;
- columns of BIGNUMERIC (its engine has 38 digits): only queries make some;
- GEOGRAPHY as text when it is read, as BigQuery sends it; JSON columns of tables made by a query (they become text);
- destination tables of queries cannot be read through the Storage Read API: their rows come through REST;
- `selected_fields` and `row_restriction` refuse what BigQuery takes (letters that are not ASCII, semicolons): rows
  and columns are then picked out here;
- `ReadRows` sends a stream from its beginning whatever its offset;
- dry runs cost nothing and name no tables; expirations, snapshots of reads, labels and 409 for a job's id used twice.
Those that matter are covered by recorded answers in `test_bigquery_recorded.py`, tables with names in any language
among them. A million rows, kills in the middle of a write and broken networks are in `test_bigquery_failures.py`.
Lists that are null or have nulls in them are no lack of the emulator's: BigQuery has none.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.errors import DataError, WarehouseError
from sp_ray_ml.testing import WarehouseContract
from tests.bigquery import Emulator, bigquery
from tests.recorded_bigquery import sleepless

__all__ = ["bigquery"]


@pytest.mark.slow
class TestBigQuery(WarehouseContract):
    ordered = False
    null_lists = False
    other_names = ('quo"te', "semi;colon--", "it's", "a*b?[c]")

    @pytest.fixture(autouse=True)
    def _server(self, bigquery: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = bigquery.use(monkeypatch) + "?patience=60"

    def make(self, tmp_path: Path) -> Warehouse:
        return open_warehouse(self.url)

    def quoted(self, name: str) -> str:
        return f"`{name}`"

    @pytest.mark.parametrize("name", ["order", "with-dash", "n1", *other_names])
    def test_any_name_will_do(self, warehouse: Warehouse, name: str) -> None:
        super().test_any_name_will_do(
            warehouse, name
        )  # without the letters that are BigQuery's, not the emulator's

    def test_fingerprint_changes_with_the_data_only(self, warehouse: Warehouse) -> None:
        before = warehouse.fingerprint("people")
        warehouse.source("people").to_arrow()
        assert warehouse.fingerprint("people") == before
        warehouse.write("people", warehouse.source("people"))
        assert warehouse.fingerprint("people") != before

    def test_nulls_of_every_type_of_bigquery_come_back(self, warehouse: Warehouse) -> None:
        noon = dt.datetime(2024, 2, 29, 12, 0, 0, 123456)
        json = {b"ARROW:extension:name": b"google:sqlType:json"}
        pair = pa.struct([("a", pa.int64()), ("b", pa.string())])
        columns = {
            "STRING": pa.array(["x", None, ""]),
            "BYTES": pa.array([b"\x00", None, b""]),
            "BOOL": pa.array([True, None, False]),
            "INT64": pa.array([-(2**63), None, 0]),
            "FLOAT64": pa.array([0.1, None, float("inf")]),
            "NUMERIC": pa.array([Decimal("-1.5"), None, Decimal("1e-9")], pa.decimal128(38, 9)),
            "DATE": pa.array([noon.date(), None, dt.date(1, 1, 1)]),
            "TIME": pa.array([noon.time(), None, dt.time(0)], pa.time64("us")),
            "DATETIME": pa.array([noon, None, dt.datetime(1, 1, 1)], pa.timestamp("us")),
            "TIMESTAMP": pa.array([noon, None, dt.datetime(1, 1, 1)], pa.timestamp("us", "UTC")),
            "JSON": pa.array(['{"a":null}', None, "null"]),
            "STRUCT": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": None}], pair),
            "ARRAY": pa.array([[{"a": None, "b": "x"}], [], [{"a": 2, "b": None}]], pa.list_(pair)),
        }
        fields = [pa.field(n, c.type, metadata=json if n == "JSON" else None) for n, c in columns.items()]
        table = pa.table(list(columns.values()), schema=pa.schema(fields))
        nothing = pa.table(
            [pa.array([[]] * 3, f.type) if f.name == "ARRAY" else pa.nulls(3, f.type) for f in fields],
            schema=table.schema,
        )
        for rows in (table, nothing):
            warehouse.write("typed", rows)
            back = warehouse.source("typed").to_arrow()
            for name in columns:
                assert back[name].type == rows[name].type, name
                assert back[name].to_pylist() == rows[name].to_pylist(), name

    def test_json_inside_lists_and_structs_comes_back(self, warehouse: Warehouse) -> None:
        json = {b"ARROW:extension:name": b"google:sqlType:json"}
        pair = pa.struct([pa.field("doc", pa.string(), metadata=json), pa.field("n", pa.int64())])
        columns = {
            "docs": pa.array([['{"a":2}', "[1]"], []]),
            "pair": pa.array([{"doc": '{"b":1}', "n": 1}, None], pair),
            "pairs": pa.array([[{"doc": None, "n": 2}, {"doc": "3", "n": None}], []], pa.list_(pair)),
        }
        fields = [pa.field(n, c.type, metadata=json if n == "docs" else None) for n, c in columns.items()]
        rows = pa.table(list(columns.values()), schema=pa.schema(fields))
        for mode in ("replace", "append"):
            warehouse.write("nested", rows, mode=mode)
        back = warehouse.source("nested").to_arrow()
        assert back.to_pydict() == {name: column.to_pylist() * 2 for name, column in columns.items()}
        assert back.schema.equals(rows.schema, check_metadata=True)

    def test_nulls_of_bignumeric_come_from_queries_and_the_emulator_has_no_such_columns(
        self, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Columns of it are in `test_bigquery_recorded.py`, writes in `test_bigquery_staging.py`.
        sql = "SELECT IF(id = 1, PARSE_BIGNUMERIC('1.5'), NULL) AS big FROM people WHERE id < 3 ORDER BY id"
        back = warehouse.source(sql).to_arrow()["big"]
        assert back.to_pylist() == [Decimal("1.5"), None]
        big = pa.table({"big": pa.array([Decimal(1), None], pa.decimal256(76, 38))})
        sleepless(monkeypatch)
        with pytest.raises(WarehouseError, match="An internal error occurred"):
            warehouse.write("big", big)
        assert warehouse.tables() == ["people"]

    @pytest.mark.parametrize("name", ["Événements", "漢字", "with space"])
    def test_names_that_bigquery_has_and_the_emulator_does_not_are_told_by_its_message(
        self, warehouse: Warehouse, name: str
    ) -> None:
        # That ours asks for them rightly is in `test_bigquery_recorded.py`.
        with pytest.raises(DataError, match=f"Invalid table id for SQL: '{name}'"):
            warehouse.write(name, {"n": [1]})
        assert warehouse.tables() == ["people"]
