"""Object stores when all is well and when it is not, on real servers behind a proxy that drops, stalls and truncates."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml import _transfer
from sp_ray_ml._remote import create, filesystem
from sp_ray_ml.data import Source, open_warehouse
from sp_ray_ml.errors import LockedError, StorageError
from sp_ray_ml.storage import local_copy, new_folder
from tests import stores
from tests.proxy import Fault, Proxy, proxy

pytestmark = pytest.mark.slow
ROWS = pa.table({"n": [1, 2, 3], "text": ["a", None, "ü"]})
BOTH = pytest.mark.parametrize("kind", ["s3", "gs"])


class Stores:
    """Both servers behind a proxy each, and this process's environment set to them."""

    def __init__(self) -> None:
        self.proxies: dict[str, Proxy] = {}

    def url(self, kind: str) -> str:
        return f"{kind}://bucket/{uuid.uuid4()}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with stores.both(tmp_path_factory.mktemp("stores")) as endpoints:
        yield endpoints


@pytest.fixture
def both(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stores]:
    found = Stores()
    monkeypatch.setenv("SP_RAY_STORAGE_TIMEOUT", "60")
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    ports = {kind: int(url.rpartition(":")[2]) for kind, url in servers.items()}
    with proxy(ports["s3"]) as s3, proxy(ports["gs"]) as gs:
        for kind, between in (("s3", s3), ("gs", gs)):
            found.proxies[kind] = between
            for name, value in stores.environment_of(kind, f"http://127.0.0.1:{between.port}").items():
                monkeypatch.setenv(name, value)
        for kind in ("s3", "gs"):  # a file system of another test's proxy is not taken up again
            type(filesystem(f"{kind}://bucket")[0]).clear_instance_cache()
        yield found


@BOTH
def test_of_two_who_make_an_object_one_does(both: Stores, kind: str) -> None:
    url = both.url(kind)
    assert create(f"{url}/one", b"first")
    assert not create(f"{url}/one", b"second")
    fs, path = filesystem(f"{url}/one")
    assert fs.cat_file(path) == b"first"


