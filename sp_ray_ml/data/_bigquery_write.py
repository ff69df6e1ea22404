"""Writing a table: rows go into a staging table by load jobs, and one statement makes them visible.

1. Parquet parts of bounded size are loaded (`_bigquery_load.py`) into `_sp_ray_ml_…`, a table that no reader is shown
   and that expires by itself. A writer that dies leaves nothing else, but for objects in a staging bucket.
2. One query job, which BigQuery does wholly or not at all, moves the rows: `CREATE OR REPLACE TABLE … AS SELECT`,
   `INSERT`, or for partitions a transaction of `DELETE` and `INSERT`.

What was committed: a table that was made by a commit says so in its note, set by the statement that made it. Later
additions run as jobs whose ids follow from the table's note and the commit; BigQuery never runs an id twice.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_jobs import find_job, finished, run_job
from sp_ray_ml.data._bigquery_load import load_rows
from sp_ray_ml.data._bigquery_note import commit_mark
from sp_ray_ml.data._bigquery_sql import literal, quoted
from sp_ray_ml.data._bigquery_target import Target
from sp_ray_ml.data._bigquery_types import column_of, has_kinds, kind_of
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import WarehouseError

__all__ = ["HIDDEN", "committed", "made_of", "move", "staged"]

HIDDEN = "_sp_ray_ml_"
"""What names of tables that are no tables of the user's begin with."""

_LIFETIME = dt.timedelta(days=7)
_FROM_TEXT = {"JSON": "PARSE_JSON({})", "GEOGRAPHY": "ST_GEOGFROMTEXT({})"}


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
    target: Target, client: Any, source: Source, partition_by: str | None, commit: str | None
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
        rows = load_rows(target, client, name, fields, source, partition_by, commit)
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
    return {**_plain(column_of(field)), "name": f"c{index}"}


def _plain(column: dict[str, Any]) -> dict[str, Any]:
    """The column as Parquet brings it: what is text on its way, the statement makes something else of."""
    if "fields" in column:
        return {**column, "fields": [_plain(inner) for inner in column["fields"]]}
    return {**column, "type": "STRING"} if column["type"] in _FROM_TEXT else column


# --- moving -----------------------------------------------------------------------------------------------------


def made_of(staged: str, field: pa.Field, depth: int = 0) -> str:
    """SQL that makes a column's value of the staged one: JSON and places of text, at any depth."""
    if not has_kinds(field):
        return staged
    if pa.types.is_list(field.type):
        item, at = f"item{depth}", f"at{depth}"
        made = made_of(item, field.with_type(field.type.value_type), depth + 1)
        return f"ARRAY(SELECT {made} FROM UNNEST({staged}) AS {item} WITH OFFSET AS {at} ORDER BY {at})"  # noqa: S608
    if pa.types.is_struct(field.type):
        parts = ", ".join(
            f"{made_of(f'{staged}.{quoted(inner.name)}', inner, depth)} AS {quoted(inner.name)}"
            for inner in field.type
        )
        return f"IF({staged} IS NULL, NULL, STRUCT({parts}))"
    return _FROM_TEXT[str(kind_of(field))].format(staged)


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
        f"{made_of(f'`c{index}`', field)} AS {quoted(field.name)}"
        for index, field in enumerate(target.schema)
    )
    select = f"SELECT {picked} FROM {path}"  # noqa: S608
    names = ", ".join(quoted(name) for name in target.schema.names)
    insert = f"INSERT INTO {target.path} ({names}) {select}"
    make = target.made is None or mode == "replace"
    if make:
        create = "CREATE OR REPLACE TABLE" if mode == "replace" else "CREATE TABLE"
        sql = f"{create} {target.path}{target.clauses(partition_by)} OPTIONS(description={literal(target.note.text())}) AS {select}"
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
