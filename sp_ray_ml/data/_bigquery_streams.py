"""The Storage Read API: one session's streams as Arrow batches, read beside one another, resumed where they broke."""

from __future__ import annotations

import contextlib
import datetime as dt
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_errors import told, transient
from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_sql import restriction
from sp_ray_ml.data._where import Condition, as_arrow
from sp_ray_ml.errors import DataError
from sp_ray_ml.logger import LOGGER

__all__ = ["Session", "interleaved", "open_session", "read_stream"]

_AHEAD = 4
"""Decoded batches that wait in one stream's queue."""
_LONGEST_FILTER = 900_000
"""Bytes; BigQuery takes 1 MB."""
_TICK = 0.1


@dataclass(frozen=True)
class Session:
    """A snapshot of some columns and rows of one table; pickled into Ray's tasks.

    Attributes:
        place: The dataset.
        table: The table, for messages.
        streams: Names of its streams; each can be read more than once, for some hours.
        arrow_schema: What the streams send, serialised.
        schema: What readers get: columns in their order, types as they were written.
        conditions: Those that BigQuery did not take: kept here.
    """

    place: Place
    table: str
    streams: tuple[str, ...]
    arrow_schema: bytes
    schema: pa.Schema
    conditions: tuple[Condition, ...]


def open_session(
    place: Place,
    path: tuple[str, str, str],
    schema: pa.Schema,
    conditions: Sequence[Condition] = (),
    *,
    snapshot: dt.datetime | None = None,
    streams: int | None = None,
) -> Session:
    """Ask for a session: columns and conditions are pushed down, the snapshot is fixed.

    Args:
        place: The dataset.
        path: Project, dataset and table.
        schema: The columns to read, with the types that readers get.
        conditions: What rows must meet.
        snapshot: The moment whose rows are read; None for now.
        streams: How many at most, None for the place's number.

    Raises:
        TableNotFoundError: There is no such table (any more).
    """
    from google.api_core import exceptions

    text = restriction(conditions)
    pushed = len(text.encode()) <= _LONGEST_FILTER
    count = streams or place.streams
    try:
        session = _ask(place, path, schema, text, snapshot, count) if pushed else None
    except exceptions.InvalidArgument as error:
        # A literal, a name or a filter that this server does not take: the rows are picked out here.
        LOGGER.warning(
            "%s/%s: columns and rows are picked out here, not there: %s", place.url, path[2], error
        )
        pushed, session = False, None
    if session is None:
        try:
            session = _ask(place, path, None, "", snapshot, count)
        except exceptions.InvalidArgument as error:
            ours = told(error, place, table=path[2])
            raise ours or error from error
    return Session(
        place,
        path[2],
        tuple(stream.name for stream in session.streams),
        session.arrow_schema.serialized_schema,
        schema,
        () if pushed else tuple(conditions),
    )


def _ask(
    place: Place,
    path: tuple[str, str, str],
    schema: pa.Schema | None,
    text: str,
    snapshot: dt.datetime | None,
    streams: int,
) -> Any:
    from google.api_core import exceptions
    from google.cloud.bigquery_storage_v1 import types

    project, dataset, table = path
    wanted = types.ReadSession(
        table=f"projects/{project}/datasets/{dataset}/tables/{table}", data_format=types.DataFormat.ARROW
    )
    if schema is not None:
        wanted.read_options.selected_fields = schema.names
        wanted.read_options.row_restriction = text
    if not place.grpc:  # nothing to gain on loopback, and an emulator need not have it
        wanted.read_options.arrow_serialization_options.buffer_compression = (
            types.ArrowSerializationOptions.CompressionCodec.LZ4_FRAME
        )
    if snapshot is not None:
        wanted.table_modifiers.snapshot_time = snapshot

    def ask() -> Any:
        try:
            return client.create_read_session(
                parent=f"projects/{place.billing}",
                read_session=wanted,
                max_stream_count=streams,
                retry=None,
                timeout=place.timeout,
            )
        except exceptions.InvalidArgument as error:
            return error

    with place.reader() as client:
        answer = place.call(ask, table=table)
    if isinstance(answer, exceptions.InvalidArgument):
        raise answer
    return answer


