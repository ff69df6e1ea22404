"""Types, names, literals and URLs of BigQuery, and the note that a table carries: all without a server."""

from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from sp_ray_ml.data import Source, open_warehouse
from sp_ray_ml.data._bigquery_errors import told, transient
from sp_ray_ml.data._bigquery_note import Note, commit_mark, read_note
from sp_ray_ml.data._bigquery_place import parse_url
from sp_ray_ml.data._bigquery_sql import is_ordered, literal, one_statement, quoted, restriction
from sp_ray_ml.data._bigquery_target import Target
from sp_ray_ml.data._bigquery_types import check_columns, check_lists, column_of, kept, read_schema, stored
from sp_ray_ml.data._bigquery_write import made_of
from sp_ray_ml.data._where import conditions
from sp_ray_ml.errors import ConfigError, DataError, LockedError, TableNotFoundError, WarehouseError

JSON = {b"ARROW:extension:name": b"google:sqlType:json"}
FIELDS: list[dict[str, Any]] = [
    {"name": "n", "type": "NUMERIC"},
    {"name": "b", "type": "BIGNUMERIC"},
    {"name": "at", "type": "TIMESTAMP"},
    {"name": "local", "type": "DATETIME"},
    {"name": "day", "type": "DATE", "mode": "REQUIRED"},
    {"name": "clock", "type": "TIME"},
    {"name": "raw", "type": "BYTES"},
    {"name": "doc", "type": "JSON"},
    {"name": "place", "type": "GEOGRAPHY"},
    {"name": "tags", "type": "STRING", "mode": "REPEATED"},
    {
        "name": "items",
        "type": "RECORD",
        "mode": "REPEATED",
        "fields": [{"name": "a", "type": "INTEGER"}, {"name": "b", "type": "FLOAT", "mode": "REPEATED"}],
    },
    {"name": "when", "type": "RANGE", "rangeElementType": {"type": "DATE"}},
    {"name": "yes", "type": "BOOLEAN"},
]


def test_each_type_of_bigquery_is_one_of_arrow() -> None:
    schema = read_schema(FIELDS, "t")
    assert [str(kind) for kind in schema.types] == [
        "decimal128(38, 9)", "decimal256(76, 38)", "timestamp[us, tz=UTC]", "timestamp[us]", "date32[day]", "time64[us]",
        "binary", "string", "string", "list<item: string>", "list<item: struct<a: int64, b: list<item: double>>>",
        "struct<start: date32[day], end: date32[day]>", "bool",
    ]  # fmt: skip
    assert schema.field("doc").metadata == JSON
    with pytest.raises(DataError, match="HYPERCUBE"):
        read_schema([{"name": "x", "type": "HYPERCUBE"}], "t")


def test_what_was_read_is_written_as_the_same_types() -> None:
    fields = [field for field in FIELDS if field["type"] != "RANGE"]
    schema = read_schema(fields, "t")
    assert stored(schema, "t").equals(schema, check_metadata=True)
    back = [column_of(field) for field in stored(schema, "t")]
    alias = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
    assert [c["type"] for c in back] == [alias.get(f["type"], f["type"]) for f in fields]
    assert read_schema(back, "t").equals(schema, check_metadata=True)
    assert len(kept(schema).names) == 2  # which ones were JSON and places is said once more
    assert kept(schema).names == ["doc", "place"]


