"""What every `Warehouse` promises, as tests. The built-in ones pass them; so does a third party's.

class TestMine(WarehouseContract):
    def make(self, tmp_path):
        return MyWarehouse(tmp_path / "mine")
"""

from __future__ import annotations

import datetime as dt
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from sp_ray_ml.data.source import Source
from sp_ray_ml.data.warehouse import Warehouse
from sp_ray_ml.errors import ColumnNotFoundError, DataError, SpRayError, TableNotFoundError, WarehouseError

__all__ = ["WarehouseContract"]

_NOON = dt.datetime(2024, 2, 29, 12, 0, 0, 123456)
_NAN = float("nan")


def _people() -> pa.Table:
    return pa.table(
        {
            "id": pa.array([5, 1, 4, 2, None], pa.int64()),
            "name": ["Ada", "Bruno", None, "Ça'va", "d\"'; DROP TABLE people; --"],
            "score": pa.array([0.1, _NAN, -2.5, None, 7.0], pa.float32()),
            "seen": pa.array(
                [_NOON + dt.timedelta(days=i) for i in range(4)] + [None], pa.timestamp("us", "UTC")
            ),
        }
    )


def _typed() -> pa.Table:
    """A column of each type that data has, with a null in each but the vectors, where Parquet has none."""
    return pa.table(
        {
            "bool": [True, False, None],
            "int8": pa.array([-128, 127, None], pa.int8()),
            "uint16": pa.array([0, 65_535, None], pa.uint16()),
            "int64": pa.array([-(2**63), 2**63 - 1, None], pa.int64()),
            "float": pa.array([0.1, math.inf, None], pa.float32()),
            "double": pa.array([0.1, -1e300, None], pa.float64()),
            "text": ["", "Ωmega — 漢字 🎧", None],
            "bytes": pa.array([b"", b"\x00\xff", None], pa.binary()),
            "date": pa.array([dt.date(1969, 7, 20), dt.date(9999, 12, 31), None], pa.date32()),
            "moment": pa.array([_NOON, dt.datetime(1900, 1, 1), None], pa.timestamp("us")),
            "utc": pa.array([_NOON, dt.datetime(1900, 1, 1), None], pa.timestamp("us", "UTC")),
            "decimal": pa.array([None, None, None], pa.decimal128(18, 4)),
            "list": pa.array([[1, None], [], None], pa.list_(pa.int32())),
            "vector": pa.array([[1.0, 2.0], [0.0, -0.0], [math.inf, 0.5]], pa.list_(pa.float32(), 2)),
            "struct": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": None}, None]),
            "nested": pa.array([[{"a": [1]}], [], None], pa.list_(pa.struct([("a", pa.list_(pa.int64()))]))),
        }
    )


def _without_null_lists(table: pa.Table) -> pa.Table:
    for name, rows in (
        ("list", [[1, -2], [], [3]]),
        ("nested", [[{"a": [1]}], [], [{"a": []}, {"a": [2, 3]}]]),
    ):
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(rows, table[name].type))
    return table


def _failing(schema: pa.Schema, rows: pa.Table, error: Exception) -> Source:
    def batches() -> Iterator[pa.RecordBatch]:
        # More rows than a warehouse holds back before it writes the first.
        for _ in range(100):
            yield from pa.concat_tables([rows] * 1_000).combine_chunks().to_batches()
        raise error

    return Source("failing", schema, batches)


