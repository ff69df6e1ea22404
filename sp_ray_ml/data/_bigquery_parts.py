"""A session's streams as sources of their own, which other processes read, one without the other.

A session is noted as text, so that a process that starts later reads the same streams: while a session lives (BigQuery
keeps it for six hours), each of its streams gives the same rows in the same order. A new one may cut the table
elsewhere, at the same snapshot, too.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from sp_ray_ml.data._bigquery_place import Place
from sp_ray_ml.data._bigquery_session import Session
from sp_ray_ml.data._bigquery_streams import is_alive, read_stream
from sp_ray_ml.data._where import Condition
from sp_ray_ml.data.source import Source
from sp_ray_ml.logger import LOGGER

__all__ = ["MOST_STREAMS", "noted", "streams_of"]

MOST_STREAMS = 1_000
"""BigQuery's own limit; of a small table it gives fewer."""
_MARGIN = dt.timedelta(minutes=10)


class _StreamRows(Source):
    """The rows of one stream; it can be pickled."""

    def __init__(self, name: str, session: Session, stream: str) -> None:
        super().__init__(name, session.schema, self._rows)
        self._session, self._stream = session, stream

    def _rows(self) -> Iterator[pa.RecordBatch]:
        with self._session.place.reader() as client:
            yield from read_stream(self._session, self._stream, client)


def streams_of(name: str, session: Session) -> tuple[str, Sequence[Source]]:
    """The session's note, and its streams in their order.

    Args:
        name: What messages call the rows.
        session: The session.
    """
    content = {
        "streams": session.streams,
        "arrow_schema": base64.b64encode(session.arrow_schema).decode(),
        "pushed": not session.conditions,
        "expires": session.expires,
    }
    rows = [_StreamRows(f"{name}, stream {n}", session, stream) for n, stream in enumerate(session.streams)]
    return json.dumps(content), rows


def noted(
    note: str, place: Place, name: str, schema: pa.Schema, conditions: Sequence[Condition]
) -> Session | None:
    """The session of a note, None if it is over.

    Args:
        note: Of `streams_of`, for the same columns and conditions.
        place: The dataset.
        name: What messages call the rows.
        schema: The columns.
        conditions: What rows must meet.
    """
    content = json.loads(note)
    session = Session(
        place,
        name,
        tuple(content["streams"]),
        base64.b64decode(content["arrow_schema"]),
        schema,
        () if content["pushed"] else tuple(conditions),
        content["expires"],
    )
    soon = dt.datetime.now(dt.UTC) + _MARGIN
    if (not session.expires or dt.datetime.fromisoformat(session.expires) > soon) and is_alive(session):
        return session
    LOGGER.warning("%s/%s: the session that was read from is over: all is read anew", place.url, name)
    return None