def test_json_and_places_inside_lists_and_structs_stay_what_they_are() -> None:
    inner = [{"name": "doc", "type": "JSON"}, {"name": "at", "type": "GEOGRAPHY", "mode": "REPEATED"}]
    fields: list[dict[str, Any]] = [
        {"name": "docs", "type": "JSON", "mode": "REPEATED"},
        {"name": "one", "type": "RECORD", "fields": [*inner, {"name": "n", "type": "INT64"}]},
        {"name": "many", "type": "RECORD", "mode": "REPEATED", "fields": inner},
        {"name": "plain", "type": "RECORD", "fields": [{"name": "n", "type": "INT64"}]},
    ]
    schema = read_schema(fields, "t")
    back = read_schema([column_of(field) for field in stored(schema, "t")], "t")
    assert back.equals(schema, check_metadata=True)
    assert kept(schema).equals(pa.schema(list(schema)[:3]), check_metadata=True)
    sql = [made_of(f"`c{index}`", field) for index, field in enumerate(schema)]
    assert sql == [
        "ARRAY(SELECT PARSE_JSON(item0) FROM UNNEST(`c0`) AS item0 WITH OFFSET AS at0 ORDER BY at0)",
        "IF(`c1` IS NULL, NULL, STRUCT(PARSE_JSON(`c1`.`doc`) AS `doc`, ARRAY(SELECT ST_GEOGFROMTEXT(item0) "
        "FROM UNNEST(`c1`.`at`) AS item0 WITH OFFSET AS at0 ORDER BY at0) AS `at`, `c1`.`n` AS `n`))",
        "ARRAY(SELECT IF(item0 IS NULL, NULL, STRUCT(PARSE_JSON(item0.`doc`) AS `doc`, ARRAY(SELECT ST_GEOGFROMTEXT("
        "item1) FROM UNNEST(item0.`at`) AS item1 WITH OFFSET AS at1 ORDER BY at1) AS `at`)) "
        "FROM UNNEST(`c2`) AS item0 WITH OFFSET AS at0 ORDER BY at0)",
        "`c3`",
    ]


def test_narrower_types_are_kept_in_the_note() -> None:
    schema = pa.schema(
        {
            "id": pa.int64(),
            "small": pa.uint8(),
            "score": pa.float32(),
            "vector": pa.list_(pa.float32(), 4),
            "price": pa.decimal128(18, 4),
            "text": pa.dictionary(pa.int32(), pa.large_string()),
            "at": pa.timestamp("s", "Europe/Berlin"),
            "s": pa.struct([("a", pa.int8()), ("b", pa.list_(pa.int16()))]),
        }
    )
    narrow = kept(schema)
    assert narrow.names == ["small", "score", "vector", "price", "s"]
    assert all(narrow.field(name).type == schema.field(name).type for name in narrow.names)
    note = Note(commit_mark("run-1"), narrow, "A table of\nmine [sp_ray_ml {")
    back = read_note(note.text())
    assert back == Note(note.commit, narrow, note.own, note.write)
    assert note.write != Note().write
    wide = pa.schema([(f"a_rather_long_name_{i}", pa.float32()) for i in range(1_000)])
    assert len(Note(types=wide, own="x" * 16_000).text()) <= 16_384
    for other in (
        None,
        "",
        "a table",
        "[sp_ray_ml {}]",
        '[sp_ray_ml {"write": 1}]',
        '[sp_ray_ml {"types": "!"}]',
    ):
        assert read_note(other) is None


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (pa.duration("us"), "int64"),
        (pa.list_(pa.list_(pa.int64())), "struct"),
        (pa.decimal256(76, 2), "text"),
        (pa.struct([]), "numbers"),
        (pa.struct([("a b", pa.int64())]), "ASCII"),
        (pa.month_day_nano_interval(), "numbers"),
    ],
    ids=str,
)
def test_what_bigquery_cannot_hold_is_refused_with_what_to_do(kind: pa.DataType, hint: str) -> None:
    with pytest.raises(DataError, match="'x'") as caught:
        stored(pa.schema({"x": kind}), "t")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("values", "fine"),
    [
        (pa.array([[1], []]), True),
        (pa.array([[1], None]), False),
        (pa.array([[1, None]]), False),
        (pa.array([{"a": [1]}, None]), True),
        (pa.array([{"a": None}, {"a": [1]}]), False),
        (pa.array([[{"a": [1]}, {"a": [None]}]]), False),
    ],
)
def test_nulls_of_lists_are_found_at_any_depth(values: pa.Array, fine: bool) -> None:
    batch = pa.record_batch({"x": values})
    if fine:
        check_lists(batch, "t")
        return
    with pytest.raises(DataError, match="'x'"):
        check_lists(batch, "t")


@pytest.mark.parametrize("name", ["Größe", "漢字 1", "a=b%", "it's", "1st", "x" * 300])
def test_columns_have_names_of_any_language(name: str) -> None:
    check_columns(pa.schema({name: pa.int64()}), "t")