def test_a_store_without_conditional_writes_is_found_out_and_nothing_stays_there(
    both: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sp_ray_ml._remote._conditional", set())
    url = both.url("s3")
    both.proxies["s3"].without = b"If-None-Match: *\r\n"
    with pytest.raises(StorageError, match="writes over what is there") as caught:
        create(f"{url}/one", b"first")
    assert "conditional writes" in (caught.value.hint or "")
    fs, top = filesystem(url)
    assert fs.find(top) == []


@BOTH
def test_of_two_writers_one_is_told_and_the_table_is_the_others(both: Stores, kind: str) -> None:
    url = both.url(kind)
    one, two = open_warehouse(url), open_warehouse(url)
    one.write("t", ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        two.write("t", {"n": [7], "text": ["two"]}, mode="append")
        yield from ROWS.to_batches()

    with pytest.raises(LockedError, match="another writer"):
        one.write("t", Source("slow", ROWS.schema, batches), mode="append", commit="one")
    assert one.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3, 7]
    assert one.write("t", ROWS, mode="append", commit="one") == 3
    assert two.source("t").num_rows == 7


@BOTH
def test_killed_writer_leaves_the_old_table_and_no_garbage_after_the_next(both: Stores, kind: str) -> None:
    url = both.url(kind)
    house = open_warehouse(url)
    house.write("t", ROWS, commit="first")
    code = f"""
import sys, pyarrow as pa
from sp_ray_ml.data import Source, open_warehouse
schema = pa.schema({{"day": pa.int64(), "n": pa.int64()}})
def batches():
    for i in range(3):
        yield pa.record_batch({{"day": [i] * 300_000, "n": range(300_000)}}, schema=schema)
    print("half-way", flush=True)
    sys.stdin.readline()
open_warehouse({url!r}).write("t", Source("s", schema, batches), partition_by="day", commit="x")
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "half-way"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert house.tables() == ["t"]
    assert house.source("t").to_arrow().equals(ROWS)
    assert house.write("t", ROWS, mode="append", commit="x") == 3
    fs, path = filesystem(url)
    assert not [file for file in fs.find(path) if "day=" in file]
    assert house.source("t").num_rows == 6


@BOTH
def test_reader_under_way_finishes_while_the_table_is_replaced_once(both: Stores, kind: str) -> None:
    house = open_warehouse(both.url(kind))
    house.write("t", ROWS)
    source = house.source("t")
    house.write("t", {"other": [1]})
    assert source.to_arrow().equals(ROWS)
    house.write("t", {"other": [2]})
    with pytest.raises(StorageError, match=r"went away.*Read it again"):
        source.to_arrow()


@BOTH
def test_million_rows_by_partition_are_pruned_and_queried(both: Stores, kind: str) -> None:
    house = open_warehouse(both.url(kind))
    rows = pa.table(
        {"n": np.arange(1_000_000), "day": np.arange(1_000_000) // 100_000, "é": ["ü"] * 1_000_000}
    )
    assert house.write("many", rows, partition_by="day") == 1_000_000
    some = house.source("many", columns=["n"], where=[("day", "==", 3), ("n", "<", 300_010)])
    assert some.to_arrow()["n"].to_pylist() == list(range(300_000, 300_010))
    assert house.source(
        "SELECT count(*) AS c, sum(n) AS s FROM many WHERE day >= 5"
    ).to_arrow().to_pylist() == [{"c": 500_000, "s": sum(range(500_000, 1_000_000))}]
    assert house.source("many").to_arrow()["n"].to_numpy().sum() == rows["n"].to_numpy().sum()


# --- bad networks -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("fault", ["refuse", "delay", "truncate", "stall"])
def test_network_that_recovers_loses_nothing(
    both: Stores, kind: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_STORAGE_TIMEOUT", "5")  # so long does a stall last
    url = both.url(kind)
    house = open_warehouse(url)
    house.write("t", ROWS)
    between = both.proxies[kind]
    type(filesystem(url)[0]).clear_instance_cache()  # connections that are open are not in the way
    between.faults, between.after = [fault, fault, "delay"] if fault == "refuse" else [fault, "delay"], 100
    assert house.write("t", ROWS, mode="append", commit="once") == 3
    assert house.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2
    assert house.write("t", ROWS, mode="append", commit="once") == 0
    assert not between.faults


@BOTH
def test_network_that_stalls_for_good_ends_in_a_clear_error(
    both: Stores, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_STORAGE_TIMEOUT", "0.2")
    url = both.url(kind)
    both.proxies[kind].faults = ["stall"] * 100
    with pytest.raises(StorageError, match=r"the network stalls: no answer in 0\.2 s") as caught:
        open_warehouse(url).tables()
    assert url in (caught.value.where or "")


def _answer(status: str, body: str, method: bytes = b"PUT") -> Any:
    said = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    return lambda head: said.encode() if head.startswith(method) else None


def _xml(code: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No. AKIASECRET</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "said", "hint"),
    [
        ("507 Insufficient Storage", "InsufficientStorage", "the bucket is full", "quota raised"),
        ("403 Forbidden", "QuotaExceeded", "the bucket is full", "quota raised"),
        ("403 Forbidden", "AccessDenied", "permission denied", "aws sts get-caller-identity"),
        ("400 Bad Request", "ExpiredToken", "credentials have expired", "aws sso login"),
        ("403 Forbidden", "InvalidAccessKeyId", "credentials are not accepted", "aws sso login"),
    ],
)
def test_refusals_of_s3_say_what_to_do_and_leave_the_table(
    both: Stores, status: str, code: str, said: str, hint: str
) -> None:
    house = open_warehouse(both.url("s3"))
    house.write("t", ROWS)
    both.proxies["s3"].answer = _answer(status, _xml(code))
    with pytest.raises(StorageError, match=said) as caught:
        house.write("t", {"n": [9]})
    assert hint in (caught.value.hint or "")
    both.proxies["s3"].answer = None
    assert house.source("t").to_arrow().equals(ROWS)


@pytest.mark.parametrize(
    ("status", "message", "said", "hint"),
    [
        ("403 Forbidden", "The project exceeded its quota", "the bucket is full", "quota raised"),
        (
            "403 Forbidden",
            "x does not have storage.objects.create access",
            "permission denied",
            "gcloud auth list",
        ),
        (
            "401 Unauthorized",
            "Unauthorized",
            "credentials are not accepted",
            "gcloud auth application-default login",
        ),
    ],
)
def test_refusals_of_google_say_what_to_do_and_leave_the_table(
    both: Stores, status: str, message: str, said: str, hint: str
) -> None:
    house = open_warehouse(both.url("gs"))
    house.write("t", ROWS)
    both.proxies["gs"].answer = _answer(status, json.dumps({"error": {"message": message, "code": int(status[:3])}}), b"POST")  # fmt: skip
    with pytest.raises(StorageError, match=said) as caught:
        house.write("t", {"n": [9]})
    assert hint in (caught.value.hint or "")
    both.proxies["gs"].answer = None
    assert house.source("t").to_arrow().equals(ROWS)


def test_no_credentials_and_no_bucket_are_said(both: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no such bucket 'nowhere'") as caught:
        open_warehouse("s3://nowhere/x").write("t", ROWS)
    assert "aws s3 mb s3://nowhere" in (caught.value.hint or "")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    type(filesystem("s3://bucket")[0]).clear_instance_cache()
    with pytest.raises(StorageError, match="there are no credentials") as caught:
        open_warehouse(both.url("s3")).write("t", ROWS)
    assert "aws sso login" in (caught.value.hint or "")


# --- folders ----------------------------------------------------------------------------------------------------


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "sub").mkdir(parents=True)
    (folder / "small").write_bytes(b"small")
    (folder / "sub" / "gróß").write_bytes(np.random.default_rng(0).bytes(26 << 20))
    return folder


@BOTH
def test_broken_upload_goes_on_with_what_is_there(
    both: Stores, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transfer, "_PART", 5 << 20)
    folder, url = _folder(tmp_path), both.url(kind)
    sent: list[int] = []
    real = _transfer._parts

    def parts(file: Path, part: int) -> Iterator[tuple[int, bytes]]:
        for number, content in real(file, part):
            if number == 4 and not sent:
                sent.append(number)
                raise StorageError("the cable was pulled")
            yield number, content

    monkeypatch.setattr(_transfer, "_parts", parts)
    with pytest.raises(StorageError, match="cable"):
        _transfer.upload_folder(folder, url)
    with pytest.raises(StorageError, match="nothing complete is there"):
        local_copy(url)
    counted = [0]

    def count(head: bytes) -> None:
        counted[0] += len(head)

    both.proxies[kind].answer = count
    _transfer.upload_folder(folder, url)
    assert counted[0] < 14 << 20  # three parts of 5 MiB were there
    copy = local_copy(url)
    assert (copy / "sub" / "gróß").read_bytes() == (folder / "sub" / "gróß").read_bytes()
    assert (copy / "small").read_bytes() == b"small"
    counted[0] = 0
    _transfer.upload_folder(folder, url)
    assert counted[0] < 1 << 20


def test_folder_at_a_url_is_replaced_at_once_and_damage_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4()}/folder"
    for content in ("one", "two"):
        with new_folder(url) as folder:
            (folder / "file").write_text(content)
        assert (local_copy(url) / "file").read_text() == content
    with pytest.raises(RuntimeError, match="broke"), new_folder(url) as folder:  # noqa: PT012
        (folder / "file").write_text("three")
        raise RuntimeError("broke")
    assert local_copy(url) == local_copy(url)
    assert (local_copy(url) / "file").read_text() == "two"
    fs = fsspec.filesystem("memory")
    path = next(file for file in fs.find(url.removeprefix("memory://")) if fs.cat_file(file) == b"two")
    fs.pipe_file(path, b"owt")
    monkeypatch.setenv("SP_RAY_CACHE", str(tmp_path / "other"))
    with pytest.raises(StorageError, match="checksum differs"):
        local_copy(url)
    assert not [entry for entry in (tmp_path / "other").iterdir() if entry.is_dir()]


@BOTH
def test_graphs_live_at_urls(both: Stores, kind: str) -> None:
    from sp_ray_ml.graph import EdgeTable, Graph, construct_graph

    url = both.url(kind)
    events = pa.table({"user": ["a", "b", "a"], "item": [1, 2, 2], "time": [1, 2, 3]})
    edges = {
        ("user", "plays", "item"): EdgeTable(table=events, source="user", destination="item", time="time")
    }
    made = construct_graph(url, edges)
    assert made.num_nodes == {"user": 2, "item": 2}
    made.save(f"{url}-again")
    again = Graph.load(f"{url}-again", verify=True)
    assert again.num_nodes == made.num_nodes
    with pytest.raises(StorageError, match="nothing complete"):
        Graph.load(f"{url}-none")


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "STORAGE_EMULATOR_HOST")]
)
def test_a_bucket_is_opened_by_the_environment_of_now(scheme, variable, monkeypatch):
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    first = filesystem(f"{scheme}://bucket")[0]
    assert filesystem(f"{scheme}://bucket")[0] is first
    monkeypatch.setenv(variable, "http://127.0.0.1:2")
    assert filesystem(f"{scheme}://bucket")[0] is not first
