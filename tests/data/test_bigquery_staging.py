"""Writes that are staged in a bucket: bqemulator loads what fake-gcs-server keeps, both real, on one folder.

What the emulator's load jobs do not know, rights and locations of buckets, is recorded: the objects are real then, too.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml._remote import filesystem
from sp_ray_ml.data import Source, _bigquery_load, _bigquery_objects, open_warehouse
from sp_ray_ml.data._bigquery_note import Note
from sp_ray_ml.data._bigquery_place import parse_url
from sp_ray_ml.data._bigquery_target import Target
from sp_ray_ml.errors import ConfigError, StorageError, WarehouseError
from tests import stores
from tests.bigquery import Emulator, emulator
from tests.proxy import proxy
from tests.recorded_bigquery import job, recorded, refusal

OLD = pa.table({"n": [1, 2, 3], "day": ["a", "b", "c"]})
MANY = pa.table({"n": range(300_000), "day": [f"{i * 7919:x}" for i in range(300_000)]})


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Emulator, str]]:
    objects = tmp_path_factory.mktemp("objects")
    with (
        stores.gcs(tmp_path_factory.mktemp("gcs"), objects) as endpoint,
        emulator(tmp_path_factory.mktemp("bigquery"), objects) as running,
    ):
        stores.make_bucket("gs", endpoint, "staging")
        yield running, endpoint


@pytest.fixture
def url(servers: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch) -> str:
    running, endpoint = servers
    for name, value in stores.environment_of("gs", endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_bigquery_load, "_PART_BYTES", 1 << 19)
    return f"{running.use(monkeypatch)}?patience=120&staging=gs://staging/some/place"


def staged() -> list[str]:
    fs, path = filesystem("gs://staging/some/place")
    return sorted(fs.find(path))


def until_staged() -> None:
    end = time.monotonic() + 30
    while not staged():  # objects are on their way in other threads, or processes
        assert time.monotonic() < end
        time.sleep(0.02)


def loads(url: str) -> list[int]:
    """Of each load job into this dataset, how many objects it has read."""
    place = parse_url(url)
    with place.client() as client:
        jobs = [one for one in client.list_jobs(max_results=1_000) if one.job_type == "load"]
        return [len(one.source_uris or ()) for one in jobs if one.destination.dataset_id == place.dataset]


@pytest.mark.slow
def test_rows_are_loaded_from_the_bucket_by_one_job_in_each_mode_and_nothing_stays_there(url: str) -> None:
    warehouse = open_warehouse(url)
    assert warehouse.write("t", MANY, commit="one") == len(MANY)
    [objects] = loads(url)
    assert objects > 1
    assert warehouse.write("t", MANY, commit="one") == 0
    assert warehouse.source("t").to_arrow().sort_by("n").combine_chunks().equals(MANY)
    assert warehouse.write("t", OLD) == 3
    assert warehouse.write("t", OLD, mode="append", commit="more") == 3
    again = pa.table({"n": [9], "day": ["b"]})
    assert warehouse.write("t", again, mode="partition", partition_by="day") == 1
    assert sorted(warehouse.source("t").to_arrow()["n"].to_pylist()) == [1, 1, 3, 3, 9]
    assert warehouse.write("empty", OLD.slice(0, 0)) == 0
    assert warehouse.source("empty").to_arrow().equals(OLD.slice(0, 0))
    assert staged() == []


@pytest.mark.slow
def test_a_source_that_fails_half_way_leaves_the_old_table_and_no_objects(url: str) -> None:
    warehouse = open_warehouse(url)
    warehouse.write("t", OLD)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from MANY.to_batches()
        until_staged()
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        warehouse.write("t", Source("s", MANY.schema, batches), commit="broken")
    assert staged() == []
    assert warehouse.source("t").to_arrow().equals(OLD)


@pytest.mark.slow
def test_what_a_killed_write_left_in_the_bucket_is_taken_up_by_the_next_try_and_removed(url: str) -> None:
    warehouse = open_warehouse(url)
    warehouse.write("t", OLD)
    program = """
        import sys
        import pyarrow as pa
        from sp_ray_ml.data import Source, open_warehouse
        from sp_ray_ml.data import _bigquery_load
        _bigquery_load._PART_BYTES = 1 << 19
        table = pa.table({"n": range(300_000), "day": [f"{i * 7919:x}" for i in range(300_000)]})
        def batches():
            yield from table.to_batches()
            print("half-way", flush=True)
            sys.stdin.readline()
        open_warehouse(sys.argv[1]).write("t", Source("s", table.schema, batches), commit="killed")
        """
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "half-way"
    until_staged()
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    left = staged()
    assert warehouse.source("t").to_arrow().equals(OLD)
    assert warehouse.tables() == ["t"]
    assert warehouse.write("other", OLD, commit="killed") == 3  # the same commit's, of another table
    # What had wholly arrived when the writer was killed may be seen only now; of `other` nothing stays.
    assert set(left) <= set(staged())
    assert {path.rpartition("/")[0] for path in staged()} == {left[0].rpartition("/")[0]}
    assert warehouse.write("t", MANY, commit="killed") == len(MANY)
    assert staged() == []
    assert warehouse.source("t").to_arrow().num_rows == len(MANY)


@pytest.mark.slow
def test_a_part_that_is_there_is_not_sent_again_and_another_goes(url: str) -> None:
    target = Target(parse_url(url), "t", OLD.schema, None, None, Note())
    first = _bigquery_objects.Objects(target, "run")
    first.put(0, io.BytesIO(b"same"))
    first.put(1, io.BytesIO(b"other"))  # and killed
    marks = first._store.find("")
    with _bigquery_objects.Objects(target, "run") as second:
        second.put(1, io.BytesIO(b"new"))
        second.put(0, io.BytesIO(b"same"))
        assert [uri.rpartition("/")[2][:10] for uri in second.uris()] == ["part-00000", "part-00001"]
        now = second._store.find("")
        [kept] = [name for name in marks if name.startswith("part-00000")]
        assert now[kept] == marks[kept]
        assert len(now) == 3
    assert staged() == []


@pytest.mark.slow
def test_a_store_that_breaks_off_is_tried_again_and_rows_arrive_once(
    url: str, servers: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(int(servers[1].rpartition(":")[2])) as between:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{between.port}")
        filesystem("gs://staging")[0].clear_instance_cache()
        between.faults, between.after = ["refuse", "truncate"], 100
        warehouse = open_warehouse(url)
        assert warehouse.write("t", OLD) == 3
        assert not between.faults
        assert warehouse.source("t").to_arrow().equals(OLD)
    filesystem("gs://staging")[0].clear_instance_cache()


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told_with_the_command_that_makes_it(url: str) -> None:
    warehouse = open_warehouse(url.replace("gs://staging/", "gs://missing/"))
    with pytest.raises(WarehouseError, match="no bucket 'missing'") as caught:
        warehouse.write("t", OLD)
    assert "gcloud storage buckets create gs://missing --location=" in str(caught.value)
    assert warehouse.tables() == []


@pytest.mark.slow
def test_nulls_of_bignumeric_are_written_into_a_table_with_a_name_in_any_language(
    servers: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The emulator has neither: the objects are real, the answers of BigQuery recorded.
    for name, value in stores.environment_of("gs", servers[1]).items():
        monkeypatch.setenv(name, value)
    values = [Decimal(f"{'9' * 38}.{'9' * 38}"), None, Decimal(f"-0.{'0' * 37}1")]
    asked: list[dict[str, Any]] = []

    def work(body: dict[str, Any]) -> Any:
        configuration = body["configuration"]
        kind = "load" if "load" in configuration else "query"
        asked.append(configuration[kind])
        if kind == "load":
            [path] = staged()
            with filesystem("gs://staging")[0].open(path) as file:
                table = pq.read_table(file)
            assert table.to_pydict() == {"c0": values, "c1": ["a", None, ""]}
        return job(body["jobReference"]["jobId"], kind, **configuration[kind])

    table = "Événements 漢字"
    with recorded() as server:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", server.rest)
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.storage)
        base = "/bigquery/v2/projects/p"
        hidden = {"tableReference": {"projectId": "p", "datasetId": "d", "tableId": "x"}, "numRows": "3"}
        server.answers = {
            f"GET {base}/datasets/d": [(200, {"datasetReference": {"projectId": "p", "datasetId": "d"}, "location": "EU"})],
            f"GET {base}/datasets/d/tables/_sp.*": [(200, hidden)],
            f"POST {base}/datasets/d/tables": [lambda body: (200, body)],
            f"DELETE {base}/datasets/d/tables/_sp.*": [(200, {})],
            f"POST {base}/jobs": [work],
        }  # fmt: skip
        rows = pa.table({"big": pa.array(values, pa.decimal256(76, 38)), "Größe": ["a", None, ""]})
        house = open_warehouse("bigquery://p/d?patience=120&staging=gs://staging/some/place")
        assert house.write(table, rows) == 3
    load, query = asked
    assert [field["type"] for field in load["schema"]["fields"]] == ["BIGNUMERIC", "STRING"]
    assert query["query"].startswith(f"CREATE OR REPLACE TABLE `p`.`d`.`{table}`")
    assert "SELECT `c0` AS `big`, `c1` AS `Größe`" in query["query"]
    assert staged() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "message", "said", "command"),
    [
        ("invalid", "Cannot read and write in different locations: source: US, destination: EU", "another location",
         "gcloud storage buckets create gs://NAME --location=EU"),
        ("accessDenied", "Access Denied: File gs://staging/x.parquet: Access Denied", "may not read",
         "gcloud storage buckets add-iam-policy-binding gs://staging"),
        ("notFound", "Not found: URI gs://staging/x.parquet", "is gone", "try again"),
    ],
)  # fmt: skip
def test_what_a_load_job_cannot_read_is_told_with_its_id_and_nothing_stays(
    servers: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch, reason: str, message: str, said: str, command: str
) -> None:  # fmt: skip
    for name, value in stores.environment_of("gs", servers[1]).items():
        monkeypatch.setenv(name, value)
    asked: list[dict[str, Any]] = []

    def load(body: dict[str, Any]) -> Any:
        asked.append(body["configuration"]["load"])
        assert len(staged()) == 1
        return job(body["jobReference"]["jobId"], "load", (reason, message), **body["configuration"]["load"])

    with recorded() as server:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", server.rest)
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", server.storage)
        base = "/bigquery/v2/projects/p"
        server.answers = {
            f"GET {base}/datasets/d": [(200, {"datasetReference": {"projectId": "p", "datasetId": "d"}, "location": "EU"})],
            f"GET {base}/datasets/d/tables/t": [refusal(404, "notFound", "Not found: Table p:d.t")],
            f"POST {base}/datasets/d/tables": [lambda body: (200, body)],
            f"DELETE {base}/datasets/d/tables/_sp.*": [(200, {})],
            f"POST {base}/jobs": [load],
        }  # fmt: skip
        house = open_warehouse("bigquery://p/d?patience=120&staging=gs://staging/some/place")
        with pytest.raises(WarehouseError, match=said) as caught:
            house.write("t", OLD)
        assert [path for method, path, _ in server.asked if method == "DELETE"]
    assert "job sp_ray_ml_" in str(caught.value)
    assert command in str(caught.value)
    assert asked[0]["sourceUris"][0].startswith("gs://staging/some/place/sp_ray_ml_")
    assert (asked[0]["sourceFormat"], asked[0]["createDisposition"]) == ("PARQUET", "CREATE_NEVER")
    assert staged() == []


@pytest.mark.slow
@pytest.mark.parametrize("at", ["GET /storage/v1/b/staging/o", "POST /upload/storage/v1/b/staging/o"])
def test_a_bucket_that_may_not_be_used_is_told_at_once(
    servers: tuple[Emulator, str], url: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    # The store's emulator knows no rights: what the real one answers is recorded.
    with recorded() as store:
        denied = refusal(
            403, "forbidden", "you@example.com does not have storage.objects access to the bucket."
        )
        store.answers = {"GET /storage/v1/b/staging/o": [(200, {"kind": "storage#objects", "items": []})]}
        store.answers[at] = [denied]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.rest)
        filesystem("gs://staging")[0].clear_instance_cache()
        with pytest.raises(StorageError, match="permission denied") as caught:
            open_warehouse(url).write("t", OLD)
        assert "ask for access to staging" in str(caught.value)
        assert len([path for method, path, _ in store.asked if f"{method} {path}".startswith(at)]) == 1
    filesystem("gs://staging")[0].clear_instance_cache()
    assert open_warehouse(url).tables() == []


def test_a_bucket_that_may_not_be_written_is_told_without_waiting() -> None:
    from gcsfs.retry import HttpError
    from google.auth.exceptions import RefreshError

    def passes(cause: Exception) -> bool:
        error = StorageError("cannot write")
        error.__cause__ = cause
        return _bigquery_objects._passing(error)

    assert not passes(HttpError({"code": 403, "message": "denied"}))
    assert not passes(HttpError({"code": 401, "message": "Invalid Credentials"}))
    assert not passes(RefreshError("expired"))
    assert not passes(PermissionError("denied"))
    for later in (
        HttpError({"code": 503, "message": "later"}),
        HttpError({"code": 429, "message": "slow"}),
        TimeoutError(),
    ):
        assert passes(later)


@pytest.mark.parametrize(
    "place", ["s3://b/x", "gs://", "gs://b", "/tmp/x", "gs://bucket/a*b", "gs://UPPER/x"]
)
def test_staging_is_a_place_in_cloud_storage(place: str) -> None:
    with pytest.raises(ConfigError, match="staging"):
        parse_url(f"bigquery://p/d?staging={place}")
    assert parse_url("bigquery://p/d?staging=gs://my-bucket/a/b/").staging == "gs://my-bucket/a/b"
    assert parse_url("bigquery://p/d").staging is None