@pytest.mark.parametrize(
    "name", ["", "a.b", 'quo"te', "a`b", "x" * 301, "a\nb", "_PARTITIONTIME", "_table_x", "a*"]
)
def test_what_is_no_columns_name_is_refused(name: str) -> None:
    with pytest.raises(DataError):
        check_columns(pa.schema({name: pa.int64()}), "t")
    with pytest.raises(DataError, match="case"):
        check_columns(pa.schema({"a": pa.int64(), "A": pa.int64()}), "t")


def test_values_are_literals_that_cannot_break_out() -> None:
    assert literal("d\"'; DROP\\\n\x01") == "'d\"\\'; DROP\\\\\\n\\u0001'"
    assert literal(True) == "TRUE"
    assert literal(float("-inf")) == "CAST('-inf' AS FLOAT64)"
    assert literal(Decimal("1E+3")) == "NUMERIC '1000'"
    assert literal(Decimal("0.5"), pa.decimal256(76, 38)) == "BIGNUMERIC '0.5'"
    assert literal(b"\x00'") == "FROM_HEX('0027')"
    assert literal(dt.datetime(2024, 2, 29, tzinfo=dt.UTC)) == "TIMESTAMP '2024-02-29 00:00:00.000000+00:00'"
    assert literal(dt.datetime(2024, 2, 29, 1, 2, 3, 4)) == "DATETIME '2024-02-29 01:02:03.000004'"
    assert literal(dt.date(2024, 2, 29)) == "DATE '2024-02-29'"
    assert quoted("p", "a`b\\") == "`p`.`a\\`b\\\\`"
    schema = pa.schema({"a`": pa.int64(), "f": pa.float32()})
    found = conditions(
        [("a`", "in", [1, None]), ("f", ">=", 0.1), ("a`", "in", []), ("f", "!=", None)], schema, "t"
    )
    assert restriction(found) == (
        "(`a\\``" " IN (1) OR `a\\`` IS NULL) AND `f` >= 0.10000000149011612 AND NOT IS_NAN(`f`) AND (FALSE) AND `f` IS NOT NULL"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "one"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT ';' -- ;\n; -- the end\n# really /* ; */", "SELECT ';' -- ;\n"),
        ('SELECT """a;"b""", r"\\", \'\\\';\', `x;y` ;', 'SELECT """a;"b""", r"\\", \'\\\';\', `x;y` '),
        ("SELECT 1; SELECT 2", None),
        ("SELECT 1; -- x\nDROP TABLE t", None),
        ("SELECT 1;;'x'", None),
    ],
)
def test_a_query_is_one_statement(sql: str, one: str | None) -> None:
    if one is None:
        with pytest.raises(WarehouseError, match="semicolon"):
            one_statement(sql, "u")
    else:
        assert one_statement(sql, "u") == one


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT n FROM t ORDER\n BY n", True),
        ("WITH a AS (SELECT 1 AS n) SELECT n FROM a order by n -- all", True),
        ("(SELECT n FROM t ORDER BY n LIMIT 3)", True),
        ("SELECT row_number() OVER (PARTITION BY f(n) ORDER BY n) FROM t", False),
        ("SELECT n FROM (SELECT n FROM t ORDER BY (n))", False),
        ("SELECT 'order by (' AS n FROM t -- ORDER BY n", False),
    ],
)
def test_a_query_is_ordered_where_it_says_so_itself(sql: str, ordered: bool) -> None:
    assert is_ordered(sql) == ordered


