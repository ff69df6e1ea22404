"""A session's streams as Arrow batches, read beside one another, resumed where they broke."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_place import Waits
from sp_ray_ml.data._bigquery_session import Session
from sp_ray_ml.data._channel import END, Channel
from sp_ray_ml.data._where import Condition, as_arrow
from sp_ray_ml.errors import DataError
from sp_ray_ml.logger import LOGGER

__all__ = ["conformed", "interleaved", "is_alive", "only", "read_stream", "tested"]

_AHEAD = 4
"""Decoded batches that wait in one stream's queue."""


def read_stream(session: Session, stream: str, client: Any) -> Iterator[pa.RecordBatch]:
    """One stream's batches. A connection that breaks or says nothing is left for a new one, at the next row."""
    from google.cloud.bigquery_storage_v1 import types

    place = session.place
    convert = _Converter(session)
    offset, waits = 0, Waits(place, table=session.table)
    with contextlib.ExitStack() as own:
        while True:
            try:
                wanted = types.ReadRowsRequest(read_stream=stream, offset=offset)
                for message in _messages(client, wanted, place.timeout):
                    raw = types.ReadRowsResponse.pb(message)
                    offset += raw.row_count
                    yield convert(raw.arrow_record_batch.serialized_record_batch)
                    waits.again()  # what the consumer took is not the server's
                return
            except Exception as error:  # noqa: BLE001 - `after` raises what is for good
                wait = waits.after(error)
                LOGGER.info(
                    "%s/%s: %s; reading goes on at row %d of the stream",
                    place.url, session.table, type(error).__name__, offset,
                )  # fmt: skip
            time.sleep(wait)
            own.close()
            client = own.enter_context(place.reader())


def _messages(client: Any, wanted: Any, seconds: float) -> Generator[Any]:
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


def is_alive(session: Session) -> bool:
    """Whether its streams can still be read: the first one is asked for its first rows."""
    from google.api_core import exceptions
    from google.cloud.bigquery_storage_v1 import types

    gone = exceptions.NotFound, exceptions.InvalidArgument, exceptions.FailedPrecondition

    def ask() -> bool:
        wanted = types.ReadRowsRequest(read_stream=session.streams[0])
        with contextlib.closing(_messages(client, wanted, session.place.timeout)) as messages:
            try:
                next(messages, None)
            except gone:
                return False
        return True

    if not session.streams:
        return True
    with session.place.reader() as client:
        return session.place.call(ask, table=session.table)


class _Converter:
    """Bytes of a message to a batch with the session's columns, types and rows."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sent = pa.ipc.read_schema(pa.py_buffer(session.arrow_schema))
        self._filter = as_arrow(session.conditions)
        self._full = tested(session.schema, session.conditions)
        if gone := [name for name in self._full.names if name not in self._sent.names]:
            raise DataError(
                f"column {gone[0]!r} is not in the table any more: it was changed since its schema was read",
                where=f"{session.place.url}/{session.table}",
                hint="Read it again",
            )

    def __call__(self, content: bytes) -> pa.RecordBatch:
        batch = pa.ipc.read_record_batch(pa.py_buffer(content), self._sent)
        batch = conformed(batch, self._full, f"{self._session.place.url}/{self._session.table}")
        return only(batch, self._filter, self._session.schema)


def tested(schema: pa.Schema, conditions: Sequence[Condition]) -> pa.Schema:
    """These columns, and those that conditions are about."""
    more = {c.column: c.type for c in conditions if c.column not in schema.names}
    return pa.schema([*schema, *(pa.field(name, kind) for name, kind in more.items())])


def only(batch: pa.RecordBatch, condition: Any, schema: pa.Schema) -> pa.RecordBatch:
    """The rows that meet a condition, and of these the columns of `schema`; all of them where it is None."""
    if condition is None:
        return batch
    table = pa.Table.from_batches([batch]).filter(condition).combine_chunks().select(schema.names)
    return table.to_batches()[0] if table.num_rows else batch.slice(0, 0).select(schema.names)


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


def _joined(thread: threading.Thread) -> None:
    if thread.is_alive():
        thread.join(5)


def interleaved(session: Session) -> Iterator[pa.RecordBatch]:
    """All streams at once, a batch of each in turn: the same order each time this session is read."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(session.place.reader())
        channels = [Channel(_AHEAD) for _ in session.streams]

        def work(stream: str, channel: Channel) -> None:
            try:
                for batch in read_stream(session, stream, client):
                    if not channel.put(batch):
                        return
                channel.put(END)
            except BaseException as error:  # noqa: BLE001 - told where it is read
                channel.put(error)

        threads = [
            threading.Thread(target=work, args=pair, daemon=True)
            for pair in zip(session.streams, channels, strict=True)
        ]
        for thread in threads:
            stack.callback(_joined, thread)
        stack.callback(client.transport.close)  # what waits for an answer ends now
        for channel in channels:
            stack.callback(channel.close)
        for thread in threads:
            thread.start()
        waiting = list(channels)
        while waiting:
            for channel in list(waiting):
                item = channel.get()
                if item is END:
                    waiting.remove(channel)
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
