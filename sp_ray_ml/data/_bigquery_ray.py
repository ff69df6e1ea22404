"""BigQuery's streams as a Ray Dataset: each is read by a task, where what fails is also asked for again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from sp_ray_ml.data._bigquery_session import Session
from sp_ray_ml.data._bigquery_streams import read_stream

__all__ = ["ray_dataset"]

_BLOCK_BYTES = 64 << 20


class _Streams(Datasource):  # type: ignore[misc]
    def __init__(self, open_session: Callable[[int], Session]) -> None:
        super().__init__()
        self._open = open_session
        self._session: Session | None = None

    def get_name(self) -> str:
        return "BigQuery"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        if self._session is None:  # Ray may ask more than once
            self._session = self._open(max(parallelism, 1))
        session = self._session
        meta = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        if not session.streams:
            return [ReadTask(partial(_nothing, session), meta, session.schema)]
        return [ReadTask(partial(_read, session, stream), meta, session.schema) for stream in session.streams]


def _nothing(session: Session) -> list[pa.Table]:
    return [session.schema.empty_table()]


def _read(session: Session, stream: str) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    size, given = 0, False
    with session.place.reader() as client:
        for batch in read_stream(session, stream, client):
            waiting.append(batch)
            size += batch.nbytes
            if size >= _BLOCK_BYTES:
                yield pa.Table.from_batches(waiting)
                waiting, size, given = [], 0, True
    if waiting or not given:
        yield pa.Table.from_batches(waiting, schema=session.schema)


def ray_dataset(open_session: Callable[[int], Session]) -> Any:
    """The rows of the session that this opens for a number of streams."""
    return ray.data.read_datasource(_Streams(open_session))
