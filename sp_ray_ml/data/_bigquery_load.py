"""Rows into a table by Parquet load jobs: each part by an upload of its own, or all by one job from a bucket.

With `staging=gs://…` in the URL it is the bucket (`_bigquery_objects.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._bigquery_jobs import run_job
from sp_ray_ml.data._bigquery_objects import AT_ONCE, Objects
from sp_ray_ml.data._bigquery_types import check_lists, stored
from sp_ray_ml.data._schema import cast_batch, partition_values, rows_per_group
from sp_ray_ml.data.source import Source
from sp_ray_ml.storage import storage_errors

if TYPE_CHECKING:
    from sp_ray_ml.data._bigquery_target import Target

__all__ = ["load_rows"]

_PART_BYTES = 192 << 20
_GROWS_EVERY = 1_000  # a job takes 10,000 objects, and 15 TB: later parts are larger ones
_JOBS = 2  # at once

Send = Callable[[int, BufferedIOBase], None]
"""Takes a part's number and its file, which it closes."""


def load_rows(
    target: Target,
    client: Any,
    name: str,
    fields: list[dict[str, Any]],
    source: Source,
    partition_by: str | None,
    commit: str | None,
) -> int:
    """Load the rows into a table that is there; how many they were.

    Args:
        target: What is written in the end.
        client: A client.
        name: The table that they are loaded into.
        fields: Its columns: c0, c1, … in the order of the target's.
        source: The rows.
        partition_by: A column that must have no nulls.
        commit: The write's id.

    Raises:
        SpRayError: It failed; some of the rows may have been loaded.
    """
    if target.place.staging is None:

        def upload(_: int, part: BufferedIOBase) -> None:
            with part:
                _load(
                    target, client, fields, lambda **job: client.load_table_from_file(part, _path(target, name), rewind=True, num_retries=0, **job)
                )  # fmt: skip

        return _sent(target, source, partition_by, upload, _JOBS)
    with Objects(target, commit) as objects:
        rows = _sent(target, source, partition_by, objects.put, AT_ONCE)
        if uris := objects.uris():
            _load(
                target, client, fields, lambda **job: client.load_table_from_uri(uris, _path(target, name), retry=None, **job)
            )  # fmt: skip
    return rows


def _path(target: Target, name: str) -> str:
    return f"{target.place.project}.{target.place.dataset}.{name}"


def _load(target: Target, client: Any, fields: list[dict[str, Any]], start: Callable[..., Any]) -> None:
    """Run a load job to its end."""
    from google.cloud import bigquery

    place = target.place
    config = bigquery.LoadJobConfig(
        source_format="PARQUET", write_disposition="WRITE_APPEND", create_disposition="CREATE_NEVER"
    )
    config.schema = [bigquery.SchemaField.from_api_repr(field) for field in fields]
    config.decimal_target_types = ["NUMERIC", "BIGNUMERIC"]
    config.parquet_options = bigquery.ParquetOptions()
    config.parquet_options.enable_list_inference = True
    base = f"sp_ray_ml_{uuid.uuid4().hex}"

    def submit(job_id: str) -> Any:
        return start(job_id=job_id, job_config=config, location=place.location, timeout=place.timeout)

    run_job(place, client, submit, lambda attempt: f"{base}_{attempt}", table=target.table)


# --- parts ------------------------------------------------------------------------------------------------------


def _sent(target: Target, source: Source, partition_by: str | None, send: Send, at_once: int) -> int:
    """Send the rows in parts, a few at once; how many they were."""
    rows = 0
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for number, (part, count) in enumerate(_parts(target, source, partition_by)):
                rows += count
                waiting.append(pool.submit(send, number, part))
                while len(waiting) >= at_once:  # no more on this disk at once
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return rows


def _parts(target: Target, source: Source, partition_by: str | None) -> Iterator[tuple[BufferedIOBase, int]]:
    """Parquet files of bounded size, each on no path."""
    own = stored(source.schema, target.where)
    plain = pa.schema([pa.field(f"c{index}", field.type) for index, field in enumerate(target.schema)])
    writer, file, rows, number = None, None, 0, 0
    try:
        for block in source.blocks(rows_per_group(own)):
            batch = _storage(block).select(target.schema.names)
            if partition_by is not None:
                partition_values(batch, partition_by, target.where)
            batch = cast_batch(batch, target.schema, target.where)
            check_lists(batch, target.where)
            with storage_errors(tempfile.gettempdir()):
                if writer is None:
                    file = tempfile.TemporaryFile(prefix="sp_ray_ml-")  # noqa: SIM115 - closed when it is loaded
                    writer = pq.ParquetWriter(file, plain, compression="zstd")
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=plain))
                rows += batch.num_rows
                if file is not None and file.tell() >= _PART_BYTES * (1 + number // _GROWS_EVERY):
                    writer.close()
                    done, writer, file = file, None, None
                    yield done, rows
                    rows, number = 0, number + 1
        if writer is not None and file is not None:
            with storage_errors(tempfile.gettempdir()):
                writer.close()
            done, writer, file = file, None, None
            yield done, rows
    finally:
        if writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                writer.close()
        if file is not None:
            file.close()


def _storage(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with extension types undone."""
    columns = [c.storage if isinstance(c, pa.ExtensionArray) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
