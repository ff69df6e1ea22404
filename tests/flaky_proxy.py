"""A TCP proxy on loopback that behaves as bad networks do: drops connections, stalls, cuts answers off, says 507."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_CHUNK = 1 << 16


@dataclass
class FlakyProxy:
    """A proxy before a server. Change the attributes while it runs; they hold for what comes next.

    Attributes:
        drop: How many of the next connections are closed at once.
        stall: How many of the next connections are taken and never answered.
        truncate: Connections of answers that are cut off, and after how many bytes of the answer.
        delay: Seconds before each piece of an answer.
        answer: What is answered in place of the server, if it gives bytes for the head of a request.
        connections: How many there were.
    """

    target: tuple[str, int]
    drop: int = 0
    stall: int = 0
    truncate: tuple[int, int] = (0, 0)
    delay: float = 0.0
    answer: Callable[[bytes], bytes | None] | None = None
    connections: int = 0
    port: int = 0
    _closed: threading.Event = field(default_factory=threading.Event)
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _take(self, name: str) -> bool:
        with self._lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return bool(left)

    def _serve(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._take("drop"):
                return
            if self._take("stall"):
                self._closed.wait()
                return
            with socket.create_connection(self.target) as server:
                with self._lock:
                    self._open.add(server)
                forth = threading.Thread(target=self._forth, args=(client, server), daemon=True)
                forth.start()
                self._back(server, client)

    def _forth(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                if self.answer is not None and (said := self.answer(data)) is not None:
                    client.sendall(said)
                    break
                server.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        while data := server.recv(_CHUNK):
            self._closed.wait(self.delay)
            with self._lock:
                times, size = self.truncate
                cut = bool(times) and len(data) > size
                if cut:
                    self.truncate = (times - 1, size)
            client.sendall(data[:size] if cut else data)
            if cut:
                return
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def running(self) -> Iterator[FlakyProxy]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._closed.set()
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                with self._lock:
                    for end in self._open:
                        with contextlib.suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)
                thread.join(5)


@contextlib.contextmanager
def flaky(endpoint: str) -> Iterator[FlakyProxy]:
    """A proxy before `http://HOST:PORT`, which behaves well until it is told otherwise."""
    host, _, port = endpoint.removeprefix("http://").partition(":")
    with FlakyProxy((host, int(port))).running() as proxy:
        yield proxy
