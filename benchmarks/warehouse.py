"""Rows/s read from DuckDB, Parquet and BigQuery (bqemulator), beside the bare clients and Ray's `read_bigquery`."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "warehouse"
TARGET = 0.9


def main(quick: bool) -> dict[str, object]:
    """A table of numbers, text and times, read whole as Arrow; ours and the client in turns, the medians of it.

    The bare clients are DuckDB's own Arrow reader, `pyarrow.dataset`, and `list_rows(…).to_arrow()` of
    google-cloud-bigquery with its storage client. BigQuery is bqemulator 1.4 on loopback in a process of its own,
    which on a machine of few cores takes most of the time of both. Ray's `read_bigquery` knows no emulators: its
    clients are pointed there by a hook in its workers; ours in Ray is `to_ray()`.

    Args:
        quick: 100,000 rows instead of two million, fewer repeats, and Ray only beside ours in Ray.
    """
    from tests.bigquery import emulator

    rows, repeats = (100_000, 3) if quick else (2_000_000, 5)
    table = _table(rows)
    with tempfile.TemporaryDirectory() as place, emulator(Path(place)) as server:
        os.environ.update(server.variables())
        folder = Path(place)
        found = {
            "DuckDB": _measured(*_duckdb(folder / "house.duckdb", table), repeats),
            "Parquet": _measured(*_parquet(folder / "house", table), repeats),
            "BigQuery": _measured(*_bigquery(table), repeats),
        }
        in_ray = _in_ray(server.variables(), repeats if quick else 3)
    print(f"{rows:,} rows of 5 columns read as Arrow, rows/s (median of {repeats})")
    for name, (ours, bare) in found.items():
        print(
            f"{name:<10} ours {rows / ours:>12,.0f}   bare client {rows / bare:>12,.0f}   ratio {bare / ours:.2f}"
        )
    ours, theirs = in_ray
    print(
        f"{'in Ray':<10} ours {rows / ours:>12,.0f}   read_bigquery {rows / theirs:>10,.0f}   ratio {theirs / ours:.2f}"
    )
    ours, bare = found["BigQuery"]
    return {
        "name": NAME,
        "ours": round(rows / ours / 1e6, 3),
        "peer": round(rows / bare / 1e6, 3),
        "unit": "million rows/s",
        "ratio": round(bare / ours, 3),
        "target": TARGET,
        "holds": bare / ours >= TARGET,
    }


def _table(rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(0)
    return pa.table(
        {
            "id": pa.array(np.arange(rows)),
            "user": pa.array(random.integers(0, 100_000, rows)),
            "score": pa.array(random.random(rows)),
            "text": pa.array([f"item {i % 5_000}" for i in range(rows)]),
            "at": pa.array(random.integers(1_600_000_000, 1_700_000_000, rows) * 1_000_000).cast(pa.timestamp("us", "UTC")),
        }
    )  # fmt: skip


Reader = Callable[[], Any]


def _measured(ours: Reader, bare: Reader, repeats: int) -> tuple[float, float]:
    """Seconds of both, each in turn first; both give the same rows."""
    took: dict[Reader, list[float]] = {ours: [], bare: []}
    assert ours().num_rows == bare().num_rows
    for number in range(repeats):
        for read in (ours, bare) if number % 2 else (bare, ours):
            begin = time.perf_counter()
            read()
            took[read].append(time.perf_counter() - begin)
    return statistics.median(took[ours]), statistics.median(took[bare])


def _duckdb(path: Path, table: Any) -> tuple[Reader, Reader]:
    import duckdb

    from sp_ray_ml.data import open_warehouse

    house = open_warehouse(path)
    house.write("t", table)

    def bare() -> Any:
        with duckdb.connect(str(path), read_only=True) as connection:
            return connection.execute("SELECT * FROM t").to_arrow_reader(65_536).read_all()

    return lambda: house.source("t").to_arrow(), bare


def _parquet(path: Path, table: Any) -> tuple[Reader, Reader]:
    import pyarrow.dataset as pads

    from sp_ray_ml.data import open_warehouse

    house = open_warehouse(path)
    house.write("t", table)
    files = [str(file) for file in sorted((path / "t").rglob("*.parquet"))]
    return lambda: house.source("t").to_arrow(), lambda: pads.dataset(files, format="parquet").to_table()


def _clients() -> tuple[Any, Any]:
    """The official clients, for the emulator."""
    import grpc
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery, bigquery_storage
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    unlimited = [("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(os.environ["BIGQUERY_STORAGE_EMULATOR_HOST"], options=unlimited)
    rows = bigquery_storage.BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))
    return bigquery.Client(project="test-project", credentials=AnonymousCredentials()), rows


def _bigquery(table: Any) -> tuple[Reader, Reader]:
    from sp_ray_ml.data import open_warehouse

    house = open_warehouse("bigquery://test-project/house")
    house.write("t", table)

    def bare() -> Any:  # all that ours does, too: its clients, the table's schema, a session, the rows
        client, rows = _clients()
        try:
            return client.list_rows(client.get_table("test-project.house.t")).to_arrow(bqstorage_client=rows)
        finally:
            client.close()
            rows.transport.close()

    return lambda: house.source("t").to_arrow(), bare


def _point_ray_at_the_emulator() -> None:
    """Ray makes its clients by two functions of a module: here they make those that reach the emulator."""
    from ray.data._internal.datasource import bigquery_datasource

    bigquery_datasource._create_client = lambda **_: _clients()[0]
    bigquery_datasource._create_read_client = lambda: _clients()[1]


def _in_ray(variables: dict[str, str], repeats: int) -> tuple[float, float]:
    """Seconds of `to_ray()` and of Ray's own reader, both to materialized blocks."""
    import logging

    import ray

    from sp_ray_ml.data import open_warehouse

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": variables, "worker_process_setup_hook": _point_ray_at_the_emulator},
    )  # fmt: skip
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        house = open_warehouse("bigquery://test-project/house")

        def ours() -> Any:
            return house.source("t").to_ray().materialize()

        def theirs() -> Any:
            return ray.data.read_bigquery("test-project", dataset="house.t").materialize()

        _point_ray_at_the_emulator()
        took: dict[Reader, list[float]] = {ours: [], theirs: []}
        for number in range(repeats + 1):
            for read in (ours, theirs) if number % 2 else (theirs, ours):
                begin = time.perf_counter()
                read()
                if number:  # workers start at the first
                    took[read].append(time.perf_counter() - begin)
        return statistics.median(took[ours]), statistics.median(took[theirs])
    finally:
        ray.shutdown()
