"""Recordings of what the real KubeRay operator did, as data and over HTTP as an API server would give them.

recording = Recording.load("12d-recreate-same-name")
recording.snapshot_at(12.0)                       # what Kubernetes showed then
with RecordedServer("01-ready") as server:        # the clock stands still, at the recording's end
    server.step_to(0.12)
    Api(server.kubeconfig).list(POD, server.namespace)
with RecordedServer("01b-ready-slow", speed=10) as server: ...
"""

from __future__ import annotations

import json
import math
import re
import socket
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sp_ray_ml.cluster._api import Api

from .recordings import NAMES, Change, Query, Recording, snapshot_at

__all__ = ["NAMES", "Asked", "Change", "RecordedServer", "Recording", "snapshot_at"]

Body = dict[str, Any]
PLURALS = {
    "rayclusters": "RayCluster", "rayjobs": "RayJob", "pods": "Pod", "services": "Service", "events": "Event",
    "resourcequotas": "ResourceQuota", "limitranges": "LimitRange", "serviceaccounts": "ServiceAccount",
    "secrets": "Secret", "persistentvolumeclaims": "PersistentVolumeClaim", "configmaps": "ConfigMap",
    "jobs": "Job", "roles": "Role", "rolebindings": "RoleBinding",
}  # fmt: skip


# --- the server ---------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    port: int = 0
    """The client's: requests of one port came over one connection."""

    @property
    def watch(self) -> bool:
        return self.query.get("watch") in {"1", "true"}


@dataclass(eq=False)
class Watcher:
    """An open watch."""

    asked: Asked
    connection: socket.socket
    silent: bool = False
    sent: list[tuple[float, str]] = field(default_factory=list)
    """When each event was sent (`time.monotonic`), and its resourceVersion."""


