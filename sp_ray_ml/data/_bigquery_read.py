"""Tables and queries of BigQuery as `Source`s: their schema now, their rows when they are asked for."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_jobs import run_job
from sp_ray_ml.data._bigquery_parts import MOST_STREAMS, noted, streams_of
from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_session import Session, open_session
from sp_ray_ml.data._bigquery_sql import quoted, restriction
from sp_ray_ml.data._bigquery_streams import conformed, interleaved, only, tested
from sp_ray_ml.data._where import Condition, as_arrow, conditions
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import TableNotFoundError, WarehouseError
from sp_ray_ml.logger import LOGGER

__all__ = ["QueryResult", "QuerySource", "TableSource", "narrowed", "query_config"]


class _Locked:
    """What has a lock, which stays behind when it is pickled."""

    _lock: threading.Lock

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _StreamSource(_Locked, Source):
    """What tables and queries share: a session, opened when it is first read and read as often as needed.

    Args:
        name: What it is called.
        schema: The columns to read.
        state: Gives text that changes when the rows may have.
    """

    _place: Place
    _conditions: Sequence[Condition] = ()

    def __init__(self, name: str, schema: pa.Schema, state: Callable[[], str]) -> None:
        super().__init__(name, schema, self._stream)
        self._state = state
        self._lock = threading.Lock()
        self._opened: Session | None = None

    def _session(self, streams: int | None = None) -> Session:
        raise NotImplementedError

    def _stream(self) -> Iterator[pa.RecordBatch]:
        with self._lock:  # one session for all passes: they see the same rows in the same order
            if self._opened is None:
                self._opened = self._session()
        yield from interleaved(self._opened)

    def streams(self, note: str | None) -> tuple[str, Sequence[Source]] | None:
        before = noted(note, self._place, self.name, self.schema, self._conditions) if note else None
        return streams_of(self.name, before or self._session(MOST_STREAMS))

    def mark(self) -> str:
        text = f"{self._state()}\0{self._conditions}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_ray(self) -> Any:
        """Read by Ray's own workers, each its streams, with the same push-down and the same snapshot."""
        from sp_ray_ml.data._bigquery_ray import ray_dataset

        return ray_dataset(self._session)


class TableSource(_StreamSource):
    """The rows of one table.

    Args:
        name: What it is called.
        place: The dataset.
        path: Project, dataset and table.
        full: All its columns.
        snapshot: The moment whose rows are read.
        state: Gives text that changes when the table has.
        columns: The columns to read, None for all.
        where: Conditions that rows must meet.
    """

    def __init__(
        self,
        name: str,
        place: Place,
        path: tuple[str, str, str],
        full: pa.Schema,
        snapshot: dt.datetime | None,
        state: Callable[[], str],
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[tuple[str, str, Any]] = (),
    ) -> None:
        self._place, self._path, self._full, self._snapshot = place, path, full, snapshot
        self._where, self._conditions = tuple(where), conditions(where, full, name)
        names = require_columns(full, columns, name) if columns is not None else full.names
        super().__init__(name, pa.schema([full.field(column) for column in names]), state)

    def _session(self, streams: int | None = None) -> Session:
        return open_session(
            self._place, self._path, self.schema, self._conditions, snapshot=self._snapshot, streams=streams
        )

    def select(self, columns: Sequence[str]) -> Source:
        require_columns(self.schema, columns, self.name)
        return TableSource(
            self.name, self._place, self._path, self._full, self._snapshot, self._state, columns=columns, where=self._where
        )  # fmt: skip