def test_url_says_where_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    place = parse_url(
        "bigquery://my-project/my_data?location=EU&max_bytes_billed=10GB&billing_project=other&streams=3"
    )
    assert (place.project, place.dataset, place.billing, place.location) == (
        "my-project",
        "my_data",
        "other",
        "EU",
    )
    assert (place.max_bytes_billed, place.streams, place.patience, place.rest) == (10 * 10**9, 3, 600.0, "")
    assert parse_url("bigquery://p/d?max_bytes_billed=1.5TiB").max_bytes_billed == int(1.5 * 2**40)
    assert parse_url("bigquery://p/d?patience=0").patience == 0
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", "localhost:9050")
    assert parse_url("bigquery://p/d").rest == "http://localhost:9050"
    warehouse = open_warehouse("bigquery://p/d?location=EU")
    again = pickle.loads(pickle.dumps(warehouse))
    assert repr(again) == repr(warehouse) == "<BigQueryWarehouse bigquery://p/d?location=EU>"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("bigquery://project", "project and a dataset"),
        ("bigquery://p/d/t", "project and a dataset"),
        ("bigquery://p/d?locaton=EU", "did you mean location"),
        ("bigquery://p/d?max_bytes_billed=lots", "max_bytes_billed"),
        ("bigquery://p/d?streams=-1", "streams"),
        ("bigquery://p/d?patience=nan", "patience"),
    ],
)
def test_wrong_url_is_one_clear_error(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_warehouse(url)


def test_table_that_bigquery_cannot_name_is_refused_before_anything_is_asked() -> None:
    warehouse = open_warehouse("bigquery://p/d")
    with pytest.raises(DataError, match="name in BigQuery"):
        warehouse.write('quo"te', {"n": [1]})
    with pytest.raises(DataError, match="duration"):
        warehouse.write("t", Source("s", pa.schema({"x": pa.duration("s")}), lambda: iter(())))


def test_answers_are_told_in_our_errors_with_the_command_that_helps() -> None:
    from google.api_core import exceptions
    from google.auth.exceptions import RefreshError

    place = parse_url("bigquery://p/d")

    def ours(error: Exception, job: str = "") -> Any:
        return told(error, place, table="t", job=job)

    expired = ours(RefreshError("Reauthentication is needed"))
    assert isinstance(expired, WarehouseError)
    assert "gcloud auth application-default login" in str(expired)
    denied = ours(
        exceptions.Forbidden("Access Denied: Permission bigquery.tables.getData denied on table p:d.t")
    )
    assert "roles/bigquery.dataViewer" in str(denied)
    asleep = ours(
        exceptions.Forbidden("BigQuery API has not been used in project p before or it is disabled")
    )
    assert "gcloud services enable bigquery.googleapis.com" in str(asleep)
    quota = exceptions.Forbidden("Quota exceeded: imports per table", errors=[{"reason": "quotaExceeded"}])
    assert transient(quota)
    assert "job j1" in str(ours(quota, "j1"))
    assert isinstance(
        ours(exceptions.NotFound("Not found: Table p:d.t was not found in location EU")), TableNotFoundError
    )
    assert isinstance(
        ours(exceptions.BadRequest("Transaction is aborted due to concurrent update against table")),
        LockedError,
    )
    broken = ours(exceptions.InternalServerError("try again", errors=[{"reason": "backendError"}]), "j2")
    assert "bq show --project_id=p -j j2" in str(broken)
    assert not transient(exceptions.BadRequest("Syntax error"))
    other = ours(
        exceptions.BadRequest(
            "Cannot replace a table with a different partitioning spec. Instead, DROP the table"
        )
    )
    assert isinstance(other, DataError)
    assert "bq rm -t p:d.t" in str(other)
    assert told(ZeroDivisionError(), place) is None


@pytest.mark.parametrize(
    ("layout", "partition_by", "clause"),
    [
        ((None, "DAY", ()), None, ""),
        ((None, "DAY", ()), "day", " PARTITION BY `day`"),
        ((None, "DAY", ()), "utc", " PARTITION BY TIMESTAMP_TRUNC(`utc`, DAY)"),
        ((None, "DAY", ()), "local", " PARTITION BY DATETIME_TRUNC(`local`, DAY)"),
        ((None, "DAY", ()), "land", " CLUSTER BY `land`"),
        (
            ("day", "MONTH", ("land", "gone")),
            None,
            " PARTITION BY DATE_TRUNC(`day`, MONTH) CLUSTER BY `land`",
        ),
        (("gone", "DAY", ()), None, ""),
    ],
)
def test_replaced_table_keeps_its_layout(
    layout: tuple[str | None, str, tuple[str, ...]], partition_by: str | None, clause: str
) -> None:
    kinds = {
        "day": pa.date32(),
        "utc": pa.timestamp("us", "UTC"),
        "local": pa.timestamp("us"),
        "land": pa.string(),
    }
    target = Target(parse_url("bigquery://p/d"), "t", pa.schema(kinds), None, None, Note(), layout)
    assert target.clauses(partition_by) == clause