def read_stream(session: Session, stream: str, client: Any) -> Iterator[pa.RecordBatch]:
    """One stream's batches. A connection that breaks or says nothing is left for a new one, at the next row."""
    from google.cloud.bigquery_storage_v1 import types

    place = session.place
    convert = _Converter(session)
    offset, wait, end = 0, 0.5, time.monotonic() + place.patience
    with contextlib.ExitStack() as own:
        while True:
            try:
                wanted = types.ReadRowsRequest(read_stream=stream, offset=offset)
                for message in client.read_rows(wanted, retry=None, timeout=place.timeout):
                    raw = types.ReadRowsResponse.pb(message)
                    offset += raw.row_count
                    wait, end = 0.5, time.monotonic() + place.patience
                    yield convert(raw.arrow_record_batch.serialized_record_batch)
                    end = time.monotonic() + place.patience  # what the consumer took is not the server's
                return
            except Exception as error:
                if not transient(error) or time.monotonic() + wait > end:
                    ours = told(error, place, table=session.table)
                    if ours is None:
                        raise
                    raise ours from error
                LOGGER.info(
                    "%s/%s: %s; reading goes on at row %d of the stream",
                    place.url, session.table, type(error).__name__, offset,
                )  # fmt: skip
            time.sleep(wait)
            wait = min(2 * wait, 30.0)
            own.close()
            client = own.enter_context(place.reader())


class _Converter:
    """Bytes of a message to a batch with the session's columns, types and rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sent = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema))
        self._filter = as_arrow(session.conditions)
        sent, wanted = self._sent.names, [*session.schema.names, *(c.column for c in session.conditions)]
        if gone := [name for name in wanted if name not in sent]:
            raise DataError(
                f"column {gone[0]!r} is not in the table any more: it was changed since its schema was read",
                where=f"{session.place.url}/{session.table}",
                hint="Read it again",
            )

    def __call__(self, content: bytes) -> pa.RecordBatch:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), self._sent)
        if self._filter is not None:
            batch = _only(batch, self._filter)
        return conformed(batch, self._session.schema, f"{self._session.place.url}/{self._session.table}")


def _only(batch: pa.RecordBatch, condition: Any) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch]).filter(condition).combine_chunks()
    return table.to_batches()[0] if table.num_rows else batch.slice(0, 0)


def conformed(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The batch with these columns and types.

    Raises:
        DataError: A value does not fit its column's type.
    """
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"column {field.name!r} is {column.type} now and does not fit {field.type} any more: {error}",
                    where=where,
                    hint="It was changed since its schema was read, or by another program: read it again, or write it again",
                ) from error
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


_END = object()


def _joined(thread: threading.Thread) -> None:
    if thread.is_alive():
        thread.join(5)


def interleaved(session: Session) -> Iterator[pa.RecordBatch]:
    """All streams at once, a batch of each in turn: the same order each time this session is read."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(session.place.reader())
        stop = threading.Event()
        queues: list[queue.Queue[Any]] = [queue.Queue(_AHEAD) for _ in session.streams]

        def put(place: queue.Queue[Any], item: Any) -> bool:
            while not stop.is_set():
                try:
                    place.put(item, timeout=_TICK)
                    return True
                except queue.Full:
                    continue
            return False

        def work(stream: str, place: queue.Queue[Any]) -> None:
            try:
                for batch in read_stream(session, stream, client):
                    if not put(place, batch):
                        return
                put(place, _END)
            except BaseException as error:  # noqa: BLE001 - told where it is read
                put(place, error)

        threads = [
            threading.Thread(target=work, args=pair, daemon=True)
            for pair in zip(session.streams, queues, strict=True)
        ]
        for thread in threads:
            stack.callback(_joined, thread)
        stack.callback(client.transport.close)  # what waits for an answer ends now
        stack.callback(stop.set)
        for thread in threads:
            thread.start()
        waiting = list(queues)
        while waiting:
            for place in list(waiting):
                item = place.get()
                if item is _END:
                    waiting.remove(place)
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
