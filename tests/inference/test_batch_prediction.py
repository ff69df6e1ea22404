"""Batch prediction in one process: each row once, rows that fail set aside, broken off and gone on with."""

from __future__ import annotations

import collections
import errno
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml import Predictor, batch_predict
from sp_ray_ml.config import Custom
from sp_ray_ml.data import Source, as_source, open_warehouse
from sp_ray_ml.data._store import RemoteStore, store_at
from sp_ray_ml.errors import ConfigError, DataError, LockedError, StorageError
from sp_ray_ml.inference import BatchScaling, Output, Pool, Rejected
from sp_ray_ml.inference._batch_engine import Engine, Job
from sp_ray_ml.inference._batch_flow import Flow
from sp_ray_ml.inference._batch_parts import Part
from sp_ray_ml.inference._batch_pipe import piped
from sp_ray_ml.inference._batch_stage import Stage

ROWS = 10_000
SMALL = {"batch_rows": 1_000, "partition_rows": 2_000}

OWN = '''
import pyarrow as pa
import pyarrow.compute as pc
from sp_ray_ml import Predictor

class Doubled(Predictor):
    """Twice the column, where it is a number and not negative."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def predict(self, table):
        values = table["x"].cast(pa.float64())
        if len(values) and (pc.min(values).as_py() or 0) < 0:
            raise ValueError("a number is negative")
        return table.append_column("prediction", pc.multiply(values, self.factor))
'''


class Doubled(Predictor):
    """Twice the column; keeps how many rows each call had."""

    def __init__(self) -> None:
        super().__init__({"sha256": "doubled"})
        self.calls: list[int] = []

    def predict(self, table):
        return self.assemble(table, self.infer(self.prepare(table)))

    def prepare(self, rows):
        return rows["x"].to_numpy()

    def infer(self, prepared):
        if len(prepared):
            self.calls.append(len(prepared))
        self.check(prepared)
        return prepared * 2.0

    def check(self, x):
        if (x < 0).any():
            raise ValueError("a number is negative")

    def assemble(self, rows, found):
        return rows.append_column("prediction", pa.array(found))


def rows(count: int = ROWS) -> pa.Table:
    return pa.table(
        {"id": np.arange(count), "x": np.arange(count) / 7, "name": [f"n{i}" for i in range(count)]}
    )


def with_negative(table: pa.Table, *places: int) -> pa.Table:
    x = table["x"].to_numpy().copy()
    x[list(places)] = -1 - np.arange(len(places))
    return table.set_column(1, "x", pa.array(x))


def written(table: str = "predictions") -> pa.Table:
    return open_warehouse("out").source(table).to_arrow()


