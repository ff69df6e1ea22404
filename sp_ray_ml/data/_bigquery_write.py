"""Writing a table: rows go into a staging table by load jobs, and one statement makes them visible.

1. Parquet parts of bounded size are uploaded and loaded into `_sp_ray_ml_…`, a table that no reader is shown and
   that expires by itself. A writer that dies leaves nothing else.
2. One query job, which BigQuery does wholly or not at all, moves the rows: `CREATE OR REPLACE TABLE … AS SELECT`,
   `INSERT`, or for partitions a transaction of `DELETE` and `INSERT`.

What was committed: a table that was made by a commit says so in its note, set by the statement that made it. Later
additions run as jobs whose ids follow from the table's note and the commit; BigQuery never runs an id twice.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._bigquery_jobs import find_job, finished, run_job
from sp_ray_ml.data._bigquery_note import Note, commit_mark
from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_sql import literal, quoted
from sp_ray_ml.data._bigquery_types import check_lists, column_of, kind_of, stored
from sp_ray_ml.data._schema import cast_batch, partition_values, rows_per_group
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import WarehouseError
from sp_ray_ml.storage import storage_errors

__all__ = ["HIDDEN", "Target", "committed", "move", "staged"]

HIDDEN = "_sp_ray_ml_"
"""What names of tables that are no tables of the user's begin with."""

_LIFETIME = dt.timedelta(days=7)
_PART_BYTES = 192 << 20
_UPLOADS = 2
_FROM_TEXT = {"JSON": "PARSE_JSON({})", "GEOGRAPHY": "ST_GEOGFROMTEXT({})"}


@dataclass(frozen=True)
class Target:
    """The table that is written.

    Attributes:
        place: The dataset.
        table: The table's name.
        schema: Its columns as they are stored, in the table's own order.
        made: When it was made; None if it is not there.
        before: What it said of itself before, None if it had no note.
        note: What it says when it is made anew.
        layout: How it is laid out: the day's column or None, `DAY` or another unit, columns that lie together.
    """

    place: Place
    table: str
    schema: pa.Schema
    made: str | None
    before: Note | None
    note: Note
    layout: tuple[str | None, str, tuple[str, ...]] = (None, "DAY", ())

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.place.url}/{self.table}"

    @property
    def path(self) -> str:
        """For SQL."""
        return quoted(self.place.project, self.place.dataset, self.table)

    def job(self, commit: str, attempt: int) -> str:
        """The id of the job that adds a commit's rows to the table as it was made."""
        state = self.before.write if self.before else self.made
        mark = hashlib.sha256("\0".join([self.path, str(state), commit]).encode()).hexdigest()[:40]
        return f"sp_ray_ml_{mark}_{attempt}"


def committed(target: Target, client: Any, commit: str) -> bool:
    """Whether the table has this commit's rows. One that is just being written is waited for."""
    if target.made is None:
        return False
    if target.before and target.before.commit == commit_mark(commit):
        return True
    attempt = 0
    while (job := find_job(target.place, client, target.job(commit, attempt))) is not None:
        if not finished(target.place, client, job, target.table).error_result:
            return True
        attempt += 1
    return False


# --- staging ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def staged(
    target: Target, client: Any, source: Source, partition_by: str | None
) -> Iterator[tuple[str, int]]:
    """The name of a table with the rows, and how many they are; it is gone afterwards.

    Its columns are called c0, c1, … : what names Parquet loads refuse does not matter then.
    """
    from google.cloud import bigquery

    place = target.place
    name = f"{HIDDEN}{uuid.uuid4().hex}"
    fields = [_plain_column(index, field) for index, field in enumerate(target.schema)]
    table = bigquery.Table.from_api_repr(
        {
            "tableReference": {"projectId": place.project, "datasetId": place.dataset, "tableId": name},
            "schema": {"fields": fields},
            "expirationTime": str(int((dt.datetime.now(dt.UTC) + _LIFETIME).timestamp() * 1000)),
            "description": "Rows on their way into a table; goes away by itself",
        }
    )
    try:
        place.call(
            lambda: client.create_table(table, exists_ok=True, retry=None, timeout=place.timeout),
            table=target.table,
        )
        rows = _load(target, client, name, fields, source, partition_by)
        arrived = place.call(
            lambda: client.get_table(table.reference, retry=None, timeout=place.timeout), table=target.table
        )
        if int(arrived.num_rows) != rows:
            raise WarehouseError(
                f"{rows:,} rows were sent and {arrived.num_rows:,} arrived: nothing was written",
                where=target.where,
                hint="Try again",
            )
        yield name, rows
    finally:
        # What stays after a connection was lost expires.
        from google.api_core.exceptions import GoogleAPIError
        from requests.exceptions import RequestException

        with contextlib.suppress(GoogleAPIError, RequestException):
            client.delete_table(table.reference, not_found_ok=True, retry=None, timeout=place.timeout)


def _plain_column(index: int, field: pa.Field) -> dict[str, Any]:
    column = column_of(field)
    # Parquet cannot bring these; the statement makes them of text.
    kind = "STRING" if column["type"] in _FROM_TEXT else column["type"]
    return {**column, "name": f"c{index}", "type": kind}


