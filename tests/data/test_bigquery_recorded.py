"""What bqemulator does not do: costs, quotas, jobs that fail for a while, ids used twice, BIGNUMERIC, snapshots.

The answers are those of BigQuery's reference, sent by servers on loopback to the official clients.
"""

from __future__ import annotations

import datetime as dt
import json
import pickle
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import grpc
import pyarrow as pa
import pytest

from sp_ray_ml.data import Warehouse, open_warehouse
from sp_ray_ml.data._bigquery_streams import read_stream
from sp_ray_ml.errors import LockedError, WarehouseError
from tests.proxy import Fault, proxy
from tests.recorded_bigquery import Recorded, job, recorded, refusal, short_stalls, sleepless

pytestmark = pytest.mark.slow

NOW = "1767225600000000"  # 2026-01-01 in microseconds
TABLE = {
    "id": "p:d.t",
    "etag": "e1",
    "type": "TABLE",
    "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
    "creationTime": "1700000000000",
    "lastModifiedTime": "1700000000000",
    "numRows": "3",
    "schema": {"fields": [{"name": "n", "type": "INTEGER"}, {"name": "big", "type": "BIGNUMERIC"}]},
}
SENT = pa.schema({"n": pa.int64(), "big": pa.decimal256(76, 38)})


def rows(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": values, "big": [Decimal(f"{v}.{'0' * 37}1") for v in values]}, schema=SENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    with recorded() as here:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", here.rest)
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", here.storage)
        base = "/bigquery/v2/projects/p"
        here.answers = {
            f"GET {base}/datasets/d": [(200, {"datasetReference": {"projectId": "p", "datasetId": "d"}, "location": "EU"})],
            f"GET {base}/datasets/d/tables": [(200, {"tables": [TABLE]})],
            f"GET {base}/datasets/d/tables/t": [(200, TABLE)],
            f"POST {base}/jobs": [lambda body: job(body["jobReference"]["jobId"], "query", **body["configuration"]["query"])],
            f"POST {base}/queries": [
                (200, {"jobComplete": True, "jobReference": {"projectId": "p", "jobId": "now", "location": "EU"},
                       "schema": {"fields": [{"name": "now", "type": "TIMESTAMP"}]},
                       "rows": [{"f": [{"v": NOW}]}], "totalRows": "1"}),
            ],
        }  # fmt: skip
        here.sessions = [SENT]
        yield here


def warehouse(options: str = "patience=120") -> Warehouse:
    return open_warehouse(f"bigquery://p/d?{options}")


# --- reading ----------------------------------------------------------------------------------------------------


def test_snapshot_columns_and_rows_are_pushed_down_and_types_exact(server: Recorded) -> None:
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query", statistics={"query": {"statementType": "SELECT"}}
        )
    ]
    answered = (200, {"jobComplete": True, "jobReference": {"projectId": "p", "jobId": "now", "location": "EU"},
                      "schema": {"fields": [{"name": "now", "type": "TIMESTAMP"}]}, "rows": [{"f": [{"v": NOW}]}],
                      "totalRows": "1"})  # fmt: skip
    server.answers["GET /bigquery/v2/projects/p/queries/.*"] = [answered]
    server.rows = [([rows(1, 2)], None), ([rows(1, 2)], None)]
    source = warehouse().source("t", columns=["big", "n"], where=[("n", "<", 3)])
    back = source.to_arrow()
    assert back.schema == pa.schema([SENT.field("big"), SENT.field("n")])
    assert back["big"].to_pylist() == [Decimal(f"{v}.{'0' * 37}1") for v in (1, 2)]
    assert source.to_arrow().equals(back)
    asked = [read for read in server.reads if not isinstance(read, int)]
    assert len(asked) == 1  # both passes read one session
    options = asked[0].read_session.read_options
    assert list(options.selected_fields) == ["big", "n"]
    assert options.row_restriction == "`n` < 3"
    snapshot = asked[0].read_session.table_modifiers.snapshot_time
    assert dt.datetime.fromtimestamp(snapshot.timestamp(), dt.UTC) == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert asked[0].max_stream_count == 8


def test_nulls_of_bignumeric_come_back(server: Recorded) -> None:
    values = [Decimal(f"{'9' * 38}.{'9' * 38}"), None, Decimal(f"-0.{'0' * 37}1")]
    server.rows = [([pa.record_batch({"n": [1, None, 3], "big": values}, schema=SENT)], None)]
    back = _snapshot_known(warehouse()).source("t").to_arrow()
    assert back.schema.types == [pa.int64(), pa.decimal256(76, 38)]
    assert back.to_pydict() == {"n": [1, None, 3], "big": values}


