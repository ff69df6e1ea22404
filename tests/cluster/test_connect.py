"""What a connection tells its user of VS Code, whichever of its servers the image has and however slowly that answers."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sp_ray_ml.cluster import _connect
from sp_ray_ml.cluster._connect import Connection

from .pod_server import PodServer, api_of

TOKEN = "0123abcd"


@contextmanager
def vscode(answer: str) -> Iterator[int]:
    """A VS Code server: `code-server` sends to its login page, `openvscode-server` opens, one that is `busy` says nothing."""
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer == "busy":
                done.wait()
                return
            self.send_response(302 if answer == "code-server" else 200)
            self.send_header("Location", "./login?folder=/home/ray" if answer == "code-server" else "/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            done.set()
            server.shutdown()
            thread.join()


def lines(folder: Path, port: int) -> list[str]:
    """The lines on VS Code of a connection to a cluster with just that on its head."""
    containers = [{"name": "ray-head", "ports": [{"name": "vscode", "containerPort": 3000}]}]
    head = {
        "metadata": {"name": "head-1", "creationTimestamp": "2026-11-29T08:00:00Z"},
        "status": {"phase": "Running"},
    }
    with PodServer() as server:
        server.ports = {3000: port}
        server.objects = {
            "/apis/ray.io/v1/namespaces/lab/rayclusters/demo": {
                "metadata": {"name": "demo", "namespace": "lab"},
                "spec": {"headGroupSpec": {"template": {"spec": {"containers": containers}}}},
            },
            "/api/v1/namespaces/lab/secrets/demo-workbench": {
                "data": {"token": base64.b64encode(TOKEN.encode()).decode()}
            },
            "/api/v1/namespaces/lab/pods": {"items": [head]},
        }
        with api_of(server, folder) as api, Connection(api, "lab", "demo") as connection:
            return [line for line in connection.lines() if "OpenVSCode" in line or "password" in line]


def test_who_opens_vs_code_is_given_what_its_server_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vscode("openvscode-server") as port:
        (address,) = lines(tmp_path, port)
        assert address.endswith(f"/?tkn={TOKEN}")
    with vscode("code-server") as port:
        address, password = lines(tmp_path, port)
        assert address.endswith("/")
        assert password.split() == ["its", "password", TOKEN]
    monkeypatch.setattr(_connect, "_PROBE_S", 0.5)
    with vscode("busy") as port:
        address, password = lines(tmp_path, port)
        assert address.endswith(f"/?tkn={TOKEN}")
        assert password.split() == ["its", "password", TOKEN], "it may be the one that asks for it"