def _load(
    target: Target,
    client: Any,
    name: str,
    fields: list[dict[str, Any]],
    source: Source,
    partition_by: str | None,
) -> int:
    """Send the rows in parts, a few at once; how many they were."""
    rows = 0
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(_UPLOADS) as pool:
        try:
            for part, count in _parts(target, source, partition_by):
                rows += count
                waiting.append(pool.submit(_upload, target, client, name, fields, part))
                while len(waiting) >= _UPLOADS:  # no more on this disk at once
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return rows


def _parts(target: Target, source: Source, partition_by: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """Parquet files of bounded size, each on no path."""
    own = stored(source.schema, target.where)
    plain = pa.schema([pa.field(f"c{index}", field.type) for index, field in enumerate(target.schema)])
    writer, file, rows = None, None, 0
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
                if file is not None and file.tell() >= _PART_BYTES:
                    writer.close()
                    done, writer, file = file, None, None
                    yield done, rows
                    rows = 0
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


def _upload(target: Target, client: Any, name: str, fields: list[dict[str, Any]], part: IO[bytes]) -> None:
    from google.cloud import bigquery

    place = target.place
    config = bigquery.LoadJobConfig(
        source_format="PARQUET", write_disposition="WRITE_APPEND", create_disposition="CREATE_NEVER"
    )
    config.schema = [bigquery.SchemaField.from_api_repr(field) for field in fields]
    config.decimal_target_types = ["NUMERIC", "BIGNUMERIC"]
    config.parquet_options = bigquery.ParquetOptions()
    config.parquet_options.enable_list_inference = True
    base = f"{HIDDEN[1:]}{uuid.uuid4().hex}"

    def submit(job_id: str) -> Any:
        return client.load_table_from_file(
            part, f"{place.project}.{place.dataset}.{name}", rewind=True, num_retries=0, job_id=job_id, job_config=config,
            location=place.location, timeout=place.timeout,
        )  # fmt: skip

    with part:
        run_job(place, client, submit, lambda attempt: f"{base}_{attempt}", table=target.table)


# --- moving -----------------------------------------------------------------------------------------------------


def move(
    target: Target,
    client: Any,
    staging: str,
    rows: int,
    mode: str,
    partition_by: str | None,
    commit: str | None,
) -> int:
    """Make the staged rows visible, all at once. How many they were, 0 if another writer has brought this commit."""
    from google.cloud import bigquery

    place, path = target.place, quoted(target.place.project, target.place.dataset, staging)
    picked = ", ".join(
        _FROM_TEXT.get(kind_of(field) or "", "{}").format(f"`c{index}`") + f" AS {quoted(field.name)}"
        for index, field in enumerate(target.schema)
    )
    select = f"SELECT {picked} FROM {path}"  # noqa: S608
    names = ", ".join(quoted(name) for name in target.schema.names)
    insert = f"INSERT INTO {target.path} ({names}) {select}"
    make = target.made is None or mode == "replace"
    if make:
        create = "CREATE OR REPLACE TABLE" if mode == "replace" else "CREATE TABLE"
        sql = f"{create} {target.path}{_layout(target, partition_by)} OPTIONS(description={literal(target.note.text())}) AS {select}"
    elif mode == "append":
        sql = insert
    else:
        index = target.schema.names.index(str(partition_by))
        clear = (
            f"DELETE FROM {target.path} WHERE {quoted(str(partition_by))} IN (SELECT `c{index}` FROM {path})"  # noqa: S608
        )
        sql = f"BEGIN TRANSACTION; {clear}; {insert}; COMMIT TRANSACTION;"

    def submit(job_id: str) -> Any:
        return client.query(
            sql, job_id=job_id, job_config=bigquery.QueryJobConfig(), location=place.location, timeout=place.timeout, retry=None,
            job_retry=None,
        )  # fmt: skip

    own = None if make else commit
    base = f"sp_ray_ml_{uuid.uuid4().hex}"
    job = run_job(
        place,
        client,
        submit,
        lambda attempt: f"{base}_{attempt}" if own is None else target.job(own, attempt),
        table=target.table,
    )
    return rows if staging in (job.query or "") else 0


def _layout(target: Target, partition_by: str | None) -> str:
    """How the table is laid out: as it was, since BigQuery does not replace a table by one of another layout.

    A new one's days are partitions, other values lie together (there are no partitions of text).
    """
    moment, unit, together = target.layout
    if partition_by is not None:
        kind = target.schema.field(partition_by).type
        days = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
        moment, together = (partition_by, together) if days else (moment, (partition_by,))
    text = ""
    if moment is not None and moment in target.schema.names:
        kind, column = target.schema.field(moment).type, quoted(moment)
        if pa.types.is_date(kind):
            text = f" PARTITION BY {column if unit == 'DAY' else f'DATE_TRUNC({column}, {unit})'}"
        elif pa.types.is_timestamp(kind):
            text = f" PARTITION BY {'TIMESTAMP_TRUNC' if kind.tz else 'DATETIME_TRUNC'}({column}, {unit})"
    known = [quoted(name) for name in together if name in target.schema.names]
    return text + (f" CLUSTER BY {', '.join(known)}" if known else "")
