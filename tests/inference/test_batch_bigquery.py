"""Batch prediction of BigQuery's tables: actors read the streams, and a job that goes on reads the same ones (bqemulator)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sp_ray_ml import batch_predict
from sp_ray_ml.config import Custom
from sp_ray_ml.data import Source, open_warehouse
from sp_ray_ml.data._bigquery_read import TableSource
from sp_ray_ml.data._store import LocalStore
from sp_ray_ml.errors import ClusterError
from sp_ray_ml.inference import BatchScaling, Rejected
from sp_ray_ml.inference._batch_parts import store_parts
from sp_ray_ml.inference._batch_stage import Done
from tests.bigquery import Emulator, bigquery

__all__ = ["bigquery"]
ROWS = 100_000
OWN = '''
import os
import pathlib

import pyarrow.compute as pc

from sp_ray_ml import Predictor

class Doubled(Predictor):
    """Twice the column; a process that comes to the last rows dies as long as there is a file."""

    def __init__(self, log):
        super().__init__()
        self.log = pathlib.Path(log)

    def predict(self, table):
        if len(table):
            with self.log.open("a") as file:
                file.write(f"{table['id'][0].as_py()} {os.getpid()}\\n")
            if self.log.with_suffix(".die").exists() and pc.max(table["id"]).as_py() >= 95_000:
                os.kill(os.getpid(), 9)
            if len(table) == 1 and table["x"][0].as_py() < 0:
                raise ValueError("a number is negative")
            if pc.min(table["x"]).as_py() < 0:
                raise ValueError("some number is negative")
        return table.append_column("prediction", pc.multiply(table["x"], 2.0))
'''


@pytest.fixture
def house(bigquery: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    import ray

    url = bigquery.use(monkeypatch)
    (tmp_path / "own_streams.py").write_text(OWN)
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": bigquery.variables()},
    )  # fmt: skip
    yield url
    ray.shutdown()
    sys.modules.pop("own_streams", None)


@pytest.mark.slow
def test_actors_read_the_streams_and_a_job_that_goes_on_writes_each_row_once_in_order(
    house: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = np.arange(ROWS) / 7.0
    x[[3, 60_000]] = -1
    open_warehouse(house).write("t", pa.table({"id": np.arange(ROWS), "x": x}))

    own = Custom(target="own_streams:Doubled", arguments={"log": str(tmp_path / "log")})

    def predict() -> Any:
        with monkeypatch.context() as here:
            here.setattr(TableSource, "_stream", None)  # rows that went through this process would fail
            return batch_predict(
                own,
                open_warehouse(house).source("t"),  # as another process opens it
                (f"{house}_out", "predictions"),
                scaling=BatchScaling(workers=2, max_failures=0),
                rejected=Rejected(most=2),
                batch_rows=4_096,
                order_column="number",
            )

    def broken_off() -> Path:
        """The job's folder, when some partitions are done and the others not."""
        (tmp_path / "log.die").touch()
        with pytest.raises(ClusterError, match="has ended its worker"):
            predict()
        (tmp_path / "log.die").unlink()
        [folder] = (tmp_path / "runs" / "batch").iterdir()
        assert not (folder / "rows").exists()
        return folder

    broken_off()
    (tmp_path / "log").unlink()
    result = predict()
    assert 0 < result.resumed < result.partitions
    again = [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]
    assert min(again) > 0  # the first partition was there
    assert (result.rows, result.written, result.rejected) == (ROWS, ROWS - 2, 2)
    _check(house, x)

    note = broken_off() / "streams.json"
    note.write_text(note.read_text().replace("/sessions/", "/sessions/over"))
    result = predict()  # its session is over: a new one may cut elsewhere
    assert result.resumed == 0
    assert (result.rows, result.written, result.rejected) == (ROWS, ROWS - 2, 2)
    _check(house, x)


class _Cut(Source):
    """Rows that their store cuts, until it has lost its cuts."""

    asked = 0

    def streams(self, note: str | None) -> tuple[str, list[Source]]:
        self.asked += 1
        return note if note == "cut 1" and self.asked < 3 else f"cut {self.asked}", [self, self]


def test_cuts_that_are_gone_are_not_asked_for_where_all_of_them_are_done(tmp_path: Path) -> None:
    source, store = _Cut("t", pa.schema([]), lambda: iter(()), num_rows=2), LocalStore(tmp_path)
    first = store_parts(source, store, {})
    assert first is not None
    assert first == store_parts(source, store, {})
    done = {
        part.number: Done(part.number, 1, 1, 0, {}, part.checksum, "w", 0.0, 0.0, 1, None) for part in first
    }
    kept = store_parts(source, store, done)
    assert kept is not None
    assert [part.checksum for part in kept] == [part.checksum for part in first]
    assert {part.source.num_rows for part in kept} == {None}  # each has some of the rows
    assert source.asked == 2
    fresh = store_parts(source, store, {0: done[0]})  # which is of cuts that are gone
    assert fresh is not None
    assert not {part.checksum for part in fresh} & {part.checksum for part in first}
    assert [part.start for part in fresh] == [None, None]


def _check(house: str, x: Any) -> None:
    out = open_warehouse(f"{house}_out")
    rows = out.source("predictions").to_arrow().sort_by("number")
    rejected = out.source("predictions_rejected").to_arrow()
    assert sorted(rows["id"].to_pylist()) == [n for n in range(ROWS) if x[n] >= 0]
    assert rows["prediction"].to_numpy().tolist() == (2 * x[rows["id"].to_numpy()]).tolist()
    assert sorted(rejected["id"].to_pylist()) == [3, 60_000]
    numbers = [*rows["number"].to_pylist(), *rejected["rejected_row"].to_pylist()]
    assert sorted(numbers) == list(range(ROWS))
