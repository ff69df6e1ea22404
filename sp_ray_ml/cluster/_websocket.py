"""WebSockets to the API server (RFC 6455, the client's part): TLS, credentials and proxies as its HTTP requests have them.

On asyncio, because a TLS connection may not be read and written by two threads at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._loop import in_thread
from sp_ray_ml.errors import ClusterError, KubernetesError

if TYPE_CHECKING:
    import socket
    import ssl
    from urllib.parse import SplitResult

    from sp_ray_ml.cluster._api import Api

__all__ = ["WebSocket"]

_OPEN_S = 15.0
_PING_S = 20.0
_DEAD_S = 30
"""How long sent data may stay unacknowledged; after a laptop's sleep the old connection ends so."""
_LONGEST_MESSAGE = 32 * 2**20
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10


class WebSocket:
    """An open WebSocket; made by `WebSocket.open`.

    Attributes:
        subprotocol: The one of those offered that the server chose.
        ended: Whether the other side has said that it ends; without, `receive` gave None for a lost connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subprotocol: str) -> None:
        self._reader, self._writer = reader, writer
        self.subprotocol = subprotocol
        self.ended = False
        self._closing = False
        self._pinging = asyncio.ensure_future(self._ping())

    @classmethod
    async def open(
        cls, api: Api, path: str, query: Sequence[tuple[str, str]], subprotocols: Sequence[str]
    ) -> WebSocket:
        """Connect to a path of the API server.

        Args:
            api: The API server.
            path: Path below its URL.
            query: Query parameters.
            subprotocols: Subprotocols to choose from, the best first.

        Raises:
            KubernetesError: It cannot be reached, or refused.
        """
        # Credentials may come from a program that takes its time.
        url, headers = await in_thread(lambda: api.url_and_headers(path, query))
        try:
            async with asyncio.timeout(_OPEN_S):
                return await cls._open(api, url, headers, subprotocols, path)
        except ClusterError:  # refused credentials are an OSError, too
            raise
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            said = "it does not answer" if isinstance(error, TimeoutError) else str(error)
            raise KubernetesError(
                f"the API server cannot be reached: {said}",
                where=api.server,
                hint="Check it: kubectl cluster-info",
            ) from None

    @classmethod
    async def _open(
        cls, api: Api, url: str, headers: dict[str, str], subprotocols: Sequence[str], path: str
    ) -> WebSocket:
        from urllib.parse import urlsplit

        from sp_ray_ml.cluster._api import _refused

        parts = urlsplit(url)
        reader, writer = await _connect(parts, api.configuration)
        try:
            key = base64.b64encode(os.urandom(16))
            lines = {
                **headers,
                "Host": parts.netloc,
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": key.decode(),
                "Sec-WebSocket-Protocol": ", ".join(subprotocols),
            }
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
            status, answer = _parse_head(await reader.readuntil(b"\r\n\r\n"))
            if status != 101:
                length = int(answer.get("content-length") or 0)
                body = await (reader.readexactly(min(length, 2**16)) if length else reader.read(2**16))
                raise _refused(status, body, "GET", path, api.context)
            accept = base64.b64encode(hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest()).decode()
            chosen = answer.get("sec-websocket-protocol", "")
            if answer.get("sec-websocket-accept") != accept or chosen not in subprotocols:
                raise KubernetesError(
                    "the API server, or a proxy before it, speaks no WebSocket", where=api.server
                )
            return cls(reader, writer, chosen)
        except BaseException:
            writer.transport.abort()
            raise

    async def receive(self) -> bytes | None:
        """The next message; None when the other side has closed, or the connection is lost."""
        message = bytearray()
        try:
            while True:
                first, second = await self._reader.readexactly(2)
                length = second & 127
                if length >= 126:
                    length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8))
                if length + len(message) > _LONGEST_MESSAGE:
                    return None
                data = await self._reader.readexactly(length)
                operation = first & 15
                if operation == _CLOSE:
                    self.ended = True
                    return None
                if operation == _PING:
                    await self._frame(_PONG, data)
                elif operation != _PONG:
                    message += data
                    if first & 128:
                        return bytes(message)
        except (OSError, EOFError):
            return None

    async def send(self, data: bytes) -> None:
        """Send a binary message; waits while the other side does not keep up.

        Raises:
            OSError: The connection is lost.
        """
        await self._frame(_BINARY, data)

    async def close(self) -> None:
        """Close it."""
        self._pinging.cancel()
        if not self._closing:
            self._closing = True
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await self._frame(_CLOSE, (1000).to_bytes(2))
                    self._writer.close()
                    await self._writer.wait_closed()
        self._writer.transport.abort()

    async def _frame(self, operation: int, data: bytes) -> None:
        size, key = len(data), os.urandom(4)
        head = bytes([128 | operation])
        if size < 126:
            head += bytes([128 | size])
        elif size < 65_536:
            head += bytes([128 | 126]) + size.to_bytes(2)
        else:
            head += bytes([128 | 127]) + size.to_bytes(8)
        mask = (key * (size // 4 + 1))[:size]
        masked = (int.from_bytes(data) ^ int.from_bytes(mask)).to_bytes(size)
        self._writer.write(head + key + masked)
        await self._writer.drain()

    async def _ping(self) -> None:
        """Something to pass, lest a balancer on the way take the connection for idle."""
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(_PING_S)
                await self._frame(_PING, b"")


async def _connect(
    parts: SplitResult, configuration: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # not in its stubs

    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    tls: dict[str, Any] = {}
    if secure:
        context = _tls_context(configuration)
        tls = {"ssl": context, "server_hostname": configuration.tls_server_name or host}
    proxy = configuration.proxy
    if proxy and not proxy_bypass_environment(host, {"no": configuration.no_proxy or ""}):
        tunnel = await _through_proxy(proxy, configuration.proxy_headers or {}, host, port)
        reader, writer = await asyncio.open_connection(sock=tunnel, **tls)
    else:
        reader, writer = await asyncio.open_connection(host, port, **tls)
    _tune(writer.get_extra_info("socket"))
    return reader, writer


def _tls_context(configuration: Any) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(
        cafile=configuration.ssl_ca_cert, cadata=getattr(configuration, "ca_cert_data", None)
    )
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif configuration.assert_hostname is False:
        context.check_hostname = False
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


async def _through_proxy(proxy: str, headers: dict[str, str], host: str, port: int) -> socket.socket:
    import socket
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(proxy)
    if parts.scheme != "http":
        raise KubernetesError(
            f"a proxy by {parts.scheme} is not supported here, only by http", where=parts.hostname
        )
    loop = asyncio.get_running_loop()
    family, kind, number, _, address = (
        await loop.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    )[0]
    tunnel = socket.socket(family, kind, number)
    try:
        tunnel.setblocking(False)
        await loop.sock_connect(tunnel, address)
        lines = dict(headers)
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            lines["Proxy-Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await loop.sock_sendall(
            tunnel, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{head}\r\n".encode("latin-1")
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # what comes after it is no more the proxy's
            data = await loop.sock_recv(tunnel, 1)
            if not data or len(answer) > 2**14:
                raise ConnectionError("the proxy does not answer as one")
            answer += data
        status, _ = _parse_head(answer)
        if status != 200:
            raise ConnectionError(f"the proxy refuses with status {status}")
    except BaseException:
        tunnel.close()
        raise
    return tunnel


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise ConnectionError("the answer is not HTTP")
    pairs = (line.partition(":") for line in lines if line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _tune(connection: socket.socket) -> None:
    import socket

    from sp_ray_ml.cluster._api import _socket_options

    for level, name, value in _socket_options():
        connection.setsockopt(level, name, value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_S * 1000)
