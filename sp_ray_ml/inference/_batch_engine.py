"""Partitions predicted in one process: read, prepared, through the model and written, each in a thread of its own.

A batch in which something fails is cut in halves, and these again, until the rows that fail are found: those are set
aside with the reason, the others are predicted. What is not a row's fault (no memory, a GPU that failed, a full disk)
is no reason to set rows aside: with too little memory smaller batches are tried, the rest ends the work.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.data._schema import plain
from sp_ray_ml.errors import DataError, ResourceError, StorageError
from sp_ray_ml.inference._batch_pipe import piped
from sp_ray_ml.inference._batch_stage import Done, PartWriter, Stage

if TYPE_CHECKING:
    from sp_ray_ml.data._channel import Channel
    from sp_ray_ml.data._store import Store
    from sp_ray_ml.inference._batch_parts import Part
    from sp_ray_ml.train.predictor import Predictor

__all__ = ["REASON", "ROW", "Engine", "Job", "rejected_schema"]

ROW, REASON = "rejected_row", "rejected_reason"
LEAST_ROWS = 1_024
_REASON_LETTERS = 500


@dataclass(frozen=True)
class Job:
    """What is the same in all processes; can be pickled.

    Attributes:
        store: Where predictions are kept.
        input: Columns of the rows.
        output: Columns of the predictions.
        batch_rows: Rows a batch.
        most_rejected: How many rows may fail; None sets no row aside, the first ends the work.
        order_column: Name of a column with the row's number, or None.
    """

    store: Store
    input: pa.Schema
    output: pa.Schema
    batch_rows: int
    most_rejected: int | None = None
    order_column: str | None = None


def rejected_schema(schema: pa.Schema) -> pa.Schema:
    """Columns of the table of rows that could not be predicted."""
    return plain(pa.schema([pa.field(ROW, pa.int64()), pa.field(REASON, pa.string()), *schema]))


@dataclass
class _Batch:
    """Some rows on their way; `start` is the number of the first one."""

    part: Part
    start: int
    rows: pa.Table
    last: bool
    prepared: Any = None
    found: Any = None
    error: Exception | None = None
    predicted: list[pa.Table] = field(default_factory=list)
    rejected: list[pa.Table] = field(default_factory=list)


class Engine:
    """Predicts partitions.

    Args:
        job: What is predicted.
        predictor: Loaded.
        began: When this process had begun to load it, in seconds since 1970.
    """

    def __init__(self, job: Job, predictor: Predictor, began: float) -> None:
        self._job, self._predictor, self._began = job, predictor, began
        self._stage = Stage(job.store)
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        # Rows are looked for in the thread that writes, too; the model is asked by one at a time.
        self._asked = threading.RLock()
        self._device = _DeviceClock()
        self._rejected = 0
        self._open: dict[str, PartWriter] = {}

    def run(self, parts: Iterable[Part], feed: Channel | None = None) -> Iterator[Done]:
        """Predict partitions, and give the record of each when it is kept.

        Args:
            parts: The partitions. The next one is read while the last batches of the one before are predicted.
            feed: What they come out of, where they have to be waited for; closed when this ends.

        Raises:
            DataError: More rows fail than may.
            StorageError: Something cannot be read or written.
        """
        try:
            for done in piped(self._read(parts), self._prepare, self._infer, self._write, feed=feed):
                if done is not None:
                    yield done
        finally:
            for writer in self._open.values():
                writer.drop()
            self._open = {}

    # --- the stages ---------------------------------------------------------------------------------------------

    def _read(self, parts: Iterable[Part]) -> Iterator[_Batch]:
        for part in parts:
            at, before = part.start or 0, None
            for block in part.source.blocks(self._job.batch_rows):
                if before is not None:
                    yield before
                before = _Batch(part, at, pa.Table.from_batches([block]), last=False)
                at += block.num_rows
            yield replace(before or _Batch(part, at, self._job.input.empty_table(), last=True), last=True)

    def _prepare(self, batch: _Batch) -> _Batch:
        try:
            batch.prepared = self._predictor.prepare(batch.rows)
        except Exception as error:  # noqa: BLE001  whatever it is, it is looked at in `_halve`
            batch.error = error
        return batch

    def _infer(self, batch: _Batch) -> _Batch:
        if batch.error is None:
            try:
                with self._asked, self._device:
                    batch.found = self._predictor.infer(batch.prepared)
            except Exception as error:  # noqa: BLE001  as above
                batch.error = error
        if batch.error is not None:
            self._halve(batch, batch.rows, batch.start, batch.error)
        batch.prepared = None
        return batch

    def _write(self, batch: _Batch) -> Done | None:
        if batch.error is None:
            try:
                batch.predicted.append(self._assembled(batch.rows, batch.found, batch.start))
            except Exception as error:  # noqa: BLE001  as above
                batch.error = error
                self._halve(batch, batch.rows, batch.start, error)
        for kind, tables in (("part", batch.predicted), ("rejected", batch.rejected)):
            if tables:
                self._writer(kind, batch.part.number).write(pa.concat_tables(tables))
        return self._done(batch) if batch.last else None

    def _writer(self, kind: str, number: int) -> PartWriter:
        if kind not in self._open:
            schema = self._job.output if kind == "part" else rejected_schema(self._job.input)
            self._open[kind] = PartWriter(self._job.store, kind, number, schema)
        return self._open[kind]

    def _done(self, batch: _Batch) -> Done:
        written, rejected = (self._writer(kind, batch.part.number) for kind in ("part", "rejected"))
        self._open = {}
        done = Done(
            number=batch.part.number,
            rows=batch.start + len(batch.rows) - (batch.part.start or 0),
            written=written.rows,
            rejected=rejected.rows,
            files={**written.close(), **rejected.close()},
            checksum=batch.part.checksum,
            worker=self._worker,
            began=self._began,
            ended=time.time(),
            batch_rows=self._job.batch_rows,
            device_seconds=self._device.taken(),
            start=batch.part.start,
        )
        self._stage.write(done)
        return done

    # --- rows -------------------------------------------------------------------------------------------------

    def _assembled(self, rows: pa.Table, found: Any, start: int) -> pa.Table:
        table = self._predictor.assemble(rows, found)
        if (name := self._job.order_column) is not None:
            if len(table) != len(rows):
                raise _Wrong(
                    f"{len(rows)} rows have {len(table)} predictions: their order cannot be told by row numbers",
                    where="order_column",
                )
            table = table.append_column(name, pa.array(np.arange(start, start + len(rows))))
        wanted = self._job.output
        if table.schema.equals(wanted):
            return table
        try:
            return table.replace_schema_metadata(None).select(wanted.names).cast(wanted)
        except (KeyError, pa.ArrowException, ValueError) as error:
            raise _Wrong(
                f"{type(self._predictor).__name__} predicts other columns for rows than for a table without rows: {error}",
                where="predictor",
            ) from error

    def _halve(self, batch: _Batch, rows: pa.Table, start: int, error: Exception) -> None:
        """Predict rows of which some fail, or for all of which there was no memory, in parts."""
        small = _no_memory(error)
        if _of_machine(error) or (small and len(rows) <= LEAST_ROWS):
            raise error
        if len(rows) <= 1:
            self._reject(batch, rows, start, error)
            return
        if small:
            _free_memory()
        middle = 1 << (len(rows) - 1).bit_length() - 1  # batches of a neural network stay whole
        for begin, end in ((0, middle), (middle, len(rows))):
            part = rows.slice(begin, end - begin)
            try:
                with self._asked:
                    found = self._predictor.infer(self._predictor.prepare(part))
                batch.predicted.append(self._assembled(part, found, start + begin))
            except Exception as inner:  # noqa: BLE001  as above
                self._halve(batch, part, start + begin, inner)

    def _reject(self, batch: _Batch, row: pa.Table, number: int, error: Exception) -> None:
        text = " ".join(str(error).split())
        reason = (text if isinstance(error, DataError) else f"{type(error).__name__}: {text}")[
            :_REASON_LETTERS
        ]
        where = f"{batch.part.source.name}, row {number:,}"
        if self._job.most_rejected is None:
            raise DataError(
                f"cannot be predicted: {reason}",
                where=where,
                hint="Rejected() in `rejected` sets such rows aside into a table of their own",
            ) from error
        self._rejected += 1
        if self._rejected > self._job.most_rejected:
            raise too_many(self._job.most_rejected, where, reason) from error
        own = [pa.array([number], pa.int64()), pa.array([reason])]
        schema = rejected_schema(self._job.input)
        batch.rejected.append(pa.Table.from_arrays([*own, *row.columns], names=schema.names).cast(schema))


def too_many(most: int, where: str, reason: str) -> DataError:
    """The error when more rows fail than may."""
    return DataError(
        f"more than {most:,} rows cannot be predicted; nothing was written. The last one: {reason}",
        where=where,
        hint="Look at the reason, or allow more: Rejected(most=…)",
    )


class _Wrong(DataError):  # noqa: N818  told apart here alone
    """The predictor itself is at fault, whatever the row."""


def _of_machine(error: Exception) -> bool:
    """Whether an error is no fault of a row: other rows would fail as well, or the same one would not fail again."""
    if isinstance(
        error, _Wrong | StorageError | ResourceError | ImportError | ConnectionError | TimeoutError
    ):
        return True
    # A row may name a file that is not there, or no image; with a full disk or a lost network there is a number.
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return True
    if any(map(_of_network, _chain(error))):
        return True
    text = str(error)
    device = type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "cudaError" in text
    return device and not _no_memory(error)


_LOST = {
    "ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "TimeoutError", "TimeoutException", "URLError",
    "TransportError", "ServerDisconnectedError", "ClientConnectionError", "gaierror",
}  # fmt: skip
"""What requests, urllib, httpx, aiohttp and the clouds' clients call a network that is gone, all without a number."""
_ANSWERED = {"HTTPError", "UnsupportedProtocol"}
"""Where one of these is the narrower class there was an answer, or an address that is none: a row's fault."""
_NO_ADDRESS = ("unknown url type", "no host given", "file not on local host")  # urllib's, in a URLError


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came of."""
    left, met = [error], set[int]()
    while left:
        found = left.pop()
        if id(found) in met:
            continue
        met.add(id(found))
        yield found
        reasons = (found.__cause__, found.__context__, getattr(found, "reason", None))
        left += [each for each in reasons if isinstance(each, BaseException)]


def _of_network(error: BaseException) -> bool:
    names = [cls.__name__ for cls in type(error).__mro__]
    if "RpcError" in names and callable(code := getattr(error, "code", None)):  # gRPC's
        return getattr(code(), "name", None) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    reason = getattr(error, "reason", None)
    if isinstance(reason, FileNotFoundError) or str(reason).startswith(_NO_ADDRESS):
        return False
    return next((name in _LOST for name in names if name in _LOST | _ANSWERED), False)


def _no_memory(error: Exception) -> bool:
    # Also torch's and TensorFlow's, which are no MemoryError.
    if isinstance(error, MemoryError | pa.ArrowMemoryError):
        return True
    return any(cls.__name__ in {"OutOfMemoryError", "ResourceExhaustedError"} for cls in type(error).__mro__)


def _free_memory() -> None:
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class _DeviceClock:
    """How long the GPU was at work, by CUDA's own events around the model; nothing on CPUs."""

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        self._cuda = torch.cuda if torch is not None and torch.cuda.is_available() else None
        self._begin: Any = None
        self._events: deque[tuple[Any, Any]] = deque()

    def __enter__(self) -> None:
        if self._cuda is not None:
            self._begin = self._cuda.Event(enable_timing=True)
            self._begin.record()

    def __exit__(self, *_: object) -> None:
        if self._cuda is not None:
            end = self._cuda.Event(enable_timing=True)
            end.record()
            self._events.append((self._begin, end))

    def taken(self) -> float | None:
        """Seconds since it was asked last; of batches that the GPU is still at, the next time."""
        if self._cuda is None:
            return None
        seconds = 0.0
        for _ in range(len(self._events)):
            begin, end = self._events.popleft()
            if end.query():
                seconds += begin.elapsed_time(end) / 1e3
            else:
                self._events.append((begin, end))
        return seconds