@pytest.fixture(params=["stream", "table", "parquet", "partitioned"])
def data(request, tmp_path):
    table = rows()
    if request.param == "stream":
        return Source("rows", table.schema, lambda: iter(table.to_batches(max_chunksize=777)))
    if request.param == "table":
        return table
    if request.param == "parquet":
        (tmp_path / "rows").mkdir()
        for number in range(3):
            part = table.slice(number * 4_000, 4_000)
            pq.write_table(part, tmp_path / "rows" / f"{number}.parquet", row_group_size=900)
        return tmp_path / "rows"
    cut = table.append_column("day", pa.array([i // 6_000 for i in range(ROWS)], pa.int64()))
    open_warehouse(tmp_path / "in").write("rows", cut, mode="partition", partition_by="day")
    return open_warehouse(tmp_path / "in").source("rows")


@pytest.mark.parametrize(
    ("batch", "partition"), [(1_000, 2_500), (10_000, 100_000 // 65_536 * 65_536), (None, None)]
)
def test_predictions_are_those_of_predict_in_the_order_of_the_rows(data, batch, partition):
    whole = (
        data.to_arrow()
        if isinstance(data, Source)
        else pq.read_table(data)
        if not isinstance(data, pa.Table)
        else data
    )
    result = batch_predict(
        Doubled(), data, ("out", "predictions"), batch_rows=batch, partition_rows=partition
    )
    assert written().equals(Doubled().predict(whole))
    assert (result.rows, result.written, result.rejected, result.resumed) == (ROWS, ROWS, 0, 0)
    assert result.gpu_busy is None or 0 <= result.gpu_busy <= 1
    assert f"{ROWS:,} rows" in str(result)


def test_nothing_stays_of_the_folder_that_predictions_are_kept_in(tmp_path):
    batch_predict(Doubled(), rows(), ("out", "predictions"))
    assert list((tmp_path / "runs" / "batch").iterdir()) == []


def test_a_predictor_of_ones_own_comes_by_import_path_and_with_arguments(tmp_path):
    (tmp_path / "own_doubled.py").write_text(OWN)
    batch_predict("own_doubled:Doubled", rows(), ("out", "predictions"))
    assert written()["prediction"].equals(pa.chunked_array([rows()["x"].to_numpy() * 2]))
    batch_predict(
        Custom(target="own_doubled:Doubled", arguments={"factor": 3.0}), rows(), ("out", "predictions")
    )
    assert written()["prediction"].equals(pa.chunked_array([rows()["x"].to_numpy() * 3]))


@pytest.mark.parametrize(
    ("predictor", "says"),
    [
        ("no_such_module:Thing", "no module"),
        ("collections:OrderedDict", "no Predictor"),
        (Custom(target=Doubled, arguments={"nothing": 1}), "cannot be made"),
    ],
)
def test_what_is_no_predictor_is_refused(predictor, says):
    with pytest.raises(ConfigError, match=says):
        batch_predict(predictor, rows(), ("out", "predictions"))


# --- rows that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", [None, 1_500])
def test_rows_that_fail_are_set_aside_with_the_reason_and_all_others_predicted(partition):
    table = with_negative(rows(), 0, 77, 78, 9_999)
    result = batch_predict(
        Doubled(),
        table,
        ("out", "predictions"),
        rejected=Rejected(),
        batch_rows=1_000,
        partition_rows=partition,
    )
    good = table.filter(pa.array(table["x"].to_numpy() >= 0))
    assert written().equals(Doubled().predict(good))
    aside = written("predictions_rejected")
    assert aside["rejected_row"].to_pylist() == [0, 77, 78, 9_999]
    assert aside["rejected_reason"].unique().to_pylist() == ["ValueError: a number is negative"]
    assert aside.select(table.column_names).equals(table.take([0, 77, 78, 9_999]))
    assert (result.rows, result.written, result.rejected) == (ROWS, ROWS - 4, 4)


@pytest.mark.parametrize("part", ["prepare", "assemble"])
def test_rows_fail_in_any_part_of_the_work(monkeypatch, part):
    table = with_negative(rows(2_000), 1_234)
    before = getattr(Doubled, part)
    monkeypatch.setattr(Doubled, "check", lambda self, x: None)

    def fails(self, given, *more):
        values = given["x"].to_numpy()
        if (values < 0).any():
            raise KeyError("negative")
        return before(self, given, *more)

    monkeypatch.setattr(Doubled, part, fails)
    batch_predict(Doubled(), table, ("out", "predictions"), rejected=Rejected(table="aside", most=1))
    assert written("aside")["rejected_row"].to_pylist() == [1_234]
    assert written().num_rows == 1_999


def test_the_first_row_that_fails_is_named_where_none_may():
    with pytest.raises(DataError, match="row 4,321: cannot be predicted: ValueError: a number is negative"):
        batch_predict(Doubled(), with_negative(rows(), 4_321), ("out", "predictions"))


@pytest.mark.parametrize("most", [3, 0.0003])
def test_more_rows_that_fail_than_may_end_it_and_nothing_is_written(most):
    batch_predict(Doubled(), rows(10), ("out", "predictions"))
    table = with_negative(rows(), 5, 6, 7, 8_000)
    options = {"batch_rows": 1_000, "partition_rows": 2_000}
    with pytest.raises(DataError, match="more than 3 rows cannot be predicted"):
        batch_predict(Doubled(), table, ("out", "predictions"), rejected=Rejected(most=most), **options)
    assert written().num_rows == 10
    result = batch_predict(Doubled(), table, ("out", "predictions"), rejected=Rejected(most=4), **options)
    assert (result.rejected, result.resumed > 0) == (4, True)


def test_a_share_of_an_unknown_number_of_rows_is_judged_at_the_end():
    table = with_negative(rows(), *range(20))
    source = Source("rows", table.schema, lambda: iter(table.to_batches()))
    with pytest.raises(DataError, match="more than 10 rows"):
        batch_predict(Doubled(), source, ("out", "predictions"), rejected=Rejected(most=0.001))
    batch_predict(Doubled(), source, ("out", "predictions"), rejected=Rejected(most=0.002))
    assert written().num_rows == ROWS - 20


def test_what_is_not_a_rows_fault_sets_no_row_aside(monkeypatch):
    def full(self, x):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Doubled, "check", lambda self, x: full(self, x) if len(x) else None)
    with pytest.raises(OSError, match="no space"):
        batch_predict(Doubled(), rows(), ("out", "predictions"), rejected=Rejected(most=1.0))


def lost(kind: str) -> Exception:
    """As clients raise it where nobody listens, or where there is no answer."""
    if kind == "urllib":
        return urllib.error.URLError(OSError(errno.EHOSTUNREACH, "no route to host"))
    if kind == "grpc":
        code = pytest.importorskip("grpc").StatusCode.UNAVAILABLE
        call = type("Call", (pytest.importorskip("grpc").RpcError,), {"code": lambda self: code})
        return call("unavailable")
    module, _, name = kind.rpartition(".")
    error = getattr(pytest.importorskip(module), name)
    return error(*(["gone"] if module != "aiohttp" else []))


LOST = ["requests.ConnectionError", "requests.Timeout", "requests.exceptions.ReadTimeout", "httpx.ConnectError",
        "httpx.ReadTimeout", "aiohttp.ServerDisconnectedError", "urllib", "grpc"]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", LOST)
def test_a_lost_network_sets_no_row_aside(monkeypatch, kind, wrapped):
    error = lost(kind)

    def fails(self, x):
        if not len(x):
            return
        if not wrapped:
            raise error
        try:
            raise error
        except type(error) as inner:
            raise RuntimeError("no features of this row") from inner

    monkeypatch.setattr(Doubled, "check", fails)
    with pytest.raises(RuntimeError if wrapped else type(error)):
        batch_predict(Doubled(), rows(10), ("out", "predictions"), rejected=Rejected(most=1.0))


def answered(kind: str) -> Exception:
    """As clients raise it for an address that leads nowhere, or an answer that is an error."""
    if kind == "http":
        return urllib.error.HTTPError("http://here", 404, "Not Found", Message(), None)
    if kind == "file":
        return urllib.error.URLError(FileNotFoundError(errno.ENOENT, "no such file"))
    if kind == "nonsense":
        return urllib.error.URLError("unknown url type: nonsense")
    return pytest.importorskip(kind).HTTPError("404 Not Found")


@pytest.mark.parametrize("kind", ["http", "file", "nonsense", "requests", "httpx"])
def test_an_address_that_leads_nowhere_is_its_rows_fault(monkeypatch, kind):
    def fails(self, x):
        if (x == 3 / 7).any():
            raise answered(kind)

    monkeypatch.setattr(Doubled, "check", fails)
    result = batch_predict(Doubled(), rows(10), ("out", "predictions"), rejected=Rejected(most=1))
    assert (result.written, result.rejected) == (9, 1)


def test_too_little_memory_for_a_batch_makes_it_smaller(monkeypatch):
    def tight(self, x):
        if len(x) > 2_000:
            raise MemoryError

    predictor = Doubled()
    with monkeypatch.context() as patch:
        patch.setattr(Doubled, "check", tight)
        batch_predict(predictor, rows(), ("out", "predictions"))
    assert written().equals(Doubled().predict(rows()))
    assert max(predictor.calls[-3:]) <= 2_000


def test_a_predictor_that_gives_other_columns_for_rows_is_an_error_and_no_rejection(monkeypatch):
    monkeypatch.setattr(Doubled, "assemble", lambda self, rows, found: rows if len(rows) else rows.append_column("p", pa.array([], pa.int64())))  # fmt: skip
    with pytest.raises(DataError, match="other columns"):
        batch_predict(Doubled(), rows(), ("out", "predictions"), rejected=Rejected(most=1.0))


# --- once, whatever happens --------------------------------------------------------------------------------------


def break_off(monkeypatch, data, output, at: int = 5_500, **options) -> None:
    """The model fails at the rows from this one on, as a machine does."""

    def fails(self, x):
        if len(x) and x[-1] >= at / 7:
            raise ConnectionError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Doubled, "check", fails)
        with pytest.raises(ConnectionError):
            batch_predict(Doubled(), data, output, **SMALL, **options)


def test_what_was_broken_off_goes_on_and_writes_each_row_once(data, monkeypatch):
    output = Output(warehouse="out", table="predictions", mode="append")
    before = Doubled().predict(as_source(data).to_arrow().slice(0, 5))
    open_warehouse("out").write("predictions", before)
    break_off(monkeypatch, data, output, at=7_500)
    assert written().num_rows == 5
    predictor = Doubled()
    result = batch_predict(predictor, data, output, **SMALL)
    assert 0 < result.resumed < result.partitions
    assert sum(predictor.calls) < ROWS  # what was done is not predicted again
    assert written()["id"].to_pylist() == [*range(5), *range(ROWS)]


def test_partitions_are_kept_at_a_url_too(monkeypatch):
    break_off(monkeypatch, rows(), ("out", "predictions"), folder="memory://kept/here")
    result = batch_predict(Doubled(), rows(), ("out", "predictions"), folder="memory://kept/here", **SMALL)
    assert 0 < result.resumed < result.partitions
    assert written().equals(Doubled().predict(rows()))
    assert fsspec.filesystem("memory").find("/kept") == []


class KilledStore(RemoteStore):
    """Its process is killed when it has removed one file."""

    def remove(self, folder, paths):
        super().remove(folder, list(paths)[:1])
        raise KeyboardInterrupt


def test_a_folder_at_a_url_that_was_not_cleared_to_its_end_is_taken_up(monkeypatch):
    folder, output = "memory://half/cleared", Output(warehouse="out", table="predictions", mode="append")
    break_off(monkeypatch, rows(), output, folder=folder)
    with pytest.raises(KeyboardInterrupt):
        Stage(KilledStore(folder)).clear()
    assert len(fsspec.filesystem("memory").find("/half")) > 1
    batch_predict(Doubled(), rows(), output, folder=folder, **SMALL)
    assert written().equals(Doubled().predict(rows()))
    assert fsspec.filesystem("memory").find("/half") == []


def test_partitions_whose_rows_are_others_by_now_are_predicted_again(monkeypatch):
    break_off(monkeypatch, rows(), ("out", "predictions"))
    changed = rows()
    x = changed["x"].to_numpy().copy()
    x[1_500] = 0.25
    changed = changed.set_column(1, "x", pa.array(x))
    result = batch_predict(Doubled(), changed, ("out", "predictions"), **SMALL)
    assert result.resumed == 1
    assert written().equals(Doubled().predict(changed))


def text_lengths(table: pa.Table) -> np.ndarray:
    """A number of each row's `name`, whether it is text, a list of one or a record with one."""
    names = table["name"].to_pylist()
    names = [each["in"][0] if isinstance(each, dict) else each for each in names]
    return np.array([len(name) for name in names], np.float64)


class Lengths(Doubled):
    """How long names are."""

    def prepare(self, rows):
        return text_lengths(rows)

    def assemble(self, rows, found):
        return pa.table({"prediction": found})


def pandas_category(names: list[str], folder: Path) -> Any:
    return pd.DataFrame({"name": pd.Categorical(names, categories=list(dict.fromkeys(names)))})


def nested_dictionary(names: list[str], folder: Path) -> pa.Table:
    codes = pa.array(names).dictionary_encode()
    lists = pa.FixedSizeListArray.from_arrays(codes, 1)
    return pa.table({"name": pa.StructArray.from_arrays([lists], ["in"])})


def duckdb_enum(names: list[str], folder: Path) -> Source:
    (folder / "in.duckdb").unlink(missing_ok=True)
    with duckdb.connect(folder / "in.duckdb") as database:
        kinds = ", ".join(f"'{name}'" for name in dict.fromkeys(names))
        database.execute(f"CREATE TYPE kind AS ENUM ({kinds})")
        database.register("given", pa.table({"name": names}))
        database.execute("CREATE TABLE rows AS SELECT name::kind AS name FROM given")
    return open_warehouse(f"duckdb:///{folder / 'in.duckdb'}").source("rows")


@pytest.mark.parametrize("given", [pandas_category, nested_dictionary, duckdb_enum])
def test_other_categories_under_the_same_codes_are_predicted_again(monkeypatch, tmp_path, given):
    def fails(self, x):
        if len(x) and x[-1] == 5:
            raise ConnectionError("the network is gone")

    first, last = ["a", "bb"] * 1_000, ["eeeee"] * 2_000
    old, new = ([*first, *(names * 1_000), *last] for names in (["ccc", "dddd"], ["xxxxxx", "yyyyyyy"]))
    with monkeypatch.context() as patch:
        patch.setattr(Doubled, "check", fails)
        with pytest.raises(ConnectionError):
            batch_predict(Lengths(), given(old, tmp_path), ("out", "predictions"), **SMALL)
    result = batch_predict(Lengths(), given(new, tmp_path), ("out", "predictions"), **SMALL)
    assert result.resumed < 2  # the first at most: the second has other rows
    assert written()["prediction"].to_pylist() == [2.0 * len(name) for name in new]


def test_files_that_were_written_again_are_predicted_again(monkeypatch, tmp_path):
    pq.write_table(rows(), tmp_path / "rows.parquet", row_group_size=1_000)
    break_off(monkeypatch, "rows.parquet", ("out", "predictions"))
    other = rows().set_column(1, "x", pa.array(np.ones(ROWS)))
    pq.write_table(other, tmp_path / "rows.parquet", row_group_size=1_000)
    result = batch_predict(Doubled(), "rows.parquet", ("out", "predictions"), **SMALL)
    assert result.resumed == 0
    assert written().equals(Doubled().predict(other))


def test_a_write_that_was_done_already_is_not_done_again(monkeypatch):
    output = Output(warehouse="out", table="predictions", mode="append")
    first = batch_predict(Doubled(), rows(50), output, commit="monday")
    batch_predict(Doubled(), rows(50), output, commit="monday")
    assert written().num_rows == first.written == 50
    batch_predict(Doubled(), rows(50), output)  # without one, every call is a write of its own
    assert written().num_rows == 100


def test_partitions_of_the_output_are_replaced():
    output = Output(warehouse="out", table="predictions", mode="partition", partition_by="day")
    for day, count in ((1, 30), (2, 40), (1, 20)):
        table = rows(count).append_column("day", pa.array([day] * count, pa.int32()))
        batch_predict(Doubled(), table, output)
    assert sorted(written()["day"].to_pylist()) == [1] * 20 + [2] * 40


@pytest.mark.parametrize("links", [True, False])
def test_a_parquet_warehouse_takes_what_was_kept_as_it_is(monkeypatch, tmp_path, links):
    def none(self, target):
        raise OSError(errno.EXDEV, "another disk")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", none)
    batch_predict(Doubled(), rows(), ("out", "predictions"), **SMALL)
    files = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    groups = [pq.read_metadata(file).num_row_groups for file in files]
    assert groups == [2] * 5  # partitions of two batches: nobody has put them together anew
    assert written().equals(Doubled().predict(rows()))


def test_a_table_is_predicted_by_one_process_at_a_time(tmp_path):
    def while_it_runs(done, total, text):
        with pytest.raises(LockedError):
            batch_predict(Doubled(), rows(), ("out", "predictions"))
        seen.append(done)

    seen: list[float] = []
    batch_predict(Doubled(), rows(), ("out", "predictions"), progress=while_it_runs)
    assert seen == [ROWS]


# --- what it is told ---------------------------------------------------------------------------------------------


def test_row_numbers_are_a_column_where_a_table_has_no_order():
    table = with_negative(rows(), 3)
    batch_predict(
        Doubled(), table, ("out", "predictions"), order_column="row", rejected=Rejected(), batch_rows=700
    )
    assert written()["row"].to_pylist() == [number for number in range(ROWS) if number != 3]
    with pytest.raises(ConfigError, match="have a column"):
        batch_predict(Doubled(), table, ("out", "predictions"), order_column="prediction")


def test_no_rows_give_a_table_with_the_columns():
    batch_predict(Doubled(), rows(0), ("out", "predictions"), rejected=Rejected())
    assert written().schema.equals(Doubled().predict(rows(0)).schema)
    assert written("predictions_rejected").num_rows == 0


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(ConfigError, match="other files"):
        batch_predict(Doubled(), rows(), ("out", "predictions"), folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["out.duckdb", "out"])
def test_an_append_is_taken_each_night_whatever_the_warehouse_makes_of_a_columns_type(place):
    at = pa.array([1_000] * 10, pa.timestamp("ns", "UTC")), pa.array([1] * 10, pa.timestamp("s"))
    night = rows(10).append_column("seen", at[0]).append_column("day", at[1])
    for number in (1, 2):
        output = Output(warehouse=place, table="predictions", mode="append")
        batch_predict(Doubled(), night, output, commit=f"night-{number}")
        assert open_warehouse(place).source("predictions").num_rows == 10 * number


@pytest.mark.parametrize(
    ("place", "rejected", "kind", "says"),
    [
        ("out", Rejected(table="_rejected"), pa.int64(), "cannot be a table's name"),
        ("iceberg://out", Rejected(), pa.uint64(), "'id' of type uint64 cannot be kept"),
        ("out.duckdb", Rejected(table="old"), pa.int64(), "'rejected_row' that the table has not"),
    ],
)
def test_a_table_of_rejected_rows_that_would_be_refused_is_refused_before_any_work(
    place, rejected, kind, says
):
    class Bare(Doubled):
        def assemble(self, rows, found):
            return pa.table({"prediction": found})

    if rejected.table == "old":
        open_warehouse(place).write("old", {"other": [1]})
    data, predictor = rows(10), Bare()
    data = data.set_column(0, "id", data["id"].cast(kind))
    output = Output(warehouse=place, table="predictions", mode="append")
    with pytest.raises(DataError, match=says):
        batch_predict(predictor, data, output, rejected=rejected)
    assert predictor.calls == []


def test_an_append_that_would_be_refused_is_refused_before_any_work():
    open_warehouse("out").write("predictions", pa.table({"other": [1]}))
    predictor = Doubled()
    with pytest.raises(DataError, match="column"):
        batch_predict(predictor, rows(), Output(warehouse="out", table="predictions", mode="append"))
    assert predictor.calls == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (lambda: Pool(min=3, max=2), "is more than max"),
        (lambda: BatchScaling(workers=-1), "greater than or equal to 0"),
        (lambda: BatchScaling(gpu_type="H100"), "needs gpus_per_worker"),
        (lambda: Rejected(most=1.5), "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        settings()


# --- threads -----------------------------------------------------------------------------------------------------


def test_stages_keep_the_order_and_an_error_comes_in_its_place():
    def odd(number):
        if number == 7:
            raise ValueError(number)
        return number

    seen = []
    with pytest.raises(ValueError, match="7"):
        collections.deque(map(seen.append, piped(range(100), lambda number: number, odd)))
    assert seen == list(range(7))


def test_threads_end_when_nobody_wants_more():
    before = set(threading.enumerate())
    closed = []

    def endless():
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            closed.append(True)

    stream = piped(endless(), lambda number: number)
    assert next(stream) == 0
    stream.close()
    assert closed == [True]
    assert set(threading.enumerate()) <= before


def test_a_full_disk_is_told_as_such(monkeypatch, tmp_path):
    from sp_ray_ml.inference import _batch_stage

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(_batch_stage.pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match="the disk is full"):
        batch_predict(Doubled(), rows(), ("out", "predictions"), rejected=Rejected(most=1.0))


# --- partitions that come one by one ----------------------------------------------------------------------------


def test_partitions_that_are_given_one_by_one_share_one_pipeline_and_an_error_ends_what_is_under_way(
    tmp_path,
):
    rows = pa.record_batch({"x": [1.0, 2.0]})
    read = threading.Event()

    class Patient(Doubled):
        def infer(self, prepared):
            if len(prepared) and prepared[0] < 0:
                raise StorageError("the disk is full")
            assert read.wait(300)  # the first partition is predicted when the second is being read
            return super().infer(prepared)

    def part(number, batch, told=lambda: None):
        def stream():
            told()
            yield batch

        return Part(number, 2 * number, Source("s", batch.schema, stream, num_rows=len(batch)))

    output = Doubled().predict(pa.Table.from_batches([rows])).schema
    engine = Engine(Job(store_at(tmp_path), rows.schema, output, 2), Patient(), 0.0)
    begun = []
    flow = Flow(engine, lambda part: begun.append(part.number))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(flow, part(0, rows))
        second = threads.submit(flow, part(1, rows, read.set))
        assert {first.result().rows, second.result().rows} == {2}
        with pytest.raises(StorageError, match="the disk is full"):
            threads.submit(flow, part(2, pa.record_batch({"x": [-1.0]}))).result()
        assert threads.submit(flow, part(3, rows)).result().number == 3
    assert sorted(begun) == [0, 1, 2, 3]


def test_a_partition_that_is_to_be_alone_has_no_other_beside_it(tmp_path):
    rows = pa.record_batch({"x": [1.0, 2.0]})
    log, second_begun = [], threading.Event()

    class Told(Doubled):
        def infer(self, prepared):
            second_begun.wait(0.3)  # long enough for what should not come
            log.append("predicted")
            return super().infer(prepared)

    def begin(part):
        log.append(part.number)
        if part.number:
            second_begun.set()

    def part(number):
        return Part(number, 2 * number, Source("s", rows.schema, lambda: iter([rows]), num_rows=2))

    output = Doubled().predict(pa.Table.from_batches([rows])).schema
    flow = Flow(Engine(Job(store_at(tmp_path), rows.schema, output, 2), Told(), 0.0), begin)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(flow, part(0))
        while not log:
            time.sleep(0.001)
        waiting = [threads.submit(flow, part(n), alone=True) for n in (1, 2)]
        assert {each.result().rows for each in (first, *waiting)} == {2}
    assert log[1::2] == ["predicted"] * 3
    assert sorted(log[::2]) == [0, 1, 2]
