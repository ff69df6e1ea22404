"""A TCP proxy that misbehaves: it delays, drops, truncates and stalls connections, a given number of times."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["refuse", "delay", "stall", "truncate"]


@dataclass
class Proxy:
    """What is done to connections with the server behind.

    Attributes:
        port: Where it listens.
        faults: What is done to the next connections, one each; afterwards all goes well.
        on: If given, the faults wait for connections on which this is sent, and come to its answer: what it asks for
            is done, only the answer is lost.
        after: Bytes of the answer that come through before a `stall` or `truncate`.
        read: If given, a `truncate` waits until it is set: the client has read what came.
        answer: What is answered in place of the server, where it gives bytes for what is sent.
        without: A header's line that the server does not get.
        seen: How many connections there were.
    """

    port: int
    faults: list[Fault] = field(default_factory=list)
    on: bytes = b""
    after: int = 0
    read: threading.Event | None = None
    answer: Callable[[bytes], bytes | None] | None = None
    without: bytes = b""
    seen: int = 0
    stop: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """Listen on a port of loopback for the server on another while the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        here = Proxy(port=listener.getsockname()[1])
        threads = [threading.Thread(target=_accept, args=(listener, target, here), daemon=True)]
        threads[0].start()
        try:
            yield here
        finally:
            here.stop.set()
            threads[0].join(5)


def _accept(listener: socket.socket, target: int, here: Proxy) -> None:
    while not here.stop.is_set():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        here.seen += 1
        fault = here.faults.pop(0) if here.faults and not here.on else None
        threading.Thread(target=_serve, args=(client, target, fault, here), daemon=True).start()


def _serve(client: socket.socket, target: int, fault: Fault | None, here: Proxy) -> None:
    with client:
        if fault == "refuse":
            return
        if fault == "delay":
            time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", target)) as server:
            faults = [fault]
            up = threading.Thread(target=_up, args=(client, server, faults, here), daemon=True)
            up.start()
            _down(server, client, faults, here)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            up.join(5)


def _received(source: socket.socket, here: Proxy) -> Iterator[bytes]:
    source.settimeout(0.1)
    while not here.stop.is_set():
        try:
            data = source.recv(65_536)
        except TimeoutError:
            continue
        except OSError:
            return
        if not data:
            return
        yield data


def _up(client: socket.socket, server: socket.socket, faults: list[Fault | None], here: Proxy) -> None:
    for data in _received(client, here):
        if here.on and here.on in data and here.faults:
            faults[0] = here.faults.pop(0)
        try:
            if here.answer is not None and (said := here.answer(data)) is not None:
                client.sendall(said)
                break
            server.sendall(data.replace(here.without, b"") if here.without else data)
        except OSError:
            break
    for end in (client, server):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _down(server: socket.socket, client: socket.socket, faults: list[Fault | None], here: Proxy) -> None:
    passed = 0
    for data in _received(server, here):
        if faults[0] in {"stall", "truncate"} and passed + len(data) > here.after:
            with contextlib.suppress(OSError):
                client.sendall(data[: max(here.after - passed, 0)])
            # gRPC drops what it has received and nobody has read when a connection ends: it is given time for that.
            if faults[0] == "truncate" and here.read is not None:
                here.read.wait(30)
            here.stop.wait(30 if faults[0] == "stall" else 0.2)
            return
        try:
            client.sendall(data)
        except OSError:
            return
        passed += len(data)
