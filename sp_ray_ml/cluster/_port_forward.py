"""Ports of a pod on this machine: a listener a port, a WebSocket a connection, and the pod looked up anew when it goes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sp_ray_ml.cluster._kinds import POD
from sp_ray_ml.cluster._loop import in_thread
from sp_ray_ml.cluster._websocket import WebSocket
from sp_ray_ml.errors import ClusterError, KubernetesAccessError

if TYPE_CHECKING:
    from typing import Self

    from sp_ray_ml.cluster._api import Api

__all__ = ["PortForward"]

_PROTOCOL = "v4.channel.k8s.io"
_BLOCK = 2**16
_PATIENCE_S = 120.0
_LINGER_S = 30.0
"""How long an answer is awaited in silence when the local side has ended its half: the protocol cannot pass that on."""


class PortForward:
    """Forwards ports of a pod to 127.0.0.1. As a context manager it listens within the block.

    Connections are held while the pod is away and go to the one that is found next. Safe to use from any thread.

    Args:
        api: The API server.
        namespace: The pod's namespace.
        find_pod: Name of the pod that is there now; raises `ClusterError` while there is none.
        ports: Local port to the pod's; one that is taken, or 0, becomes any free one.
        patience_s: How long a connection is held while there is no pod.
        on_problem: Gets a line whenever a connection cannot be served.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        find_pod: Callable[[], str],
        ports: Mapping[int, int],
        *,
        patience_s: float = _PATIENCE_S,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        self._api, self._namespace, self._find_pod = api, namespace, find_pod
        self._wanted = dict(ports)
        self._patience_s, self._on_problem = patience_s, on_problem
        self._local: dict[int, int] = {}
        self._pod: str | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def ports(self) -> dict[int, int]:
        """The pod's ports to those here."""
        return dict(self._local)

    def local_port(self, port: int) -> int:
        """Where a port of the pod is here."""
        return self._local[port]

    def start(self) -> Self:
        """Listen.

        Raises:
            ClusterError: No port is free.
        """
        if self._thread is None:
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(ready,), name="sp-ray-port-forward", daemon=True
            )
            self._thread.start()
            try:
                ready.result()
            except OSError as error:
                self.close()
                raise ClusterError(f"no port of this machine can be listened on: {error}") from None
        return self

    def close(self) -> None:
        """Close all connections and listeners."""
        if self._thread is None:
            return
        if self._loop and self._stop:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- in its thread ------------------------------------------------------------------------------------------------

    def _run(self, ready: Future[None]) -> None:
        try:
            asyncio.run(self._main(ready))
        except OSError as error:
            ready.set_exception(error)

    async def _main(self, ready: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._looking = asyncio.Lock()
        connections: set[asyncio.Task[None]] = set()
        servers: list[asyncio.Server] = []
        try:
            for local, remote in self._wanted.items():

                def accept(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remote: int = remote
                ) -> None:
                    task = asyncio.ensure_future(self._serve(remote, reader, writer))
                    connections.add(task)
                    task.add_done_callback(connections.discard)

                servers.append(await _listen(accept, local))
                self._local[remote] = servers[-1].sockets[0].getsockname()[1]
            ready.set_result(None)
            await self._stop.wait()
        finally:
            for server in servers:
                server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, remote: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: WebSocket | None = None
        clean = False
        try:
            connection = await self._open(remote)
            clean = await self._relay(connection, remote, reader, writer)
        except ClusterError as error:
            self._tell(remote, error.message)
        except OSError:
            pass  # the local side has gone, or the connection broke: both ends are closed below
        finally:
            if connection:
                await connection.close()
            if clean:
                writer.close()
            else:
                _reset(writer)

    async def _open(self, remote: int) -> WebSocket:
        """A WebSocket to the pod that is there; while there is none, or it does not answer, look for another."""
        end, pause = time.monotonic() + self._patience_s, 0.1
        while True:
            try:
                pod = await self._current_pod()
                path = f"{POD.path(self._namespace, pod)}/portforward"
                return await WebSocket.open(self._api, path, [("ports", str(remote))], [_PROTOCOL])
            except KubernetesAccessError:
                raise
            except ClusterError:
                self._pod = None
                if time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause = min(pause * 2, 2.0)

    async def _current_pod(self) -> str:
        async with self._looking:
            if self._pod is None:
                self._pod = await in_thread(self._find_pod)
            return self._pod

    async def _relay(
        self, connection: WebSocket, remote: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Pass data both ways until the pod's side ends; whether it ended well."""
        received = 0
        refused = ""

        async def up() -> None:
            while data := await reader.read(_BLOCK):
                await connection.send(b"\0" + data)

        async def down() -> None:
            nonlocal received, refused
            named = set()
            while message := await connection.receive():
                channel, data = message[0], message[1:]
                if channel not in named:  # first of all, each channel names the port
                    named.add(channel)
                    data = data[2:]
                if channel == 1:
                    refused += data.decode(errors="replace")
                elif data:
                    received += len(data)
                    writer.write(data)
                    await writer.drain()

        sending, receiving = asyncio.ensure_future(up()), asyncio.ensure_future(down())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                await sending  # raises if it broke
                seen = -1
                while not receiving.done() and seen != received:
                    seen = received
                    await asyncio.wait({receiving}, timeout=_LINGER_S)
                if not receiving.done():
                    return False
            await receiving
        finally:
            for task in (sending, receiving):
                task.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        if refused:
            # The whole of it names paths of the node.
            self._tell(remote, "nothing listens there" if "refused" in refused else refused.strip())
        if refused or not received:
            self._pod = None
        return connection.ended and not refused

    def _tell(self, remote: int, message: str) -> None:
        if self._on_problem:
            self._on_problem(f"port {remote}: {message}")


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection in a way that nobody takes for the end of a complete answer."""
    # Linger on and for no time: the kernel sends RST where it else sends FIN.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _listen(
    accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], port: int
) -> asyncio.Server:
    try:
        return await asyncio.start_server(accept, "127.0.0.1", port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
    return await asyncio.start_server(accept, "127.0.0.1", 0)
