"""A server of recorded answers: BigQuery's REST API and Storage Read API, as its reference writes them down.

For what bqemulator lacks. Both listen on loopback and are reached through the official clients' own transports.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.cloud.bigquery_storage_v1 import types

from sp_ray_ml.data import _bigquery_place

Answer = tuple[int, dict[str, Any]]


def refusal(status: int, reason: str, message: str) -> Answer:
    """An error as the REST API sends it."""
    return status, {
        "error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message, "domain": "global"}]}
    }  # fmt: skip


def job(job_id: str, kind: str, error: tuple[str, str] | None = None, **configuration: Any) -> Answer:
    """A job that is done."""
    status: dict[str, Any] = {"state": "DONE"}
    if error:
        status["errorResult"] = {"reason": error[0], "message": error[1]}
        status["errors"] = [status["errorResult"]]
    statistics = configuration.pop("statistics", {})
    return 200, {
        "id": f"p:EU.{job_id}",
        "jobReference": {"projectId": "p", "jobId": job_id, "location": "EU"},
        "configuration": {"jobType": kind.upper(), kind: configuration},
        "status": status,
        "statistics": statistics,
    }


def sleepless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `Place.call` a clock that only its own waits move: how many tries fit into a patience is no matter of speed."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(_bigquery_place, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))


def short_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an answer that stalls be given up after 5 s, whatever the patience: after that many more tries are left."""
    monkeypatch.setattr(_bigquery_place.Place, "timeout", property(lambda _: 5.0))


@dataclass
class Recorded:
    """What is answered, and what was asked.

    Attributes:
        answers: By `METHOD path` as a regular expression: the answers in their order, the last one again and again.
            A callable makes it of the request's body.
        asked: Method, path and body of each request.
        sessions: What `CreateReadSession` gives: a schema, or a status to fail with.
        rows: For each `ReadRows` call the batches that are sent, and the status that the call ends with.
        table: Instead of `rows`: what every `ReadRows` sends from its offset on.
        reads: The session requests and the offsets that were asked for.
        limits: Seconds that each `ReadRows` call may last as a whole; more than 1e9 where it has no limit.
    """

    answers: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)
    rows: list[tuple[list[pa.RecordBatch], grpc.StatusCode | None]] = field(default_factory=list)
    table: pa.Table | None = None
    reads: list[Any] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    rest: str = ""
    storage: str = ""

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        self.asked.append((method, path, body))
        for pattern, answers in self.answers.items():
            if re.fullmatch(pattern, f"{method} {path.partition('?')[0]}"):
                found = answers.pop(0) if len(answers) > 1 else answers[0]
                made: Answer = found(body) if callable(found) else found
                return made
        return refusal(404, "notFound", f"Not found: {path}")


@contextlib.contextmanager
def recorded() -> Iterator[Recorded]:
    """Both servers, while the block lasts."""
    here = Recorded()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = here.answer(self.command, self.path, json.loads(raw) if raw[:1] == b"{" else {})
            packed = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(packed)))
            self.end_headers()
            self.wfile.write(packed)

        do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _serve  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            pass

    class Storage(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method.endswith("/CreateReadSession"):
                return grpc.unary_unary_rpc_method_handler(self._session)
            return grpc.unary_stream_rpc_method_handler(self._rows)

        def _session(self, raw: bytes, context: Any) -> bytes:
            request = types.CreateReadSessionRequest.deserialize(raw)
            here.reads.append(request)
            found = here.sessions.pop(0) if len(here.sessions) > 1 else here.sessions[0]
            if isinstance(found, tuple):
                context.abort(*found)
            session = types.ReadSession(
                name="projects/p/locations/eu/sessions/s",
                streams=[types.ReadStream(name="projects/p/locations/eu/sessions/s/streams/0")],
                arrow_schema=types.ArrowSchema(serialized_schema=found.serialize().to_pybytes()),
            )
            return bytes(types.ReadSession.serialize(session))

        def _rows(self, raw: bytes, context: Any) -> Iterator[bytes]:
            offset = types.ReadRowsRequest.deserialize(raw).offset
            here.reads.append(offset)
            here.limits.append(context.time_remaining())
            if here.table is not None:
                here.rows.append((here.table.slice(offset).to_batches(5_000), None))
            batches, status = here.rows.pop(0)
            for batch in batches:
                content = types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes())
                answer = types.ReadRowsResponse(arrow_record_batch=content, row_count=batch.num_rows)
                yield bytes(types.ReadRowsResponse.serialize(answer))
            if status is not None:
                context.abort(status, f"recorded {status.name}")

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    storage = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Storage()])
    port = storage.add_insecure_port("127.0.0.1:0")
    storage.start()
    here.rest, here.storage = f"http://127.0.0.1:{web.server_address[1]}", f"127.0.0.1:{port}"
    try:
        yield here
    finally:
        storage.stop(None).wait(5)
        web.shutdown()
        web.server_close()
        thread.join(5)
