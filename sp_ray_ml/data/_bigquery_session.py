"""Sessions of the Storage Read API: one snapshot of a table, its columns and rows pushed down."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._bigquery_errors import told
from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_sql import restriction
from sp_ray_ml.data._where import Condition
from sp_ray_ml.logger import LOGGER

__all__ = ["Session", "open_session"]

_LONGEST_FILTER = 900_000
"""Bytes; BigQuery takes 1 MB."""


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
        expires: When it is over, as ISO 8601; empty where that is not said.
    """

    place: Place
    table: str
    streams: tuple[str, ...]
    arrow_schema: bytes
    schema: pa.Schema
    conditions: tuple[Condition, ...]
    expires: str = ""


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
    text = restriction(conditions)
    pushed = len(text.encode()) <= _LONGEST_FILTER
    count, refused = streams or place.streams, _refusals()
    why: Exception | None = None
    try:
        session = _ask(place, path, schema, text, snapshot, count) if pushed else None
    except refused as error:
        # A literal, a name or a filter that this server does not take, or columns that have changed since: the rows
        # are picked out here, where what does not fit is told.
        why, pushed, session = error, False, None
    if session is None:
        try:
            session = _ask(place, path, None, "", snapshot, count)
        except refused as error:
            ours = told(error, place, table=path[2])
            raise ours or error from error
    if why is not None:
        LOGGER.warning("%s/%s: columns and rows are picked out here, not there: %s", place.url, path[2], why)
    return Session(
        place,
        path[2],
        tuple(stream.name for stream in session.streams),
        session.arrow_schema.serialized_schema,
        schema,
        () if pushed else tuple(conditions),
        session.expire_time.isoformat() if session.expire_time else "",
    )


def _refusals() -> tuple[type[Exception], ...]:
    from google.api_core import exceptions

    return exceptions.InvalidArgument, exceptions.NotFound


def _ask(
    place: Place,
    path: tuple[str, str, str],
    schema: pa.Schema | None,
    text: str,
    snapshot: dt.datetime | None,
    streams: int,
) -> Any:
    from google.cloud.bigquery_storage_v1 import types

    refused = _refusals()
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
        except refused as error:
            return error

    with place.reader() as client:
        answer = place.call(ask, table=table)
    if isinstance(answer, refused):
        raise answer
    return answer
