"""What goes wrong around a warehouse: locks, kills, full disks, folders that cannot be written. Nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from sp_ray_ml.data import Source, Warehouse, open_warehouse
from sp_ray_ml.errors import LockedError, StorageError, WarehouseError

BOTH = pytest.mark.parametrize("name", ["house.duckdb", "house"])
OLD = pa.table({"n": [1, 2, 3], "text": ["a", "b", "c"]})


def old(tmp_path: Path, name: str) -> Warehouse:
    warehouse = open_warehouse(tmp_path / name)
    warehouse.write("t", OLD, commit="first")
    return warehouse


def child(code: str, *args: str) -> subprocess.Popen[str]:
    """Another process: `args` are its sys.argv; it prints a line when it is where the test wants it."""
    program = textwrap.dedent(
        """
        import os, sys, time
        import pyarrow as pa
        from sp_ray_ml.data import Source, open_warehouse
        from sp_ray_ml.errors import SpRayError
        SCHEMA = pa.schema({"n": pa.int64(), "text": pa.string()})
        def block(i, rows=400_000):
            text = [f"{i * 7919 + j:x}" for j in range(rows)]
            return pa.record_batch({"n": range(rows), "text": text}, schema=SCHEMA)
        def say(word):
            print(word, flush=True)
        """
    ) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *args], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_killed_writer_leaves_the_old_table(tmp_path: Path, name: str, mode: str) -> None:
    warehouse = old(tmp_path, name)
    writer = child(
        """
        def batches():
            for i in range(3):
                yield block(i)
            say("half-way")
            sys.stdin.readline()
        open_warehouse(sys.argv[1]).write("t", Source("s", SCHEMA, batches), mode=sys.argv[2], commit="killed")
        """,
        str(tmp_path / name),
        mode,
    )
    assert line(writer) == "half-way"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert warehouse.tables() == ["t"]
    assert warehouse.source("t").to_arrow().equals(OLD)
    assert warehouse.write("t", OLD, mode="append", commit="killed") == 3
    assert warehouse.source("t").to_arrow()["n"].to_pylist() == [1, 2, 3] * 2
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@BOTH
def test_killed_first_writer_leaves_no_table(tmp_path: Path, name: str) -> None:
    writer = child(
        """
        def batches():
            yield block(0)
            yield block(1)
            say("half-way")
            sys.stdin.readline()
        open_warehouse(sys.argv[1]).write("t", Source("s", SCHEMA, batches))
        """,
        str(tmp_path / name),
    )
    assert line(writer) == "half-way"
    end(writer)
    warehouse = open_warehouse(tmp_path / name)
    warehouse.write("other", OLD)
    assert warehouse.tables() == ["other"]


@BOTH
def test_second_writer_is_told_who_is_first(tmp_path: Path, name: str) -> None:
    warehouse = old(tmp_path, name)
    writer = child(
        """
        def batches():
            yield block(0, 2)
            say("writing")
            sys.stdin.readline()
        say(str(open_warehouse(sys.argv[1]).write("t", Source("s", SCHEMA, batches))))
        """,
        str(tmp_path / name),
    )
    try:
        assert line(writer) == "writing"
        with pytest.raises(LockedError, match=rf"process {writer.pid}"):
            warehouse.write("t", OLD)
        assert writer.stdin is not None
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        assert line(writer) == "2"
    finally:
        end(writer)
    assert warehouse.source("t").to_arrow().num_rows == 2


@pytest.mark.slow
@BOTH
def test_many_writers_at_once_never_mix(tmp_path: Path, name: str) -> None:
    code = """
        say("ready")
        sys.stdin.readline()
        done = 0
        for i in range(4):
            try:
                done += open_warehouse(sys.argv[1]).write("t", block(i, 1_000), mode="append")
            except SpRayError as error:
                assert type(error).__name__ == "LockedError", repr(error)
        say(str(done))
        """
    old(tmp_path, name)
    writers = [child(code, str(tmp_path / name)) for _ in range(3)]
    try:
        for writer in writers:
            assert line(writer) == "ready"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        written = [int(line(writer)) for writer in writers]
    finally:
        for writer in writers:
            end(writer)
    assert sum(written) > 0
    assert open_warehouse(tmp_path / name).source("t").to_arrow().num_rows == 3 + sum(written)


def test_locked_database_names_the_process(tmp_path: Path) -> None:
    warehouse = old(tmp_path, "house.duckdb")
    holder = child(
        """
        import duckdb
        connection = duckdb.connect(sys.argv[1])
        say("held")
        sys.stdin.readline()
        """,
        str(tmp_path / "house.duckdb"),
    )
    try:
        assert line(holder) == "held"
        for act in (warehouse.tables, lambda: warehouse.source("t"), lambda: warehouse.write("t", OLD)):
            with pytest.raises(LockedError, match=rf"process {holder.pid}.*ps -p {holder.pid}"):
                act()
    finally:
        end(holder)
    assert warehouse.source("t").to_arrow().equals(OLD)


def test_readers_share_a_database(tmp_path: Path) -> None:
    warehouse = old(tmp_path, "house.duckdb")
    reader = child(
        """
        stream = open_warehouse(sys.argv[1]).source("t").batches()
        next(stream)
        say("reading")
        sys.stdin.readline()
        """,
        str(tmp_path / "house.duckdb"),
    )
    try:
        assert line(reader) == "reading"
        assert warehouse.source("t").to_arrow().equals(OLD)
        with pytest.raises(LockedError, match=rf"process {reader.pid}"):
            warehouse.write("t", OLD)
    finally:
        end(reader)


def test_own_reader_half_way_locks_a_duckdb_write(tmp_path: Path) -> None:
    warehouse = old(tmp_path, "house.duckdb")
    stream = warehouse.source("t").batches()
    next(stream)
    with pytest.raises(LockedError, match="this process"):
        warehouse.write("t", OLD)
    stream.close()  # type: ignore[attr-defined]
    assert warehouse.write("t", OLD) == 3


@pytest.mark.slow
@BOTH
def test_full_disk_leaves_the_old_table(tmp_path: Path, name: str) -> None:
    warehouse = old(tmp_path, name)
    # A limit on the size of a file stands in for a full disk: the same failed write(2), in the same place.
    writer = child(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        def batches():
            for i in range(20):
                yield block(i)
        for mode in ("replace", "append"):
            try:
                open_warehouse(sys.argv[1]).write("t", Source("s", SCHEMA, batches), mode=mode)
            except SpRayError as error:
                say(f"{type(error).__name__} {error}")
        """,
        str(tmp_path / name),
    )
    out, _ = writer.communicate()
    lines = out.strip().splitlines()
    assert len(lines) == 2, out
    assert all(text.startswith("StorageError") and "larger than the limit" in text for text in lines)
    assert warehouse.source("t").to_arrow().equals(OLD)
    assert warehouse.write("t", OLD, mode="append") == 3
    assert not list(tmp_path.rglob("*.tmp"))