class RecordedServer:
    """An API server on loopback that plays a recording.

    Args:
        name: The recording.
        speed: Seconds of the recording a second; 0: the clock stands still until `step_to` or `play`.
        at: Where the clock begins; the recording's end without speed, a second before its first event with it.
        nodes: Nodes; without them they may not be read (403).
        logs: What containers have printed, by pod's name and container's name.
        proxy: Answers what is asked through a pod's proxy: (method, path behind it, headers) -> (status, body).
        bookmarks_s: How often an open watch gets a bookmark, in real seconds; 0: never.
        recording: Changes of one's own instead of a recording of that name.
    """

    def __init__(
        self,
        name: str = "",
        *,
        speed: float = 0,
        at: float | None = None,
        nodes: Sequence[Body] | None = None,
        logs: Mapping[tuple[str, str], str] | None = None,
        proxy: Callable[[str, str, Mapping[str, str]], tuple[int, bytes]] | None = None,
        bookmarks_s: float = 0,
        recording: Recording | None = None,
    ) -> None:
        self.recording = recording or Recording.load(name)
        self.nodes, self.logs, self.proxy, self.bookmarks_s = nodes, logs or {}, proxy, bookmarks_s
        if at is None:
            at = self.recording.times[0] - 1 if speed else self.recording.end
        self._speed, self._from, self._since = speed, at, time.monotonic()
        self._changed = threading.Condition()
        self._compacted = 0
        self._gone_as_status = False
        self._refused: list[tuple[str, int, str, int]] = []
        self._port = 0
        self._http: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._sockets: set[socket.socket] = set()
        self._folder = tempfile.TemporaryDirectory()
        self.watchers: list[Watcher] = []
        """Watches that are open."""
        self.asked: list[Asked] = []
        """Every request."""
        self._apis: list[Api] = []

    # --- a test's hands -----------------------------------------------------------------------------------------

    @property
    def namespace(self) -> str:
        return self.recording.namespace

    @property
    def cluster(self) -> str:
        """Name of the RayCluster."""
        return self.recording.cluster

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def kubeconfig(self) -> Path:
        return Path(self._folder.name) / "kubeconfig"

    def api(self, **options: Any) -> Api:
        """A client of this server; it is closed with it."""
        self._apis.append(Api(self.kubeconfig, **options))
        return self._apis[-1]

    @property
    def now(self) -> float:
        """The recording's time."""
        return self._from + (time.monotonic() - self._since) * self._speed

    def step_to(self, t: float) -> None:
        """Let everything up to a time happen at once, and the clock stand still there."""
        with self._changed:
            self._speed, self._from = 0, t
            self._changed.notify_all()

    def step(self, count: int = 1) -> None:
        """Let so many more events happen."""
        done = self.position
        self.step_to(self.recording.times[min(done + count, len(self.recording.changes)) - 1])

    def play(self, speed: float) -> None:
        """Let the clock go on from here."""
        with self._changed:
            self._from, self._since, self._speed = self.now, time.monotonic(), speed
            self._changed.notify_all()

    def drop(self) -> None:
        """Break all open watches."""
        for watcher in list(self.watchers):
            _break(watcher.connection)

    def silence(self) -> None:
        """Leave all open watches half-open: nothing comes any more, and they do not end."""
        with self._changed:
            for watcher in self.watchers:
                watcher.silent = True

    def forget(self, *, as_status: bool = False) -> None:
        """Compact: whoever goes on from a resourceVersion before now gets 410, as an event or as HTTP status."""
        with self._changed:
            self._compacted, self._gone_as_status = self.version, as_status

    def refuse(self, pattern: str, status: int, reason: str = "", *, times: int = 10**9) -> None:
        """Answer requests whose path and query match with an error; `times=0` ends it."""
        self._refused = [each for each in self._refused if each[0] != pattern]
        if times:
            self._refused.append((pattern, status, reason, times))

    def await_watches(self, count: int, timeout_s: float = 120) -> None:
        """Wait until so many watches are open that still speak."""
        with self._changed:
            open_ = self._changed.wait_for(
                lambda: sum(not each.silent for each in self.watchers) >= count, timeout_s
            )
        assert open_, f"{len(self.watchers)} watches instead of {count}"

    # --- start and stop -----------------------------------------------------------------------------------------

    def __enter__(self) -> RecordedServer:
        self.start()
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "recorded",
                    "clusters": [{"name": "recorded", "cluster": {"server": self.url}}],
                    "users": [{"name": "recorded", "user": {"token": "recorded-token"}}],
                    "contexts": [
                        {
                            "name": "recorded",
                            "context": {
                                "cluster": "recorded",
                                "user": "recorded",
                                "namespace": self.namespace,
                            },
                        }
                    ],
                }
            )
        )
        return self

    def __exit__(self, *error: object) -> None:
        for api in self._apis:
            api.close()
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Listen; on the same port as before."""
        self._http = _Http(("127.0.0.1", self._port), _handler(self))
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and break all connections."""
        http, thread, self._http = self._http, self._thread, None
        if http is None or thread is None:
            return
        http.shutdown()
        thread.join()
        with self._changed:
            self._changed.notify_all()
        for connection in list(self._sockets):
            _break(connection)
        http.server_close()

    # --- what is true now ---------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """How many events have happened."""
        return self.recording.count_at(self.now)

    @property
    def version(self) -> int:
        """The resourceVersion of now."""
        return self._version(self.position)

    def _version(self, position: int) -> int:
        changes = self.recording.changes
        return changes[position - 1].version if position else changes[0].version - 1

    def _next_s(self, position: int) -> float:
        """Real seconds until the next event; infinite when the clock stands."""
        if position >= len(self.recording.changes) or not self._speed:
            return math.inf
        return max(0.0, (self.recording.changes[position].t - self.now) / self._speed)


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a test breaks are no news."""


def _break(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _handler(server: RecordedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server._sockets.add(self.connection)
            if self.server is not server._http:  # stopped since it was accepted
                _break(self.connection)

        def finish(self) -> None:
            server._sockets.discard(self.connection)
            with suppress(OSError):
                super().finish()

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer_any()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def _answer_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            url = urlsplit(self.path)
            asked = Asked(
                self.command,
                url.path,
                dict(parse_qsl(url.query)),
                dict(self.headers.items()),
                self.client_address[1],
            )
            server.asked.append(asked)
            for number, (pattern, status, reason, times) in enumerate(server._refused):
                if re.search(pattern, self.path):
                    server._refused[number] = (pattern, status, reason, times - 1)
                    if times == 1:
                        del server._refused[number]
                    return self._status(status, reason, _refusal(status, url.path), asked)
            if asked.method == "POST" and asked.path.endswith("selfsubjectaccessreviews"):
                return self._json(201, {**json.loads(body), "status": {"allowed": True}})
            match = re.fullmatch(
                r"(?:/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+))?(?:/(log|proxy)(/.*)?)?",
                asked.path,
            )
            if match is None:
                return self._missing(asked)
            namespace, plural, name, below, rest = match.groups()
            if below == "proxy" and server.proxy is not None:
                asking = f"{rest or '/'}{f'?{url.query}' if url.query else ''}"
                status, data = server.proxy(asked.method, asking, asked.headers)
                return self._send(status, data, "application/octet-stream")
            if below == "log":
                return self._log(str(name), asked)
            if asked.method != "GET":
                return self._status(405, "MethodNotAllowed", "recordings are only read", asked)
            if plural in {"nodes", "namespaces"}:
                return self._whole(plural, name, asked)
            if plural not in PLURALS:
                return self._missing(asked)
            there = namespace in {None, server.namespace}
            query = Query(
                PLURALS[plural], asked.query.get("labelSelector", ""), asked.query.get("fieldSelector", "")
            )
            if name:
                return self._one(query.kind, plural, name, there, asked)
            if asked.watch:
                return self._watch(query, there, asked)
            return self._list(query, there, asked)

        # --- answers ----------------------------------------------------------------------------------------

        def _send(self, status: int, data: bytes, type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _json(self, status: int, body: Body) -> None:
            self._send(status, json.dumps(body).encode())

        def _status(
            self, code: int, reason: str, message: str, asked: Asked, details: Body | None = None
        ) -> None:
            self._json(code, _status(code, reason, message, details))

        def _missing(self, asked: Asked) -> None:
            self._status(404, "NotFound", "the server could not find the requested resource", asked, {})

        def _one(self, kind: str, plural: str, name: str, there: bool, asked: Asked) -> None:
            item = server.recording.objects(server.position).get((kind, name)) if there else None
            if item is None:
                details = {"name": name, "kind": plural}
                return self._status(404, "NotFound", f'{plural} "{name}" not found', asked, details)
            return self._json(200, item)

        def _list(self, query: Query, there: bool, asked: Asked) -> None:
            # A next page is of the moment of the first.
            start, position = 0, server.position
            if token := asked.query.get("continue"):
                start, position = map(int, token.split(","))
                if server._version(position) < server._compacted:
                    return self._status(410, "Expired", "The provided continue parameter is too old", asked)
            found = server.recording.objects(position)
            items = [item for item in found.values() if there and query.takes(item)]
            limit = int(asked.query.get("limit") or len(items) or 1)
            head: Body = {"resourceVersion": str(server._version(position))}
            if start + limit < len(items):
                head["continue"] = f"{start + limit},{position}"
            page = [{k: v for k, v in item.items() if k not in {"kind", "apiVersion"}} for item in items]
            return self._json(
                200, {"kind": f"{query.kind}List", "metadata": head, "items": page[start : start + limit]}
            )

        def _whole(self, plural: str, name: str | None, asked: Asked) -> None:
            own = [{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": server.namespace}}]
            found = own if plural == "namespaces" else server.nodes
            if found is None:
                message = (
                    f'{plural} is forbidden: User "recorded" cannot list resource "{plural}" in API group ""'
                )
                return self._status(403, "Forbidden", message, asked, {"kind": plural})
            if name is None:
                head = {"resourceVersion": str(server.version)}
                return self._json(200, {"kind": "List", "metadata": head, "items": list(found)})
            item = next((each for each in found if each["metadata"]["name"] == name), None)
            if item is None:
                details = {"name": name, "kind": plural}
                return self._status(404, "NotFound", f'{plural} "{name}" not found', asked, details)
            return self._json(200, item)

        def _log(self, pod: str, asked: Asked) -> None:
            text = server.logs.get((pod, asked.query.get("container", "")))
            if text is None:
                return self._status(400, "BadRequest", "the container is waiting to start", asked)
            return self._send(200, text.encode(), "text/plain")

        # --- watch ------------------------------------------------------------------------------------------

        def _chunk(self, body: Body) -> None:
            data = json.dumps(body).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def _watch(self, query: Query, there: bool, asked: Asked) -> None:
            since = int(asked.query.get("resourceVersion") or 0)
            gone = since and since < server._compacted
            message = f"too old resource version: {since} ({server._compacted})"
            if gone and server._gone_as_status:
                return self._status(410, "Expired", message, asked)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if gone:
                self._chunk({"type": "ERROR", "object": _status(410, "Expired", message)})
                self.wfile.write(b"0\r\n\r\n")
                return None
            watcher = Watcher(asked, self.connection)
            with server._changed:
                server.watchers.append(watcher)
                server._changed.notify_all()
            try:
                self._stream(query, there, asked, since, watcher)
            except OSError:
                self.close_connection = True
            finally:
                with server._changed:
                    server.watchers.remove(watcher)
                    server._changed.notify_all()
            return None

        def _stream(self, query: Query, there: bool, asked: Asked, since: int, watcher: Watcher) -> None:
            changes = server.recording.changes
            end = time.monotonic() + float(asked.query.get("timeoutSeconds") or 3600)
            bookmarks = server.bookmarks_s if asked.query.get("allowWatchBookmarks") == "true" else 0
            marked = time.monotonic()
            position = 0
            if since:
                position = bisect_right([change.version for change in changes], since)
            elif there:
                position = server.position
                for item in server.recording.objects(position).values():
                    if query.takes(item):
                        self._event(watcher, {"type": "ADDED", "object": item})
            http = self.server
            while True:
                with server._changed:
                    now = time.monotonic()
                    wait = min(server._next_s(server.position), end - now)
                    if bookmarks:
                        wait = min(wait, marked + bookmarks - now)
                    if server.position <= position and wait > 0 and http is server._http:
                        server._changed.wait(min(wait, 60))
                    until, silent = server.position, watcher.silent
                if http is not server._http:
                    self.close_connection = True
                    return
                if silent:
                    self._hang(http)
                    return
                for change in changes[position:until]:
                    if there and (event := query.event(change)):
                        self._event(watcher, event)
                position = max(position, until)
                now = time.monotonic()
                if bookmarks and now >= marked + bookmarks:
                    marked = now
                    head = {"resourceVersion": str(server._version(position)), "creationTimestamp": None}
                    self._event(
                        watcher, {"type": "BOOKMARK", "object": {"kind": query.kind, "metadata": head}}
                    )
                if now >= end:
                    self.wfile.write(b"0\r\n\r\n")
                    return

        def _hang(self, http: Any) -> None:
            self.close_connection = True
            with server._changed:
                server._changed.wait_for(lambda: server._http is not http)

        def _event(self, watcher: Watcher, event: Body) -> None:
            self._chunk(event)
            watcher.sent.append((time.monotonic(), event["object"]["metadata"]["resourceVersion"]))

    return Handler


def _refusal(status: int, path: str) -> str:
    what = path.rpartition("/")[2]
    if status == 403:
        return f'{what} is forbidden: User "recorded" cannot list resource "{what}" in API group ""'
    return "Unauthorized" if status == 401 else f"refused by the test: {path}"


def _status(code: int, reason: str, message: str, details: Body | None = None) -> Body:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message, "details": details or {},
    }  # fmt: skip
