"""WebSockets to the API server: TLS, credentials and proxies as its HTTP requests have them.

On asyncio, because a TLS connection may not be read and written by two threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sp_ray_ml.cluster._loop import in_thread
from sp_ray_ml.errors import KubernetesError

if TYPE_CHECKING:
    import socket
    import ssl

    from websockets.asyncio.client import ClientConnection

    from sp_ray_ml.cluster._api import Api

__all__ = ["WebSocket"]

_OPEN_S = 15.0
_PING_S = 20.0
"""Something to pass, lest a balancer on the way take the connection for idle."""
_DEAD_S = 30
"""How long sent data may stay unacknowledged; after a laptop's sleep the old connection ends so."""
_CLOSE_S = 1.0
_LONGEST_MESSAGE = 32 * 2**20


class WebSocket:
    """An open WebSocket; made by `WebSocket.open`.

    Attributes:
        subprotocol: The one of those offered that the server chose.
        ended: Whether the other side has said that it ends; without, `receive` gave None for a lost connection.
    """

    def __init__(self, connection: ClientConnection, subprotocol: str) -> None:
        self._connection = connection
        self.subprotocol = subprotocol
        self.ended = False

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
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus
        from websockets.typing import Subprotocol

        from sp_ray_ml.cluster._api_errors import error_of

        # Credentials may come from a program that takes its time.
        url, headers = await in_thread(lambda: api.url_and_headers(path, query))
        try:
            connection = await connect(
                url.replace("http", "ws", 1),
                subprotocols=[Subprotocol(each) for each in subprotocols],
                additional_headers={name: value for name, value in headers.items() if name != "User-Agent"},
                user_agent_header=headers.get("User-Agent"),
                proxy=_proxy(api.configuration, url),
                compression=None,
                open_timeout=_OPEN_S,
                ping_interval=_PING_S,
                ping_timeout=None,
                close_timeout=_CLOSE_S,
                max_size=_LONGEST_MESSAGE,
                **_tls(api.configuration, url),
            )
        except InvalidStatus as refusal:
            answer = refusal.response
            raise error_of(answer.status_code, bytes(answer.body or b""), "GET", path, api.context) from None
        except (OSError, EOFError, InvalidHandshake, InvalidMessage) as error:
            # A handshake that breaks off has the reason as its cause.
            said = "it does not answer" if isinstance(error, TimeoutError) else str(error.__cause__ or error)
            raise KubernetesError(
                f"the API server cannot be reached: {said}",
                where=api.server,
                hint="Check it: kubectl cluster-info",
            ) from None
        if connection.subprotocol is None:
            connection.transport.abort()
            raise KubernetesError(
                "the API server, or a proxy before it, does not speak the protocol of pods", where=api.server
            )
        if (plain := connection.transport.get_extra_info("socket")) is None:  # it was closed again meanwhile
            raise KubernetesError("the connection was closed at once", where=api.server)
        _tune(plain)
        return cls(connection, connection.subprotocol)

    async def receive(self) -> bytes | None:
        """The next message; None when the other side has closed, or the connection is lost."""
        from websockets.exceptions import ConnectionClosed

        try:
            message = await self._connection.recv(decode=False)
        except ConnectionClosed as end:
            self.ended = end.rcvd is not None
            return None
        return message

    async def send(self, data: bytes) -> None:
        """Send a binary message; waits while the other side does not keep up.

        Raises:
            OSError: The connection is lost.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(data)
        except ConnectionClosed:
            raise ConnectionError("the connection to the API server is lost") from None

    async def close(self) -> None:
        """Close it."""
        await self._connection.close()
        self._connection.transport.abort()


def _proxy(configuration: Any, url: str) -> str | None:
    from kubernetes.client.rest import should_bypass_proxies

    if not configuration.proxy or should_bypass_proxies(url, configuration.no_proxy or ""):
        return None
    return str(configuration.proxy)


def _tls(configuration: Any, url: str) -> dict[str, Any]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "https":
        return {}
    return {
        "ssl": _tls_context(configuration),
        "server_hostname": configuration.tls_server_name or parts.hostname,
    }


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


def _tune(connection: socket.socket) -> None:
    import socket

    from sp_ray_ml.cluster._kubeconfig import socket_options

    for level, name, value in socket_options():
        connection.setsockopt(level, name, value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_S * 1000)