class WarehouseContract(ABC):
    """Subclass it and say in `make` how to get a warehouse, and in the attributes what its engine does not have."""

    ordered: ClassVar[bool] = True
    """Whether rows of large tables come back in the order in which they were written."""
    null_lists: ClassVar[bool] = True
    """Whether a list can be null or hold nulls; otherwise a write refuses them."""
    other_names: ClassVar[Sequence[str]] = ()
    """Names that its tables cannot have; a write refuses them."""

    def quoted(self, name: str) -> str:
        """A name in its SQL."""
        return '"' + name.replace('"', '""') + '"'

    @abstractmethod
    def make(self, tmp_path: Path) -> Warehouse:
        """A new warehouse without tables, which can be written to."""

    @pytest.fixture
    def warehouse(self, tmp_path: Path) -> Warehouse:
        """The one under test, with the table `people`."""
        warehouse = self.make(tmp_path)
        warehouse.write("people", _people())
        return warehouse

    # --- what is written comes back -----------------------------------------------------------------------------

    def test_first_write_makes_the_table(self, tmp_path: Path) -> None:
        warehouse = self.make(tmp_path)
        assert warehouse.write("people", _people()) == 5
        assert warehouse.tables() == ["people"]
        assert warehouse.source("people").num_rows in {5, None}

    def test_types_values_and_nulls_come_back(self, warehouse: Warehouse) -> None:
        table = _typed()
        if not self.null_lists:
            for name in ("list", "nested"):
                with pytest.raises(DataError, match=f"'{name}'"):
                    warehouse.write("typed", table.select([name]))
            table = _without_null_lists(table)
        warehouse.write("typed", table)
        back = warehouse.source("typed").to_arrow()
        for name in table.column_names:
            assert back[name].type == table[name].type, name
            assert back[name].to_pylist() == table[name].to_pylist(), name

    def test_order_of_rows_comes_back(self, warehouse: Warehouse) -> None:
        numbers = pa.table({"n": range(300_000)})
        warehouse.write("numbers", numbers)
        back = warehouse.source("numbers").to_arrow()["n"].to_pylist()
        assert (back if self.ordered else sorted(back)) == numbers["n"].to_pylist()

    def test_time_zones_keep_the_moment(self, warehouse: Warehouse) -> None:
        there = pa.table({"at": pa.array([_NOON, None], pa.timestamp("us", "America/New_York"))})
        warehouse.write("times", there)
        back = warehouse.source("times").to_arrow()["at"]
        assert back.type.tz is not None
        assert (
            back.cast(pa.timestamp("us", "UTC")).to_pylist()
            == there["at"].cast(pa.timestamp("us", "UTC")).to_pylist()
        )

    def test_dictionaries_come_back_as_their_values(self, warehouse: Warehouse) -> None:
        coded = pa.table({"c": pa.array(["x", None, "y", "x"]).dictionary_encode()})
        warehouse.write("coded", coded)
        assert warehouse.source("coded").to_arrow()["c"].to_pylist() == ["x", None, "y", "x"]
        warehouse.write("coded", {"c": ["plain"]}, mode="append")
        assert warehouse.source("coded").to_arrow()["c"].to_pylist()[-1] == "plain"

    def test_table_without_rows_keeps_its_columns(self, warehouse: Warehouse) -> None:
        assert warehouse.write("empty", _people().slice(0, 0)) == 0
        assert "empty" in warehouse.tables()
        source = warehouse.source("empty")
        assert source.schema.equals(warehouse.schema("people"))
        assert source.to_arrow().num_rows == 0
        assert source.to_arrow().schema.equals(source.schema)
        warehouse.write("empty", _people(), mode="append")
        assert warehouse.source("empty").to_arrow().num_rows == 5

    @pytest.mark.parametrize(
        "name", ["Événements", "with space", 'quo"te', "semi;colon--", "order", "漢字", "it's", "a*b?[c]"]
    )
    def test_any_name_will_do(self, warehouse: Warehouse, name: str) -> None:
        if name in self.other_names:
            with pytest.raises(DataError):
                warehouse.write(name, {"n": [1]})
            assert warehouse.tables() == ["people"]
            return
        warehouse.write(name, pa.table({name: [1, 2], "Größe": [3, 4]}))
        assert name in warehouse.tables()
        source = warehouse.source(name, columns=[name], where=[(name, ">", 1)])
        assert source.to_arrow().to_pydict() == {name: [2]}
        if warehouse.has_sql:
            told = self.quoted(name)
            sql = f"SELECT sum({told}) AS s FROM {told}"  # noqa: S608
            assert warehouse.source(sql).to_arrow().to_pydict() == {"s": [3]}

    @pytest.mark.parametrize(
        "name", ["", "a/b", "../up", ".hidden", "_private", "a\x00b", " padded", "x" * 300]
    )
    def test_what_is_no_name_is_refused(self, warehouse: Warehouse, name: str) -> None:
        with pytest.raises(DataError):
            warehouse.write(name, _people())
        assert warehouse.tables() == ["people"]

    # --- reading ------------------------------------------------------------------------------------------------

    def test_stream_opens_again_and_beside_itself(self, warehouse: Warehouse) -> None:
        source = warehouse.source("people")
        one, two = source.batches(), source.batches()
        first = next(one)
        assert next(two)["id"].equals(first["id"])
        assert source.to_arrow().num_rows == 5

    def test_blocks_are_the_same_however_the_stream_is_cut(self, warehouse: Warehouse) -> None:
        warehouse.write("numbers", pa.table({"n": range(1_000)}))
        blocks = list(warehouse.source("numbers").blocks(300))
        assert [block.num_rows for block in blocks] == [300, 300, 300, 100]
        assert blocks[1]["n"].to_pylist() == list(range(300, 600))

    def test_consumer_that_stops_half_way_holds_nothing_open(self, warehouse: Warehouse) -> None:
        warehouse.write("numbers", pa.table({"n": range(500_000)}))
        stream = warehouse.source("numbers").batches()
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        blocks = warehouse.source("numbers").blocks(10)
        next(blocks)
        del blocks
        warehouse.write("numbers", pa.table({"n": [1]}))
        assert warehouse.source("numbers").to_arrow()["n"].to_pylist() == [1]

    def test_columns_come_in_the_order_asked_for(self, warehouse: Warehouse) -> None:
        source = warehouse.source("people", columns=["seen", "id"])
        assert source.schema.names == ["seen", "id"]
        assert source.to_arrow().column_names == ["seen", "id"]
        assert source.select(["id"]).to_arrow().to_pydict() == {"id": [5, 1, 4, 2, None]}

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ([("id", "==", 4)], [4]),
            ([("id", "!=", 4)], [5, 1, 2]),
            ([("id", ">", 2)], [5, 4]),
            ([("id", ">=", 2), ("id", "<", 5)], [4, 2]),
            ([("id", "<", 2.5)], [1, 2]),
            ([("id", "<", 2**40)], [5, 1, 4, 2]),
            ([("id", "in", [1, 2, 99])], [1, 2]),
            ([("id", "in", [])], []),
            ([("id", "in", [1, None])], [1, None]),
            ([("id", "==", None)], [None]),
            ([("id", "!=", None)], [5, 1, 4, 2]),
            ([("name", "==", "d\"'; DROP TABLE people; --")], [None]),
            ([("name", "!=", "Ada")], [1, 2, None]),
            ([("name", "in", ["Ada", "Ça'va"])], [5, 2]),
            ([("score", "==", 0.1)], [5]),
            ([("score", ">", 0.0)], [5, None]),
            ([("score", "<=", 0.1)], [5, 4]),
            ([("score", "!=", 7.0)], [5, 1, 4]),
            ([("seen", ">=", _NOON.replace(tzinfo=dt.UTC) + dt.timedelta(days=2))], [4, 2]),
            ([("seen", ">=", "2024-03-02")], [4, 2]),
            ([("seen", "<", "2024-03-01T00:00:00+02:00")], [5]),
        ],
    )  # fmt: skip
    def test_where_means_the_same_everywhere(
        self, warehouse: Warehouse, where: Any, expected: list[Any]
    ) -> None:
        source = warehouse.source("people", columns=["id"], where=where)
        assert source.to_arrow()["id"].to_pylist() == expected
        assert source.num_rows in {None, len(expected)}

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            (("price", ">", 100), [2, 3]),
            (("price", "==", 100), [1]),
            (("price", "in", [150, 0.5]), [2]),
            (("price", "<", 100.005), [0, 1]),
            (("price", "==", 99.99), [0]),
            (("price", ">=", Decimal("150.001")), [3]),
            (("price", "<", 2**70), [0, 1, 2, 3]),
            (("number", "==", 2**53 + 1), [1]),
            (("number", "in", [5, 2.5, 2**53 + 2]), [0, 2]),
            (("number", ">", 2.0**53), [1, 2, 3]),
            (("number", "<=", 5.5), [0]),
            (("number", "!=", 5.5), [0, 1, 2, 3]),
            (("number", ">", 2**70), []),
            (("number", "<", math.inf), [0, 1, 2, 3]),
            (("at", "<", "2024-02-29T12:00:00.000500"), [0]),
            (("at", ">=", "2024-02-29T12:00:00.000500"), [1, 2, 3]),
            (("at", "in", ["2024-02-29T12:00:01", "2024-02-29T12:00:00.000500"]), [1]),
        ],
    )
    def test_conditions_compare_exactly_whatever_the_values_type(
        self, warehouse: Warehouse, condition: Any, expected: list[int]
    ) -> None:
        noon = _NOON.replace(microsecond=0)
        table = pa.table(
            {
                "id": range(5),
                "price": pa.array(
                    [*map(Decimal, ("99.99", "100.00", "150.00", "150.01")), None], pa.decimal128(10, 2)
                ),
                "number": pa.array([5, 2**53 + 1, 2**53 + 2, 2**63 - 1, None], pa.int64()),
                "at": pa.array(
                    [*(noon + dt.timedelta(seconds=i) for i in range(4)), None], pa.timestamp("ms")
                ),
            }
        )
        warehouse.write("exact", table)
        source = warehouse.source("exact", columns=["id"], where=[condition])
        assert sorted(source.to_arrow()["id"].to_pylist()) == expected

    def test_where_may_use_a_column_that_is_not_read(self, warehouse: Warehouse) -> None:
        source = warehouse.source("people", columns=["name"], where=[("id", "==", 1)])
        assert source.to_arrow().to_pydict() == {"name": ["Bruno"]}

    @pytest.mark.parametrize(
        "condition",
        [("id", "~", 1), ("id", "==", "one"), ("name", "<", 3), ("seen", ">", "yesterday"), ("id", "<", None),
         ("score", "==", _NAN), ("name", "in", "Ada"), ("id", "=="), ("id", "==", [1])],
    )  # fmt: skip
    def test_wrong_condition_is_one_clear_error(self, warehouse: Warehouse, condition: Any) -> None:
        with pytest.raises(DataError):
            warehouse.source("people", where=[condition])

    def test_missing_table_names_a_near_one(self, warehouse: Warehouse) -> None:
        with pytest.raises(TableNotFoundError, match="did you mean people") as caught:
            warehouse.source("poeple")
        assert "people" in (caught.value.hint or "")
        with pytest.raises(TableNotFoundError):
            warehouse.schema("nothing")
        with pytest.raises(TableNotFoundError):
            warehouse.fingerprint("nothing")

    def test_missing_column_names_a_near_one(self, warehouse: Warehouse) -> None:
        with pytest.raises(ColumnNotFoundError, match="did you mean score"):
            warehouse.source("people", columns=["socre"])
        with pytest.raises(ColumnNotFoundError, match="did you mean score"):
            warehouse.source("people", where=[("socre", ">", 1)])
        with pytest.raises(ColumnNotFoundError):
            warehouse.source("people").select(["nope"])

    def test_names_are_never_code(self, warehouse: Warehouse) -> None:
        for attack in ('people"; DROP TABLE people; --', "people WHERE 1=1", "people --"):
            with pytest.raises(SpRayError):
                warehouse.source(attack).to_arrow()
            with pytest.raises(ColumnNotFoundError):
                warehouse.source("people", columns=[attack])
        assert warehouse.source("people").to_arrow().num_rows == 5

    # --- SQL ----------------------------------------------------------------------------------------------------

    def test_sql_reads(self, warehouse: Warehouse) -> None:
        if not warehouse.has_sql:
            pytest.skip("no SQL here")
        warehouse.write("teams", {"person": [1, 2, 5], "team": ["a", "b", "a"]})
        sql = """-- who is in which team; sorted
            SELECT team, p.id FROM people AS p JOIN teams ON person = p.id ORDER BY p.id DESC; -- that is all"""
        source = warehouse.source(sql)
        assert source.to_arrow().to_pydict() == {"team": ["a", "b", "a"], "id": [5, 2, 1]}
        assert source.select(["id"]).to_arrow().column_names == ["id"]
        narrowed = warehouse.source(sql, columns=["id"], where=[("team", "==", "b")])
        assert narrowed.to_arrow().to_pydict() == {"id": [2]}
        assert warehouse.source("WITH x AS (SELECT 1 AS one) SELECT * FROM x").to_arrow().to_pydict() == {
            "one": [1]
        }
        times = warehouse.source("SELECT max(seen) AS last FROM people").to_arrow()["last"]
        assert times.cast(pa.timestamp("us", "UTC")).to_pylist() == [
            (_NOON + dt.timedelta(days=3)).replace(tzinfo=dt.UTC)
        ]

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT 1; SELECT 2",
            "SELECT 1; DROP TABLE people",
            "DROP TABLE people",
            "DELETE FROM people WHERE id = 1",
            "INSERT INTO people SELECT * FROM people",
            "WITH x AS (SELECT 1) INSERT INTO people SELECT * FROM people",
            "CREATE TABLE other AS SELECT 1",
            "COPY people TO '/tmp/people.csv'",
            "SELECT FROM WHERE",
        ],
    )
    def test_sql_that_does_not_only_read_is_refused(self, warehouse: Warehouse, sql: str) -> None:
        if not warehouse.has_sql:
            pytest.skip("no SQL here")
        with pytest.raises(WarehouseError):
            warehouse.source(sql)
        assert warehouse.tables() == ["people"]
        assert warehouse.source("people").to_arrow().num_rows == 5

    def test_sql_errors_name_what_is_missing(self, warehouse: Warehouse) -> None:
        if not warehouse.has_sql:
            pytest.skip("no SQL here")
        with pytest.raises(TableNotFoundError, match="did you mean people"):
            warehouse.source("SELECT * FROM poeple")
        with pytest.raises(ColumnNotFoundError, match="socre"):
            warehouse.source("SELECT socre FROM people")
        people = _people()  # a query never sees the program's variables
        with pytest.raises(TableNotFoundError):
            warehouse.source("SELECT * FROM warehouse_variable")
        assert people.num_rows == 5

    # --- writing ------------------------------------------------------------------------------------------------

    def test_replace_replaces_rows_and_columns(self, warehouse: Warehouse) -> None:
        assert warehouse.write("people", {"other": ["x"]}) == 1
        assert warehouse.source("people").to_arrow().to_pydict() == {"other": ["x"]}

    def test_append_adds_rows(self, warehouse: Warehouse) -> None:
        assert warehouse.write("people", _people(), mode="append") == 5
        assert warehouse.source("people").to_arrow()["id"].to_pylist() == [5, 1, 4, 2, None] * 2
        assert warehouse.write("new", {"n": [1]}, mode="append") == 1
        assert warehouse.source("new").to_arrow().to_pydict() == {"n": [1]}

    def test_append_finds_columns_by_name(self, warehouse: Warehouse) -> None:
        warehouse.write("people", _people().select(["seen", "score", "name", "id"]), mode="append")
        back = warehouse.source("people").to_arrow()
        assert back.column_names == ["id", "name", "score", "seen"]
        assert back.slice(5)["name"].to_pylist() == _people()["name"].to_pylist()

    @pytest.mark.parametrize(
        ("rows", "named"),
        [
            (_people().drop_columns(["score"]), "score"),
            (_people().append_column("extra", pa.array([1] * 5)), "extra"),
            (_people().set_column(0, "id", pa.array(["1"] * 5)), "id"),
            (_people().set_column(2, "score", pa.array([1.0] * 5, pa.float64())), "score"),
        ],
        ids=["missing", "extra", "type", "precision"],
    )
    def test_append_that_does_not_fit_writes_nothing(
        self, warehouse: Warehouse, rows: pa.Table, named: str
    ) -> None:
        with pytest.raises(DataError, match=f"'{named}'"):
            warehouse.check("people", rows.schema, mode="append")
        with pytest.raises(DataError, match=f"'{named}'"):
            warehouse.write("people", rows, mode="append")
        assert warehouse.source("people").to_arrow().num_rows == 5

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([1_000, None], pa.timestamp("ns", "UTC")),
            pa.array([1, None], pa.timestamp("us", "Europe/Berlin")),
            pa.array([1, None], pa.timestamp("s")),
            pa.array([1, None], pa.duration("us")),
            pa.array([1, None], pa.time32("ms")),
            pa.array([86_400_000, None], pa.date64()),
            pa.array([b"ab", None], pa.binary(2)),
            pa.array([["a"], []], pa.list_(pa.large_string())),
            pa.StructArray.from_arrays([pa.array(["a", "b"]).dictionary_encode()], ["code"]),
            pa.array([1, None], pa.uint64()),
            pa.array([1, None], pa.int8()),
            pa.array([1.5, None], pa.float16()),
            pa.array([Decimal("1.5"), None], pa.decimal128(20, 6)),
        ],
        ids=lambda values: str(values.type),
    )
    def test_check_says_of_columns_what_a_write_says(self, warehouse: Warehouse, values: pa.Array) -> None:
        rows = pa.table({"n": [1, 2], "value": values})
        try:
            warehouse.check("new", rows.schema)
        except DataError as error:
            with pytest.raises(DataError, match="'value'"):
                warehouse.write("new", rows)
            assert "'value'" in str(error)  # noqa: PT017  the write said so, too
            return
        assert warehouse.write("new", rows) == 2
        for _ in range(2):
            warehouse.check("new", rows.schema, mode="append")
            assert warehouse.write("new", rows, mode="append") == 2
        warehouse.check("new", rows.schema, mode="partition", partition_by="n")

    def test_check_leaves_no_trace_where_nothing_is_yet(self, tmp_path: Path) -> None:
        warehouse = self.make(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        for mode in ("replace", "append", "partition"):
            warehouse.check("people", _people().schema, mode=mode, partition_by="id")
        with pytest.raises(DataError):
            warehouse.check("_people", _people().schema)
        with pytest.raises(DataError, match="double"):
            warehouse.check("people", pa.schema({"id": pa.int64(), "x": pa.float64()}), partition_by="x")
        assert sorted(tmp_path.rglob("*")) == before
        assert warehouse.write("people", _people()) == 5

    def test_failed_write_keeps_the_old_table(self, warehouse: Warehouse) -> None:
        before = warehouse.source("people").to_arrow()
        for mode in ("replace", "append"):
            with pytest.raises(RuntimeError, match="the source broke"):
                warehouse.write(
                    "people",
                    _failing(_people().schema, _people(), RuntimeError("the source broke")),
                    mode=mode,
                    commit="broken",
                )
            assert warehouse.source("people").to_arrow().to_pylist()[0] == before.to_pylist()[0]
            assert warehouse.source("people").to_arrow().num_rows == 5
        assert warehouse.write("people", _people(), mode="append", commit="broken") == 5

    def test_failed_first_write_leaves_no_table(self, tmp_path: Path) -> None:
        warehouse = self.make(tmp_path)
        with pytest.raises(OSError, match="gone"):
            warehouse.write("people", _failing(_people().schema, _people(), OSError("the input is gone")))
        warehouse.write("other", {"n": [1]})
        assert warehouse.tables() == ["other"]

    def test_interrupted_write_keeps_the_old_table(self, warehouse: Warehouse) -> None:
        def batches() -> Iterator[pa.RecordBatch]:
            yield from _people().to_batches()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            warehouse.write("people", Source("interrupted", _people().schema, batches))
        assert warehouse.source("people").to_arrow().num_rows == 5

    def test_stream_with_another_schema_than_declared_is_refused(self, warehouse: Warehouse) -> None:
        liar = Source("liar", pa.schema({"n": pa.int64()}), lambda: iter(pa.table({"n": ["x"]}).to_batches()))
        with pytest.raises(DataError, match="declared"):
            warehouse.write("people", liar)
        assert warehouse.source("people").to_arrow().num_rows == 5

    def test_table_can_be_rewritten_from_itself(self, warehouse: Warehouse) -> None:
        kept = warehouse.source("people", where=[("id", ">", 1)])
        assert warehouse.write("people", kept) == 3
        assert warehouse.source("people").to_arrow()["id"].to_pylist() == [5, 4, 2]
        assert warehouse.write("people", warehouse.source("people"), mode="append") == 3

    def test_commit_is_written_once(self, warehouse: Warehouse) -> None:
        assert warehouse.write("people", _people(), mode="append", commit="run-1") == 5
        assert warehouse.write("people", _people(), mode="append", commit="run-1") == 0
        assert warehouse.write("people", _people(), mode="append", commit="run-2") == 5
        assert warehouse.source("people").to_arrow().num_rows == 15
        assert warehouse.write("people", _people(), mode="replace", commit="run-3") == 5
        assert warehouse.write("people", {"other": [1]}, mode="replace", commit="run-3") == 0
        assert warehouse.source("people").to_arrow().num_rows == 5
        assert warehouse.write("second", _people(), commit="run-1") == 5  # each table has its own

    def test_replacing_a_table_forgets_what_was_committed_to_it(self, warehouse: Warehouse) -> None:
        assert warehouse.write("people", _people(), commit="run-1") == 5
        assert warehouse.write("people", _people().slice(0, 2), commit="run-2") == 2
        assert warehouse.write("people", _people(), commit="run-1") == 5
        assert warehouse.write("people", _people().slice(0, 3)) == 3
        assert warehouse.write("people", _people(), commit="run-1") == 5

    # --- partitions ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("laid_out", [True, False], ids=["partitioned", "plain"])
    def test_partition_replaces_the_values_that_occur_and_keeps_the_rest(
        self, warehouse: Warehouse, laid_out: bool
    ) -> None:
        days = [dt.date(2024, 1, day) for day in (1, 2, 2, 3)]
        old = pa.table({"n": [1, 2, 3, 4], "day": pa.array(days), "text": ["a", "b", "ü", None]})
        warehouse.write("log", old, partition_by="day" if laid_out else None)
        new = pa.table(
            {"n": [20, 50, 21], "day": [days[1], dt.date(2024, 1, 5), days[1]], "text": ["x", "y", None]}
        )
        assert warehouse.write("log", new, mode="partition", partition_by="day") == 3
        back = warehouse.source("log").to_arrow()
        assert back.schema.equals(old.schema)
        expected = pa.concat_tables([old.filter(pa.array([True, False, False, True])), new])
        assert back.sort_by("n").equals(expected.sort_by("n").combine_chunks())
        only = warehouse.source("log", columns=["n"], where=[("day", "==", days[1])])
        assert sorted(only.to_arrow()["n"].to_pylist()) == [20, 21]
        if warehouse.has_sql:
            sql = "SELECT sum(n) AS s FROM log WHERE day >= DATE '2024-01-03'"
            assert warehouse.source(sql).to_arrow().to_pydict() == {"s": [54]}

    def test_partition_of_a_table_that_is_not_there_makes_it(self, tmp_path: Path) -> None:
        warehouse = self.make(tmp_path)
        rows = {"day": [1, 2, 1], "n": [1, 2, 3]}
        assert warehouse.write("log", rows, mode="partition", partition_by="day") == 3
        assert warehouse.write("log", {"day": [1], "n": [9]}, mode="partition", partition_by="day") == 1
        assert sorted(warehouse.source("log").to_arrow()["n"].to_pylist()) == [2, 9]
        assert warehouse.write("log", {"n": [4], "day": [7]}, mode="append") == 1
        assert warehouse.write("log", pa.table(rows).slice(0, 0), mode="partition", partition_by="day") == 0
        back = warehouse.source("log").to_arrow().sort_by("n")
        assert back.to_pydict() == {"day": [2, 7, 1], "n": [2, 4, 9]}

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([3, -1, 2**40], pa.int64()),
            pa.array([3, 1, 255], pa.uint8()),
            pa.array(["", "a b/c=d%20é", "漢字 ?*[x]"]),
            pa.array(["x", "y", "x"]).dictionary_encode(),
            pa.array(["NULL", "null", "__HIVE_DEFAULT_PARTITION__"]),
            pa.array([True, False, True]),
            pa.array([dt.date(1969, 12, 31), dt.date(2024, 2, 29), dt.date(2024, 3, 1)]),
            pa.array([_NOON, dt.datetime(1900, 1, 1), None], pa.timestamp("us")).fill_null(_NOON),
            pa.array([_NOON, dt.datetime(1900, 1, 1), None], pa.timestamp("us", "UTC")).fill_null(_NOON),
        ],
        ids=["int", "uint8", "text", "dictionary", "null", "bool", "day", "moment", "utc"],
    )  # fmt: skip
    def test_values_of_partitions_come_back_exactly(self, warehouse: Warehouse, values: pa.Array) -> None:
        rows = pa.table({"n": [0, 1, 2], "part": values})
        warehouse.write("parts", rows, partition_by="part")
        warehouse.write("parts", rows.slice(2), mode="partition", partition_by="part")
        back = warehouse.source("parts").to_arrow().sort_by("n")
        kept = [i for i in range(3) if i == 2 or values[i].as_py() != values[2].as_py()]
        assert back["n"].to_pylist() == kept
        assert back["part"].to_pylist() == [values[i].as_py() for i in kept]
        if warehouse.has_sql:
            told = warehouse.source("SELECT n, part FROM parts ORDER BY n").to_arrow()
            assert told["part"].to_pylist() == back["part"].to_pylist()
        assert warehouse.schema("parts").names == ["n", "part"]
        plainly = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        assert warehouse.schema("parts").field("part").type == plainly

    def test_partitions_are_replaced_all_or_none(self, warehouse: Warehouse) -> None:
        days = pa.table({"day": [1, 2], "n": [1, 2]})
        warehouse.write("log", days, partition_by="day")
        with pytest.raises(RuntimeError, match="broke"):
            warehouse.write(
                "log", _failing(days.schema, days, RuntimeError("broke")), mode="partition", partition_by="day", commit="x"
            )  # fmt: skip
        assert warehouse.source("log").to_arrow().sort_by("day").equals(days)
        assert warehouse.write("log", days, mode="partition", partition_by="day", commit="x") == 2
        assert warehouse.write("log", days, mode="partition", partition_by="day", commit="x") == 0
        assert warehouse.source("log").to_arrow().sort_by("day").equals(days)

    def test_partitions_that_cannot_be_are_refused(self, warehouse: Warehouse) -> None:
        days = pa.table({"day": [1, 2], "n": [1.5, 2.5]})
        warehouse.write("log", days, partition_by="day")
        empty = pa.table({"day": pa.array([1, None], pa.int64()), "n": [0.0, 0.0]})
        for mode in ("partition", "replace"):
            with pytest.raises(DataError, match="null"):
                warehouse.write("log", empty, mode=mode, partition_by="day")
        with pytest.raises(ColumnNotFoundError, match="did you mean day"):
            warehouse.write("log", days, mode="partition", partition_by="dya")
        with pytest.raises(DataError, match="partition_by"):
            warehouse.write("log", days, mode="partition")
        with pytest.raises(DataError, match="double"):
            warehouse.write("log", days, mode="partition", partition_by="n")
        with pytest.raises(DataError, match="'n'"):
            warehouse.write("log", {"day": [1], "n": ["x"]}, mode="partition", partition_by="day")
        assert warehouse.source("log").to_arrow().sort_by("day").equals(days)

    def test_bookkeeping_is_hidden(self, warehouse: Warehouse) -> None:
        warehouse.write("people", _people(), mode="append", commit="run-1")
        assert warehouse.tables() == ["people"]

    @pytest.mark.parametrize(
        ("rows", "mode"),
        [
            (_people(), "upsert"),
            (pa.table({}), "replace"),
            (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "replace"),
            (42, "replace"),
        ],
        ids=["mode", "no columns", "column twice", "no table"],
    )
    def test_what_cannot_be_written_is_refused(self, warehouse: Warehouse, rows: Any, mode: Any) -> None:
        with pytest.raises(DataError):
            warehouse.write("people", rows, mode=mode)
        assert warehouse.source("people").to_arrow().num_rows == 5

    # --- the rest -----------------------------------------------------------------------------------------------

    def test_fingerprint_changes_with_the_data_only(self, warehouse: Warehouse) -> None:
        before = warehouse.fingerprint("people")
        warehouse.source("people").to_arrow()
        assert warehouse.fingerprint("people") == before
        warehouse.write("people", _people(), mode="append")
        appended = warehouse.fingerprint("people")
        assert appended != before
        warehouse.write("people", _people())
        assert warehouse.fingerprint("people") not in {before, appended}

    def test_warehouse_pickles(self, warehouse: Warehouse) -> None:
        assert pickle.loads(pickle.dumps(warehouse)).tables() == ["people"]  # noqa: S301