class QueryResult(_Locked):
    """A query's rows in the table that its job writes: run once, when they are first read.

    Args:
        place: The dataset.
        sql: One `SELECT`.
        snapshot: What `@snapshot` in it is.
    """

    def __init__(self, place: Place, sql: str, snapshot: dt.datetime | None) -> None:
        self.place, self.sql, self._snapshot = place, sql, snapshot
        self._job: tuple[str, str, tuple[str, str, str]] | None = None
        self._lock = threading.Lock()

    def job(self) -> tuple[str, str, tuple[str, str, str]]:
        """The job's id, its location and its destination."""
        with self._lock:
            if self._job is None:
                self._job = self._run()
        return self._job

    def _run(self) -> tuple[str, str, tuple[str, str, str]]:
        config, base = query_config(self.place, self._snapshot), f"sp_ray_ml_{uuid.uuid4().hex}"
        with self.place.client() as client:
            job = run_job(
                self.place,
                client,
                lambda job_id: client.query(
                    self.sql,
                    job_id=job_id,
                    job_config=config,
                    retry=None,
                    timeout=self.place.timeout,
                    job_retry=None,
                ),
                lambda attempt: f"{base}_{attempt}",
            )
            to = job.destination
            return job.job_id, job.location, (to.project, to.dataset_id, to.table_id)

    def pages(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows through REST, for who may not open sessions, or where there are none."""
        job_id, location, _ = self.job()
        with self.place.client() as client:
            job = self.place.call(
                lambda: client.get_job(job_id, location=location, retry=None, timeout=self.place.timeout),
                job=job_id,
            )
            rows = self.place.call(lambda: job.result(job_retry=None), job=job_id)
            for batch in rows.to_arrow_iterable():
                if batch.num_rows:
                    yield conformed(batch, schema, self.place.url)


class QuerySource(_StreamSource):
    """The rows of a query.

    Args:
        result: The query's rows.
        schema: The columns to read of it.
        state: Gives text that changes when the tables that it reads have.
        conditions: What rows of the result must meet.
        ordered: Whether the query says in which order: it is then read in one stream.
    """

    def __init__(
        self,
        result: QueryResult,
        schema: pa.Schema,
        state: Callable[[], str],
        conditions: Sequence[Condition] = (),
        *,
        ordered: bool,
    ) -> None:
        self._place, self._result, self._ordered = result.place, result, ordered
        self._conditions = conditions
        super().__init__("query", schema, state)

    def _session(self, streams: int | None = None) -> Session:
        streams = 1 if self._ordered else streams
        return open_session(
            self._place, self._result.job()[2], self.schema, self._conditions, streams=streams
        )

    def _stream(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from super()._stream()
            return
        except (TableNotFoundError, WarehouseError) as error:
            if self._opened is not None or not _without_sessions(error):
                raise
            LOGGER.warning(
                "%s: the query's rows come through REST, which is slower: %s", self._place.url, error
            )
        condition = as_arrow(self._conditions)
        for batch in self._result.pages(tested(self.schema, self._conditions)):
            yield only(batch, condition, self.schema)

    def streams(self, note: str | None) -> tuple[str, Sequence[Source]] | None:
        if self._ordered:
            return None
        try:
            return super().streams(note)
        except (TableNotFoundError, WarehouseError) as error:
            if not _without_sessions(error):
                raise
        return None

    def mark(self) -> str:
        return hashlib.sha256(f"{super().mark()}\0{self._result.sql}".encode()).hexdigest()[:32]

    def to_ray(self) -> Any:
        try:
            return super().to_ray()
        except (TableNotFoundError, WarehouseError) as error:
            if not _without_sessions(error):
                raise
        return Source.to_ray(self)

    def select(self, columns: Sequence[str]) -> Source:
        names = require_columns(self.schema, columns, self.name)
        schema = pa.schema([self.schema.field(name) for name in names])
        return QuerySource(self._result, schema, self._state, self._conditions, ordered=self._ordered)


def _without_sessions(error: Exception) -> bool:
    """Whether rows could not be read because there is no session to be had, for lack of a right or of a server."""
    from google.api_core import exceptions

    return isinstance(error.__cause__, exceptions.NotFound | exceptions.Forbidden)


def query_config(place: Place, snapshot: dt.datetime | None, *, dry: bool = False) -> Any:
    """How a query runs: in the dataset, for no more bytes than the cap."""
    from google.cloud import bigquery

    config = bigquery.QueryJobConfig(
        default_dataset=f"{place.project}.{place.dataset}", dry_run=dry, use_query_cache=not dry
    )
    if place.max_bytes_billed is not None and not dry:
        config.maximum_bytes_billed = place.max_bytes_billed
    if snapshot is not None:
        config.query_parameters = [bigquery.ScalarQueryParameter("snapshot", "TIMESTAMP", snapshot)]
    return config


def narrowed(
    sql: str, schema: pa.Schema, columns: Sequence[str] | None, where: Sequence[tuple[str, str, Any]]
) -> str:
    """The query with these columns and conditions only: BigQuery reads no more than that."""
    if columns is None and not where:
        return sql
    names = require_columns(schema, columns, "query") if columns is not None else schema.names
    clause = restriction(conditions(where, schema, "query"))
    picked = ", ".join(quoted(name) for name in names)
    return f"SELECT {picked} FROM (\n{sql}\n) AS q" + (f" WHERE {clause}" if clause else "")  # noqa: S608
