"""A session's streams as Arrow batches, read beside one another, resumed where they broke."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_errors import told, transient
from sp_ray_ml.data._bigquery_session import Session
from sp_ray_ml.data._where import as_arrow
from sp_ray_ml.errors import DataError
from sp_ray_ml.logger import LOGGER

__all__ = ["conformed", "interleaved", "read_stream"]

_AHEAD = 4
"""Decoded batches that wait in one stream's queue."""
_TICK = 0.1


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
                for message in _messages(client, wanted, place.timeout):
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


def _messages(client: Any, wanted: Any, seconds: float) -> Iterator[Any]:
    """The answers to one call, which is given up where one takes longer than `seconds`.

    The client's own timeout is for the whole call: it would end long streams, and those whose rows are used slowly.
    """
    import grpc
    from google.api_core import exceptions
    from google.api_core.gapic_v1.routing_header import to_grpc_metadata

    call = client.transport.read_rows(
        wanted, metadata=[to_grpc_metadata([("read_stream", wanted.read_stream)])]
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        call.cancel()

    try:
        while True:
            watch = threading.Timer(seconds, give_up)
            watch.daemon = True
            watch.start()
            try:
                message = next(call)
            except StopIteration:
                return
            except grpc.RpcError as error:
                if late.is_set():
                    raise exceptions.DeadlineExceeded(f"nothing came for {seconds:g} s") from error
                raise exceptions.from_grpc_error(error) from error
            finally:
                watch.cancel()
            yield message
    finally:
        call.cancel()


class _Converter:
    """Bytes of a message to a batch with the session's columns, types and rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sent = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema))
        self._filter = as_arrow(session.conditions)
        tested = {c.column: c.type for c in session.conditions if c.column not in session.schema.names}
        self._full = pa.schema([*session.schema, *(pa.field(name, kind) for name, kind in tested.items())])
        if gone := [name for name in self._full.names if name not in self._sent.names]:
            raise DataError(
                f"column {gone[0]!r} is not in the table any more: it was changed since its schema was read",
                where=f"{session.place.url}/{session.table}",
                hint="Read it again",
            )

    def __call__(self, content: bytes) -> pa.RecordBatch:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), self._sent)
        batch = conformed(batch, self._full, f"{self._session.place.url}/{self._session.table}")
        if self._filter is None:
            return batch
        return _only(batch, self._filter).select(self._session.schema.names)


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