def test_table_with_a_name_in_any_language_is_asked_for_by_it(server: Recorded) -> None:
    name = "Événements 漢字"
    reference = {"projectId": "p", "datasetId": "d", "tableId": name}
    found = (200, {**TABLE, "tableReference": reference})
    server.answers = {
        f"GET /bigquery/v2/projects/p/datasets/d/tables/{quote(name)}": [found],
        **server.answers,
    }
    server.rows = [([rows(1)], None)]
    assert _snapshot_known(warehouse()).source(name).to_arrow()["n"].to_pylist() == [1]
    asked = [read for read in server.reads if not isinstance(read, int)]
    assert asked[0].read_session.table == f"projects/p/datasets/d/tables/{name}"


def _snapshot_known(house: Any) -> Any:
    house._snapshot = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return house


def test_stream_that_breaks_goes_on_at_its_next_row(server: Recorded) -> None:
    broken = grpc.StatusCode.UNAVAILABLE
    server.rows = [
        ([rows(1, 2)], broken),
        ([], grpc.StatusCode.RESOURCE_EXHAUSTED),
        ([rows(3)], broken),
        ([], None),
    ]
    back = _snapshot_known(warehouse()).source("t").to_arrow()
    assert back["n"].to_pylist() == [1, 2, 3]
    assert [read for read in server.reads if isinstance(read, int)] == [0, 2, 2, 3]


@pytest.mark.parametrize("fault", ["stall", "truncate"])
def test_stream_that_breaks_amid_its_rows_loses_and_doubles_none(
    server: Recorded, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    server.table = pa.table(
        {"n": range(100_000), "big": pa.array([Decimal(1)] * 100_000, SENT.field("big").type)}
    )
    with proxy(int(server.storage.rpartition(":")[2])) as between:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", f"127.0.0.1:{between.port}")
        source = _snapshot_known(warehouse()).source("t")
        next(iter(source.batches()))
        if fault == "stall":
            short_stalls(monkeypatch)
        between.faults, between.after, between.read = [fault, fault], 1_000_000, threading.Event()
        found = []
        for batch in source.batches():
            between.read.set()
            found += batch["n"].to_pylist()
        assert found == list(range(100_000))
    offsets = [read for read in server.reads if isinstance(read, int)]
    assert offsets == sorted(offsets)
    assert offsets[-1] > 0


def test_stream_whose_rows_are_used_slowly_is_read_to_its_end_in_one_call(
    server: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    watches: list[threading.Timer] = []

    class Watch(threading.Timer):
        def start(self) -> None:
            watches.append(self)
            super().start()

    monkeypatch.setattr(threading, "Timer", Watch)
    server.table = pa.table(
        {"n": range(100_000), "big": pa.array([Decimal(1)] * 100_000, SENT.field("big").type)}
    )
    session = _snapshot_known(warehouse()).source("t")._session()
    found = []
    with session.place.reader() as client:
        for batch in read_stream(session, session.streams[0], client):
            # However long the rows are used: nothing counts the time.
            assert watches
            assert all(watch.finished.is_set() for watch in watches)
            found += batch["n"].to_pylist()
    assert found == list(range(100_000))
    assert [read for read in server.reads if isinstance(read, int)] == [0]
    assert server.limits[0] > 1e9


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "gcloud beta quotas info list"),
        (grpc.StatusCode.UNAVAILABLE, "BigQuery failed|does not answer"),
        (grpc.StatusCode.PERMISSION_DENIED, "add-iam-policy-binding"),
    ],
)
def test_what_stays_refused_is_one_error(
    server: Recorded, monkeypatch: pytest.MonkeyPatch, status: grpc.StatusCode, said: str
) -> None:
    sleepless(monkeypatch)
    server.sessions = [
        (status, "Access Denied: Table p:d.t: User does not have bigquery.readsessions.create permission")
    ]
    with pytest.raises(WarehouseError, match=said):
        _snapshot_known(warehouse()).source("t").to_arrow()


def test_fingerprint_changes_with_what_bigquery_says_of_the_table(server: Recorded) -> None:
    house = _snapshot_known(warehouse())
    before = house.fingerprint("t")
    assert house.fingerprint("t") == before
    later = {**TABLE, "etag": "e2", "lastModifiedTime": "1700000000001"}
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables/t"] = [(200, later)]
    changed = house.fingerprint("t")
    assert changed != before
    # Rows that came after the snapshot are not read: the mark is none of the table's own later ones.
    newest = {**TABLE, "lastModifiedTime": "1800000000000"}
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables/t"] = [(200, newest)]
    assert house.fingerprint("t") != warehouse().fingerprint("t")


# --- queries ----------------------------------------------------------------------------------------------------


def _query(server: Recorded, size: int) -> None:
    fields = {"fields": [{"name": "n", "type": "INTEGER"}]}
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query", **body["configuration"]["query"],
            statistics={"totalBytesProcessed": str(size),
                        "query": {"statementType": "SELECT", "totalBytesProcessed": str(size), "schema": fields}},
        )
    ]  # fmt: skip


