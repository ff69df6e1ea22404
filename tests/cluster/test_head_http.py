"""Requests to a head get there by whichever way is open, and what answers is told from what does not pass them on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sp_ray_ml.cluster._head_http import HeadHttp
from sp_ray_ml.errors import ClusterError, ClusterNotFoundError, KubernetesAccessError

from .pod_server import PodServer, api_of
from .recorded import RecordedServer

LONG = b"a line\n" * 2**16
TOKEN = {"X-Ray-Authorization": "Bearer t0ken"}


class Server:
    """A head's server on loopback, which says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, self.headers.get("X-Ray-Authorization"), body))
                if self.path == "/long":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(LONG)
                    return
                if self.path == "/broken-off":
                    self.send_response(200)
                    self.send_header("Content-Length", "9")
                    self.end_headers()
                    self.wfile.write(b"four")
                    return
                status = {"/missing": 404, "/secret": 401, "/broken": 500}.get(self.path, 200)
                data = b'{"fine": true}' if status == 200 else b"Traceback\nKeyError: the reason\n"
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_GET  # noqa: N815

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def pod(address: str = "127.0.0.1") -> dict[str, Any]:
    return {"metadata": {"name": "head-1", "namespace": "default"}, "status": {"podIP": address}}


def test_where_the_proxy_may_not_be_used_a_forwarded_port_is(server: Server, tmp_path: Path) -> None:
    with PodServer() as kubernetes, api_of(kubernetes, tmp_path) as api:
        with HeadHttp(api, "default", "mine", server.port, headers=TOKEN, pod=pod()) as head:
            assert json.loads(head.get("/first")) == {"fine": True}
            head.request("POST", "/second", b"{}")
        assert server.asked == [
            ("GET", "/first", "Bearer t0ken", b""),
            ("POST", "/second", "Bearer t0ken", b"{}"),
        ]
        assert kubernetes.asked.count("GET proxy") == 1  # it is not tried again
        assert "POST proxy" not in kubernetes.asked


def test_a_head_that_is_gone_is_told_soon_where_no_other_will_come(tmp_path: Path) -> None:
    with PodServer() as kubernetes, api_of(kubernetes, tmp_path) as api:
        kubernetes.pods.clear()
        with HeadHttp(api, "default", "mine", pod=pod()) as head:
            with pytest.raises(ClusterError, match="Ray's dashboard does not answer") as raised:
                head.get("/")
    assert raised.value.hint == "Run: sp-ray explain cluster mine -n default"


def test_within_kubernetes_the_pod_is_asked_at_its_address(server: Server, tmp_path: Path) -> None:
    with PodServer() as kubernetes, api_of(kubernetes, tmp_path) as api:
        head = HeadHttp(api, "default", "mine", server.port, headers=TOKEN, pod=pod(), direct=True)
        assert json.loads(head.get("/x")) == {"fine": True}
        assert kubernetes.asked == []
        with pytest.raises(ClusterError, match="the head has no address yet"):
            HeadHttp(api, "default", "mine", server.port, pod=pod(""), direct=True).get("/x")


def test_each_refusal_is_told_in_the_servers_words(server: Server, tmp_path: Path) -> None:
    with PodServer() as kubernetes, api_of(kubernetes, tmp_path) as api:
        head = HeadHttp(api, "default", "mine", server.port, pod=pod(), direct=True)
        for path, kind, words in (
            ("/missing", ClusterNotFoundError, "refused: KeyError: the reason"),
            ("/secret", KubernetesAccessError, "refuses the token"),
            ("/broken", ClusterError, "refused: KeyError: the reason"),
        ):
            with pytest.raises(kind, match=words):
                head.get(path)


def test_a_long_answer_comes_in_pieces_by_each_way(server: Server, tmp_path: Path) -> None:
    with PodServer() as kubernetes, api_of(kubernetes, tmp_path) as api:
        with HeadHttp(api, "default", "mine", server.port, headers=TOKEN, pod=pod()) as forwarded:
            straight = HeadHttp(api, "default", "mine", server.port, headers=TOKEN, pod=pod(), direct=True)
            for head in (forwarded, straight):
                pieces = list(head.stream("/long"))
                assert b"".join(pieces) == LONG
                assert len(pieces) > 1
                assert server.asked[-1] == ("GET", "/long", "Bearer t0ken", b"")
                with pytest.raises(KubernetesAccessError, match="refuses the token"):
                    list(head.stream("/secret"))
                with pytest.raises(ClusterError, match="IncompleteRead"):
                    list(head.stream("/broken-off"))


def test_an_open_proxy_is_used_and_kept_to() -> None:
    def dashboard(method: str, path: str, headers: Any) -> tuple[int, bytes]:
        if path == "/long":
            return 200, LONG
        return (200, headers["X-Ray-Authorization"].encode()) if path == "/a?b=c" else (500, b"no\n")

    with RecordedServer("01-ready", at=5, proxy=dashboard) as recorded, recorded.api() as api:
        with HeadHttp(api, recorded.namespace, "demo", headers=TOKEN) as head:
            assert head.get("/a?b=c") == b"Bearer t0ken"
            assert b"".join(head.stream("/long")) == LONG
            with pytest.raises(ClusterError):
                list(head.stream("/e"))
            with pytest.raises(ClusterError, match="Ray's dashboard refused: no") as raised:
                head.request("PUT", "/d?secret=1", b"data", content_type="application/octet-stream")
            assert raised.value.where == "PUT /d"
        asked = [each for each in recorded.asked if "/proxy" in each.path]
        assert asked[-1].headers["Content-Type"] == "application/octet-stream"
