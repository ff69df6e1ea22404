"""Sources: whatever holds rows streams the same, in order, and closes what it opened."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_ray_ml.data import Source, as_source, open_warehouse
from sp_ray_ml.errors import ColumnNotFoundError, DataError, StorageError

TABLE = pa.table({"n": range(10), "x": [f"v{i}" for i in range(10)]})


def cut(table: pa.Table, *sizes: int) -> Source:
    def batches() -> Iterator[pa.RecordBatch]:
        at = 0
        for size in sizes:
            yield from table.slice(at, size).combine_chunks().to_batches() or [
                table.schema.empty_table().to_batches()
            ]
            at += size

    return Source("cut", table.schema, batches)


@pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 3, 4), (9, 1), (4, 4, 2)])
@pytest.mark.parametrize("rows", [1, 3, 4, 10, 99])
def test_blocks_are_the_same_however_the_stream_is_cut(sizes: tuple[int, ...], rows: int) -> None:
    blocks = list(cut(TABLE, *sizes).blocks(rows))
    assert [block.num_rows for block in blocks] == [rows] * (10 // rows) + ([10 % rows] if 10 % rows else [])
    assert pa.Table.from_batches(blocks).equals(TABLE)


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        TABLE.combine_chunks().to_batches()[0],
        TABLE.to_pandas(),
        TABLE.to_pandas().set_index(pd.Index(range(5, 15))),
        TABLE.to_pydict(),
        as_source(TABLE),
    ],
    ids=["table", "batch", "pandas", "index", "dict", "source"],
)
def test_whatever_holds_rows_is_a_source(data: Any) -> None:
    source = as_source(data, "mine")
    assert source.to_arrow()["n"].to_pylist() == list(range(10))
    assert source.schema.names == ["n", "x"]
    assert source.schema.metadata is None
    assert source.num_rows == 10
    assert source.to_arrow().equals(source.to_arrow())


def test_paths_are_sources(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "one.parquet")
    assert as_source(tmp_path / "one.parquet").to_arrow().equals(TABLE)
    assert as_source(str(tmp_path)).name == tmp_path.name
    open_warehouse(tmp_path / "house").write("t", TABLE)
    assert as_source(tmp_path / "house" / "t").num_rows == 10
    with pytest.raises(StorageError, match=r"did you mean .*one\.parquet"):
        as_source(tmp_path / "won.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(StorageError, match="no Parquet"):
        as_source(tmp_path / "none")


@pytest.mark.parametrize(
    "data", [42, None, [1, 2], {"a": [1], "b": [1, 2]}, pd.DataFrame({"a": [1, "x", object()]})]
)
def test_what_holds_no_rows_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="mine"):
        as_source(data, "mine")


def test_select_keeps_the_order_asked_for() -> None:
    source = as_source(TABLE).select(["x", "n"])
    assert source.to_arrow().column_names == ["x", "n"]
    assert source.num_rows == 10
    with pytest.raises(ColumnNotFoundError, match="no column 'y'"):
        as_source(TABLE).select(["y"])


def test_stream_is_closed_when_its_consumer_stops() -> None:
    closed = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            while True:
                yield TABLE.combine_chunks().to_batches()[0]
        finally:
            closed.append(True)

    source = Source("endless", TABLE.schema, batches)
    for read in (
        source.batches(),
        source.blocks(3),
        source.select(["n"]).batches(),
        source.select(["n"]).blocks(3),
    ):
        next(read)
        read.close()  # type: ignore[attr-defined]
    assert closed == [True] * 4
    for _ in source.blocks(4):
        break
    assert len(closed) == 5


def test_source_without_rows_keeps_its_columns() -> None:
    source = as_source(TABLE.slice(0, 0))
    assert source.to_arrow().schema.equals(TABLE.schema)
    assert list(source.blocks()) == []


def test_importing_data_imports_nothing_heavy() -> None:
    code = (
        "import sys, sp_ray_ml.data, sp_ray_ml.data.splits, sp_ray_ml.data.warehouse, sp_ray_ml.data.source, sp_ray_ml.demo\n"
        "print([m for m in ('numpy', 'pyarrow', 'duckdb', 'ray', 'pandas', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_ray_datasets_keep_their_order_and_come_back(tmp_path: Path) -> None:
    import ray
    import ray.data

    ray.init("local", num_cpus=2, include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
    try:
        numbers = pa.table({"n": range(20_000), "x": [str(i) for i in range(20_000)]})
        dataset = as_source(numbers).to_ray().repartition(4).map_batches(_slow_first, batch_format="pyarrow")
        before = dataset.context.execution_options.preserve_order
        source = as_source(dataset, "ray")
        assert source.to_arrow()["n"].to_pylist() == list(range(20_000))
        assert source.select(["x"]).to_arrow()["x"].to_pylist() == numbers["x"].to_pylist()
        assert dataset.context.execution_options.preserve_order == before
        empty = as_source(numbers.slice(0, 0)).to_ray()
        assert as_source(empty).schema.equals(numbers.schema)
        frames = as_source(ray.data.from_pandas([numbers.to_pandas()[:10], numbers.to_pandas()[10:20]]))
        assert frames.to_arrow()["n"].to_pylist() == list(range(20))
        for name in ("house", "house.duckdb"):
            warehouse = open_warehouse(tmp_path / name)
            warehouse.write("t", dataset)
            where = [("n", ">=", 19_990), ("x", "!=", "19995"), ("n", "in", [3, 19_993, 19_995, 19_999])]
            found = warehouse.source("t", columns=["x"], where=where).to_ray()
            assert sorted(found.take_all(), key=str) == [{"x": "19993"}, {"x": "19999"}]
            days = {"n": [1, 2], "day": [dt.date(2024, 1, 1), dt.date(2024, 1, 2)]}
            warehouse.write("days", days, partition_by="day")
            assert warehouse.source("days").to_ray().sort("n").take_all() == pa.table(days).to_pylist()
            late = warehouse.source("days", where=[("day", ">", days["day"][0])]).to_ray()
            assert late.take_all() == pa.table(days).to_pylist()[1:]
    finally:
        ray.shutdown()


def _slow_first(batch: pa.Table) -> pa.Table:
    import time

    if batch.num_rows and batch["n"][0].as_py() == 0:
        time.sleep(0.5)  # the first block is done last, so that order has to be asked for
    return batch