def test_query_over_the_cap_is_refused_before_it_runs(server: Recorded) -> None:
    _query(server, 5 * 10**12)
    with pytest.raises(WarehouseError, match=r"5 TB.*max_bytes_billed is 10 GB"):
        warehouse("max_bytes_billed=10GB").source("SELECT n FROM t")
    bodies = [
        body
        for method, path, body in server.asked
        if path.endswith("jobs?prettyPrint=false") and method == "POST"
    ]
    assert all(body["configuration"]["dryRun"] for body in bodies)


def test_query_runs_once_capped_by_bigquery_too_and_is_read_from_its_destination(server: Recorded) -> None:
    _query(server, 1_000)
    house = _snapshot_known(warehouse("max_bytes_billed=1GB"))
    source = house.source("SELECT n FROM t FOR SYSTEM_TIME AS OF @snapshot")
    destination = {"projectId": "p", "datasetId": "_anon", "tableId": "result"}
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"],
            "query",
            **body["configuration"]["query"],
            destinationTable=destination,
        )
    ]
    server.sessions = [pa.schema({"n": pa.int64()})]
    batch = pa.record_batch({"n": [7]})
    server.rows = [([batch], None), ([batch], None)]
    assert source.to_arrow().to_pydict() == source.to_arrow().to_pydict() == {"n": [7]}
    real = [
        body
        for _, _, body in server.asked
        if body.get("configuration") and not body["configuration"].get("dryRun")
    ]
    assert len(real) == 1
    assert real[0]["configuration"]["query"]["maximumBytesBilled"] == "1000000000"
    named = real[0]["configuration"]["query"]["queryParameters"][0]
    assert named["parameterValue"]["value"].startswith("2026-01-01 00:00:00")
    assert server.reads[0].read_session.table == "projects/p/datasets/_anon/tables/result"


def test_ordered_query_runs_as_it_is_and_its_rows_and_columns_are_picked_from_the_result(
    server: Recorded,
) -> None:
    _query(server, 1_000)
    sql, destination = "SELECT n FROM t ORDER BY n", {"projectId": "p", "datasetId": "_anon", "tableId": "r"}
    source = _snapshot_known(warehouse()).source(sql, columns=["n"], where=[("n", ">", 1)])
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query", **body["configuration"]["query"], destinationTable=destination
        )
    ]  # fmt: skip
    server.sessions = [pa.schema({"n": pa.int64()})]
    server.rows = [([pa.record_batch({"n": [2, 7]})], None)]
    assert source.to_arrow().to_pydict() == {"n": [2, 7]}
    assert {body["configuration"]["query"]["query"] for _, _, body in server.asked if "configuration" in body} == {sql}  # fmt: skip
    asked = server.reads[0]
    assert list(asked.read_session.read_options.selected_fields) == ["n"]
    assert asked.read_session.read_options.row_restriction == "`n` > 1"
    assert asked.max_stream_count == 1


def test_job_that_fails_for_a_while_runs_again_and_one_that_stays_so_is_named(
    server: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepless(monkeypatch)
    _query(server, 1_000)
    source = _snapshot_known(warehouse()).source("SELECT n FROM t")
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query", ("jobBackendError", "Error encountered during execution")
        )
    ]
    with pytest.raises(WarehouseError, match=r"job sp_ray_ml_\w+_\d") as caught:
        source.to_arrow()
    ids = [body["jobReference"]["jobId"] for _, _, body in server.asked if body.get("jobReference")][1:]
    assert len(ids) > 1
    assert len(set(ids)) == len(ids)
    assert f"bq show --project_id=p -j {ids[-1]}" in str(caught.value)


def test_job_whose_answer_was_lost_is_found_by_its_id(server: Recorded) -> None:
    _query(server, 1_000)
    source = _snapshot_known(warehouse()).source("SELECT n FROM t")
    destination = {"projectId": "p", "datasetId": "_anon", "tableId": "result"}
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        refusal(503, "backendError", "Error 503"),
        refusal(409, "duplicate", "Already Exists: Job p:EU.sp_ray_ml_x"),
    ]
    server.answers["GET /bigquery/v2/projects/p/jobs/.*"] = [
        refusal(404, "notFound", "Not found: Job"),
        job("found", "query", query="SELECT n FROM t", destinationTable=destination),
    ]
    server.sessions = [pa.schema({"n": pa.int64()})]
    server.rows = [([pa.record_batch({"n": [7]})], None)]
    assert source.to_arrow().to_pydict() == {"n": [7]}
    sent = [body["jobReference"]["jobId"] for method, _, body in server.asked if method == "POST"][1:]
    assert len(sent) == 2
    assert len(set(sent)) == 1


