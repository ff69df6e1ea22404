"""A TCP proxy before the API server that can be taken away and brought back, for clusters whose own cannot."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class InterruptedServer:
    """Passes connections on to the API server of a kubeconfig, until it is told not to.

    Attributes:
        kubeconfig: A kubeconfig that goes through it.
    """

    def __init__(self, kubeconfig: str, folder: Path) -> None:
        config = yaml.safe_load(Path(kubeconfig).read_text())
        current = next(c for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c for c in config["clusters"] if c["name"] == current["context"]["cluster"])["cluster"]
        address = urlsplit(cluster["server"])
        self._target = (address.hostname, address.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._up = True
        self._held = False
        self._taken = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        cluster["server"] = f"https://127.0.0.1:{self._port}"
        cluster["tls-server-name"] = address.hostname
        self.kubeconfig = folder / "interrupted"
        self.kubeconfig.write_text(json.dumps(config))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._up:
                    client.close()
                    continue
                self._taken.set()
                server = socket.create_connection(self._target)
                if self._held:
                    self._pairs.append((client, server))
                    continue
                self._pairs.append((client, server))
                for one, other in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._pump, args=(one, other))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Break all connections and take no more."""
        with self._lock:
            self._up = False
            for pair in self._pairs:
                for each in pair:
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Take connections from now on, and pass nothing on."""
        self._held = True

    def await_connection(self, timeout_s: float = 60) -> None:
        """Wait until somebody has connected."""
        assert self._taken.wait(timeout_s), "nobody connected"

    def start(self) -> None:
        """Take connections again."""
        with self._lock:
            self._up = True

    def close(self) -> None:
        """End it, with all its threads."""
        self.stop()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for thread in self._threads:
            thread.join()
        for pair in self._pairs:
            for each in pair:
                each.close()