@BOTH
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_file_system_leaves_the_old_table(tmp_path: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("cannot mount here")
    try:
        warehouse = old(disk, name)
        free = os.statvfs(disk).f_bfree

        def batches() -> Iterator[pa.RecordBatch]:
            for i in range(20):
                yield pa.record_batch(
                    {"n": range(300_000), "text": [os.urandom(20).hex() for _ in range(300_000)]}
                )
                del i

        with pytest.raises(StorageError, match=r"disk is full.*df -h"):
            warehouse.write("t", Source("s", OLD.schema, batches))
        assert warehouse.source("t").to_arrow().equals(OLD)
        assert os.statvfs(disk).f_bfree >= free - 1
        assert warehouse.write("t", OLD, mode="append") == 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@BOTH
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_read_only_warehouse_reads_and_refuses_writes(tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    old(place, name)
    bind = ["mount", "--bind", "-o", "ro", str(place), str(place)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        warehouse = open_warehouse(place / name)
        assert warehouse.tables() == ["t"]
        assert warehouse.source("t").to_arrow().equals(OLD)
        assert warehouse.source("SELECT sum(n) AS s FROM t").to_arrow().to_pydict() == {"s": [6]}
        assert warehouse.fingerprint("t")
        with pytest.raises(StorageError, match="read-only"):
            warehouse.write("t", OLD)
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", ["file/house.duckdb", "file/house"])
def test_path_below_a_file_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_warehouse(tmp_path / name).write("t", OLD)
    with pytest.raises(WarehouseError, match="no such"):
        open_warehouse(tmp_path / name).tables()


@pytest.mark.parametrize(("name", "near"), [("huose.duckdb", "house.duckdb"), ("mart", "marts")])
def test_missing_warehouse_is_named_and_not_made(tmp_path: Path, name: str, near: str) -> None:
    open_warehouse(tmp_path / "house.duckdb").write("t", OLD)
    (tmp_path / "marts").mkdir()
    before = sorted(tmp_path.iterdir())
    for act in (
        lambda w: w.tables(),
        lambda w: w.source("t"),
        lambda w: w.fingerprint("t"),
        lambda w: w.schema("t"),
    ):
        with pytest.raises(WarehouseError, match=f"did you mean .*{near}"):
            act(open_warehouse(tmp_path / name))
    assert sorted(tmp_path.iterdir()) == before


def test_failed_first_write_makes_no_database(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        raise RuntimeError("broken")
        yield

    with pytest.raises(RuntimeError, match="broken"):
        open_warehouse(tmp_path / "new.duckdb").write("t", Source("s", OLD.schema, broken))
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"no database" * 1_000)
    with pytest.raises(WarehouseError, match="not a valid DuckDB"):
        open_warehouse(tmp_path / "bad.duckdb").tables()
    (tmp_path / "bad.parquet").write_bytes(b"no parquet" * 1_000)
    for query in ("bad", "SELECT * FROM bad"):
        with pytest.raises(StorageError, match="not Parquet, or damaged"):
            open_warehouse(tmp_path).source(query)
    folder = tmp_path / "t" / "_manifests"
    folder.mkdir(parents=True)
    (folder / "00000001.json").write_text("{}")
    with pytest.raises(StorageError, match="not a manifest"):
        open_warehouse(tmp_path).tables()