def test_query_is_cut_into_the_streams_of_its_destination_which_its_note_brings_back(
    server: Recorded,
) -> None:
    _query(server, 1_000)
    destination = {"projectId": "p", "datasetId": "_anon", "tableId": "result"}
    house, again = _snapshot_known(warehouse()), _snapshot_known(warehouse())
    source, later = house.source("SELECT n FROM t"), again.source("SELECT n FROM t")
    assert house.source("SELECT n FROM t ORDER BY n").streams(None) is None
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query", **body["configuration"]["query"], destinationTable=destination
        )
    ]  # fmt: skip
    server.sessions = [pa.schema({"n": pa.int64()})]
    batch = pa.record_batch({"n": [7]})
    server.rows = [([batch], None)] * 3
    note, [stream] = source.streams(None)
    assert pickle.loads(pickle.dumps(stream)).to_arrow().to_pydict() == {"n": [7]}
    kept, [same] = later.streams(note)
    assert kept == note
    assert same.to_arrow().to_pydict() == {"n": [7]}
    asked = [read for read in server.reads if not isinstance(read, int)]
    assert [one.read_session.table for one in asked] == ["projects/p/datasets/_anon/tables/result"]
    assert asked[0].max_stream_count == 1_000
    # A session that is over, by what BigQuery says or by its time, is left for a new one.
    late = json.dumps({**json.loads(note), "expires": "2026-01-01T00:00:00+00:00"})
    server.rows = [([], grpc.StatusCode.NOT_FOUND)]
    for old in (note, late):
        later.streams(old)
    assert len([read for read in server.reads if not isinstance(read, int)]) == 3
    assert not server.rows


# --- writing ----------------------------------------------------------------------------------------------------


ROWS = pa.table({"n": [1, 2, 3], "big": pa.array([Decimal(1)] * 3, pa.decimal256(76, 38))})


def test_commit_that_another_writer_is_bringing_is_waited_for_not_repeated(server: Recorded) -> None:
    running, done = job("x", "query"), job("x", "query", query="INSERT INTO … FROM another_staging")
    running[1]["status"] = {"state": "RUNNING"}
    server.answers["GET /bigquery/v2/projects/p/jobs/.*"] = [running, running, done]
    assert warehouse().write("t", ROWS, mode="append", commit="run-1") == 0
    looked = [path for method, path, _ in server.asked if method == "GET" and "/jobs/" in path]
    assert len(looked) == 3
    assert re.search(r"/jobs/sp_ray_ml_[0-9a-f]{40}_0\?", looked[0])  # follows from the table and the commit
    assert "location=EU" in looked[0]


def test_permission_on_one_table_is_told_with_the_role(server: Recorded) -> None:
    message = "Access Denied: Table p:d.t: Permission bigquery.tables.get denied on table p:d.t (or it may not exist)."
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables/t"] = [
        refusal(403, "accessDenied", message)
    ]
    with pytest.raises(WarehouseError, match="permission denied") as caught:
        warehouse().source("t")
    assert "add-iam-policy-binding p --member=user:YOU --role=roles/bigquery.dataViewer" in str(caught.value)


@pytest.mark.parametrize(
    "answer", [(429, "rateLimitExceeded"), (503, "backendError"), (403, "quotaExceeded")]
)
def test_what_is_asked_too_often_is_asked_again_later(
    server: Recorded, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str]
) -> None:
    sleepless(monkeypatch)
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables"] = [
        refusal(*answer, "Exceeded: try again"), refusal(*answer, "Exceeded: try again"), (200, {"tables": [TABLE]}),
    ]  # fmt: skip
    assert warehouse().tables() == ["t"]
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables"] = [
        refusal(*answer, "Exceeded: try again")
    ]
    with pytest.raises(WarehouseError, match="Exceeded"):
        warehouse().tables()


def test_expired_credentials_name_the_command_that_renews_them(server: Recorded) -> None:
    server.answers["GET /bigquery/v2/projects/p/datasets/d/tables"] = [
        refusal(401, "authError", "Request had invalid authentication credentials.")
    ]
    with pytest.raises(WarehouseError, match="gcloud auth application-default login"):
        warehouse().tables()


def test_missing_credentials_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"type": "nonsense"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    with pytest.raises(WarehouseError, match="no credentials") as caught:
        warehouse().tables()
    assert "gcloud auth application-default login" in str(caught.value)


def test_concurrent_change_of_a_table_is_a_lock(server: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    sleepless(monkeypatch)
    _query(server, 0)
    source = _snapshot_known(warehouse()).source("SELECT n FROM t")
    server.answers["POST /bigquery/v2/projects/p/jobs"] = [
        lambda body: job(
            body["jobReference"]["jobId"], "query",
            ("invalidQuery", "Transaction is aborted due to concurrent update against table p:d.t"),
        )
    ]  # fmt: skip
    with pytest.raises(LockedError, match="another writer"):
        source.to_arrow()
